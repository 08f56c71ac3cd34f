"""Several links in one report: each has its own figures, floors and facts, and what is modelled looks so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.cost_figures import cost_plots
from benchmarks.layer_figures import layer_figures
from benchmarks.pareto import frontier, pareto_plots
from benchmarks.plots import Mark
from benchmarks.schema import LinkRecord, Results
from benchmarks.svg import draw
from benchmarks.ten_times import ten_times
from tests.benchmarks.test_report import read

NETWORK = "bandwidth_mbps=80,rtt_ms=40"


@pytest.fixture
def on_two_links(results: Results) -> Results:
    """The run again on a slow link: `crypten` measured there, and a backend that was only modelled."""
    slow = [row.model_copy(update={"network": NETWORK}) for row in results.rows if row.backend == "crypten"]
    modelled = [row.model_copy(update={"backend": "other", "kind": "modelled", "sweep": 0}) for row in slow]
    layers = [row.model_copy(update={"network": NETWORK}) for row in results.layers]
    link = LinkRecord(
        network=NETWORK,
        shaping="relay",
        rtt_ms=40.0,
        bandwidth_mbps=80.0,
        measured_rtt_ms=(40.5, 41.5),
        measured_bandwidth_mbps=(78.0,),
    )
    return results.model_copy(
        update={
            "rows": (*results.rows, *slow, *modelled),
            "layers": (*results.layers, *layers),
            "links": (link,),
        }
    )


def test_each_link_has_figures_of_its_own(on_two_links: Results) -> None:
    keys = [plot.key for plot in cost_plots(on_two_links)]
    for network in ("loopback", "bandwidth-mbps-80-rtt-ms-40"):
        for phase in ("online", "offline"):
            assert f"cost-{network}-{phase}-latency" in keys


def test_modelled_points_are_hollow_and_measured_ones_solid(on_two_links: Results) -> None:
    plot = next(plot for plot in cost_plots(on_two_links) if plot.key.endswith("rtt-ms-40-online-latency"))
    dots = {series.name: series.dot for series in plot.series}
    assert dots == {"crypten": "solid", "other, modelled": "hollow"}
    drawn = draw(plot, width=400, height=300)
    assert drawn.count('<circle class="solid"') == drawn.count('<circle class="hollow"') == 2


def test_the_floor_of_a_layer_is_its_rounds_and_bytes(on_two_links: Results) -> None:
    figures = {figure.key: figure for figure in layer_figures(on_two_links, "crypten")}
    slow = figures["layers-crypten-linearized-bandwidth-mbps-80-rtt-ms-40-online"]
    line = next(line for line in slow.lines if line.layer == "layer1.0.relu1")
    # The link as it was measured: 35 rounds of 41 ms, and the larger direction of 900 ReLUs at 78 Mbit/s.
    assert line.floor_s == pytest.approx(35 * 0.041 + 1570 * 900 / 9.75e6)
    assert all(line.floor_s is None for line in figures["layers-crypten-linearized-loopback-online"].lines)


def test_the_page_tells_of_both_links(on_two_links: Results, tmp_path: Path) -> None:
    on_two_links.save(tmp_path / "results.json")
    page = read(report.write_report(tmp_path, gallery=False))
    for text in (
        "40 ms round trip, 80 Mbit/s each way, by a relay between network namespaces;"
        " measured round trip 41.0 ms (40.5 to 41.5, 2 times); measured transfer 78.0 Mbit/s",
        "what is modelled is marked so",
        f"Online latency on {NETWORK}",
        "other, modelled",
    ):
        assert text in page.text
    assert "modelled" in " ".join(attributes.get("class", "") for _, attributes in page.tags)


def test_factors_are_those_of_the_rows(on_two_links: Results) -> None:
    entries = {(entry.backend, entry.network): entry for entry in ten_times(on_two_links)}
    assert set(entries) == {("crypten", "loopback"), ("crypten", NETWORK), ("other", NETWORK)}
    entry = entries["crypten", "loopback"]
    assert (entry.relus, entry.modelled) == (30720 / 6000, False)
    factors = {(fall.phase, fall.measure.name): fall.factor for fall in entry.falls}
    assert factors["online", "latency"] == pytest.approx(6.318 / 2.274)
    assert factors["online", "traffic"] == pytest.approx((48_211_008 + 48_302_144) / (9_811_200 + 9_902_336))
    assert factors["offline", "latency"] == pytest.approx(3.46 / 1.32)
    assert entries["other", NETWORK].modelled
    assert entries["other", NETWORK].why == ()


def test_a_backend_without_layers_tells_the_line_through_its_two_counts(on_two_links: Results) -> None:
    entries = {(e.backend, e.network): e for e in ten_times(on_two_links.model_copy(update={"layers": ()}))}
    seconds, sent = entries["crypten", "loopback"].why
    # (96,513,152 - 19,713,536) / (30,720 - 6,000) bytes a ReLU, and 1,072,825 at none.
    assert "1,000 ReLUs take 3.11 MB online, and all that is no ReLU 1.07 MB (1 % with 30,720 ReLUs)" in plain(sent)
    # (6.318 - 2.274) s / 24,720 and 1.292 s at none.
    assert "1,000 ReLUs take 164 ms online, and all that is no ReLU 1.29 s (20 % with 30,720 ReLUs)" in plain(seconds)
    assert entries["other", NETWORK].why == ()


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\xa0", " ")


def test_few_is_the_budget_nearest_fifty_thousand_where_there_are_many(sweep_results: Results) -> None:
    counts = (6000, 30000, 60000, 100000, 491520)
    subjects = tuple(
        subject.model_copy(update={"relu_count": count, "relu_total": 491520})
        for subject, count in zip(sweep_results.subjects, counts, strict=True)
    )
    entry = ten_times(sweep_results.model_copy(update={"subjects": subjects}))[0]
    assert (entry.many.relu_count, entry.few.relu_count) == (491520, 60000)
    assert {e.few.relu_count for e in ten_times(sweep_results)} == {200}


def test_the_frontier_holds_what_no_other_beats() -> None:
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 79.0), (2.5, 90.0), (4.0, 91.0), (5.0, 91.0)]
    front = frontier([Mark(x=x, y=y) for x, y in points])
    beaten = {(x, y) for x, y in points for a, b in points if (a, b) != (x, y) and a <= x and b >= y}
    assert [(mark.x, mark.y) for mark in front] == sorted(set(points) - beaten)


def test_accuracy_is_shown_of_trained_weights_alone(results: Results, sweep_results: Results) -> None:
    (plot,) = pareto_plots(results)
    crypten = next(series for series in plot.series if series.name == "crypten")
    assert [(mark.label, mark.x, mark.y) for mark in crypten.marks] == [
        ("6,000", pytest.approx(2.274), pytest.approx(98.06)),
        ("30,720", pytest.approx(6.318), pytest.approx(98.61)),
    ]
    assert pareto_plots(sweep_results) == ()


def test_networks_of_several_runs_are_named_by_their_runs(results: Results) -> None:
    named = {"full": "snl/full", "linearized": "snl/linearized"}
    subjects = tuple(subject.model_copy(update={"name": named[subject.name]}) for subject in results.subjects)
    rows = tuple(row.model_copy(update={"subject": named[row.subject]}) for row in results.rows)
    (plot,) = pareto_plots(results.model_copy(update={"subjects": subjects, "rows": rows}))
    crypten = next(series for series in plot.series if series.name == "crypten")
    assert [mark.label for mark in crypten.marks] == ["snl", "30,720"]
