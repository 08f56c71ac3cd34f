"""Lines of least squares against numpy's and known answers; ratios and headline figures against the rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fit import cost_lines, fit_line
from benchmarks.headline import headline
from benchmarks.ratios import ratios
from benchmarks.schema import Results


def test_points_on_a_line_give_that_line() -> None:
    line = fit_line([0, 1, 2, 10], [3, 5, 7, 23])
    assert (line.slope, line.intercept, line.r_squared, line.points) == pytest.approx((2, 3, 1, 4))


def test_known_answer_with_residuals() -> None:
    # By hand: means 2 and 2, slope (1*1 + 1*0) / 2 = 1/2, intercept 1; residuals 1/2, -1, 1/2 of a variance sum of 2.
    line = fit_line([1, 2, 3], [2, 1, 3])
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((0.5, 1.0, 0.25))


def test_a_cost_that_does_not_vary_is_explained_whole() -> None:
    line = fit_line([1, 2, 3], [4, 4, 4])
    assert (line.slope, line.intercept, line.r_squared) == (0, 4, 1)


@given(
    st.lists(st.integers(0, 500_000), min_size=3, max_size=8, unique=True).filter(lambda x: max(x) - min(x) > 100),
    st.data(),
)
def test_lines_equal_numpys(x: list[int], data: st.DataObject) -> None:
    y = data.draw(st.lists(st.floats(0, 1e3, width=32), min_size=len(x), max_size=len(x)))
    slope, intercept = np.polyfit(np.array(x, float), y, 1)
    line = fit_line(x, y)
    size = max(*y, 1.0)
    assert line.slope * max(x) == pytest.approx(slope * max(x), abs=1e-6 * size)
    assert line.intercept == pytest.approx(intercept, abs=1e-6 * size)
    if np.std(y) > 1e-3:
        assert line.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-6)


def test_each_cost_of_a_sweep_has_its_line(sweep_results: Results) -> None:
    found = {(entry.backend, entry.phase, entry.unit): entry.line for entry in cost_lines(sweep_results)}
    assert found["preset", "online", "s"].slope == pytest.approx(2e-6)
    assert found["preset", "online", "s"].intercept == pytest.approx(0.04)
    assert found["preset", "online", "bytes"].slope == pytest.approx(11)
    assert found["preset", "offline", "bytes"].slope == pytest.approx(22)
    assert found["crypten", "online", "s"].r_squared < 0.99
    assert ("plaintext", "offline", "s") not in found, "nothing has no line"
    assert ("plaintext", "online", "bytes") not in found


def test_two_counts_are_no_line(results: Results) -> None:
    assert cost_lines(results) == ()


def test_ratios_are_of_medians_on_one_subject(sweep_results: Results) -> None:
    found = {(r.backend, r.reference, r.subject): r for r in ratios(sweep_results)}
    entry = found["preset", "crypten", "6000"]
    assert entry.online == pytest.approx((0.04 + 0.012) / (1.2 + 0.036))
    assert entry.total == pytest.approx((0.08 + 0.036) / (2.4 + 0.036 + 0.144))
    assert found["crypten", "plaintext", "200"].online == pytest.approx((1.2 + 4e-5) / 0.004)
    assert not [key for key in found if key[0] in ("plaintext", key[1])]


def test_the_headline_is_json_with_figures_ratios_and_lines(sweep_results: Results) -> None:
    document = json.loads(json.dumps(headline(sweep_results), allow_nan=False))
    figures = document["backends"]["preset"]["6000"]
    assert figures["online_latency_s"] == pytest.approx(0.052)
    assert (figures["online_bytes"], figures["online_sent_bytes"]["client"]) == (86_000, 86_000)
    assert figures["online_latency_over_plaintext"] == pytest.approx(13)
    assert {subject["mask"] for subject in document["subjects"]} == {"all", "random"}
    lines = [line for line in document["lines"] if (line["backend"], line["unit"]) == ("preset", "bytes")]
    assert [line["a_relu"] for line in lines] == pytest.approx([11, 22])
