"""Published costs and the report's sections on law and floor. Oracles: the published totals, and the rows' own law."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.headline import headline
from benchmarks.law_view import law_view
from benchmarks.published import NAME, published_costs
from benchmarks.report import write_report
from benchmarks.schema import Results
from tests.benchmarks.conftest import make_subject


def test_the_published_network_costs_what_was_published(results: Results) -> None:
    """10.17 + 1.99 s and 659.6 MB online, 17.0 + 4.2 s and 9.51 + 1.12 GB offline for 557,056 ReLUs."""
    subject = make_subject("full", 557_056, relu_total=557_056, relu_budget=557_056)
    (cost,) = published_costs(results.model_copy(update={"subjects": (subject,)}))
    assert (cost.online_s, cost.offline_s) == pytest.approx((12.16, 21.2))
    assert cost.online_bytes == pytest.approx(659.6e6, rel=1e-3)
    assert cost.offline_bytes == pytest.approx(10.63e9, rel=1e-3)
    assert (cost.kind, cost.backend) == ("modelled", NAME)


def test_bytes_take_their_time_on_a_link(results: Results) -> None:
    wan = results.model_copy(update={"rows": tuple(r.model_copy(update={"network": "wan"}) for r in results.rows)})
    cost = next(cost for cost in published_costs(wan) if cost.subject.relu_count == 6000)
    assert cost.online_s == pytest.approx(6000 * (12.16 / 557_056 + 1184 / 12.5e6))


def test_published_costs_are_no_backend_of_the_results(sweep_results: Results) -> None:
    assert NAME not in sweep_results.backends
    assert NAME not in json.dumps(headline(sweep_results))


def test_the_report_shows_law_predictions_floor_and_published_costs(sweep_results: Results, tmp_path: Path) -> None:
    view = law_view(sweep_results)
    of_preset = [entry for entry in view.predictions if entry.backend == "preset"]
    assert of_preset
    assert all(abs(entry.error) < 1e-6 for entry in of_preset), "its cost is linear"
    (preset,) = [entry for entry in view.tallies if entry.backend == "preset"]
    assert preset.between.within == preset.between.total == sum(not entry.outside for entry in of_preset) > 0
    assert preset.beyond.within == preset.beyond.total == sum(entry.outside for entry in of_preset) > 0
    sweep_results.save(tmp_path / "results.json")
    page = write_report(tmp_path, gallery=False).read_text(encoding="utf-8")
    for place in ("law", "floor", "published"):
        assert f'<h2 id="{place}">' in page
    assert f'preset</th><td class="n">{preset.between.total} of {preset.between.total}</td>' in page
    assert "Modelled, not measured here" in page
    assert re.search(r"cryptonite.*machine and link are not stated", page)
    assert "÷ link + loopback" not in page, "there is no link but loopback"
    assert page.count("+0.0") + page.count("−0.0") >= len(of_preset)


def test_the_summary_has_laws_predictions_and_floors(sweep_results: Results) -> None:
    document = json.loads(json.dumps(headline(sweep_results), allow_nan=False))
    law = next(law for law in document["laws"] if (law["backend"], law["phase"]) == ("preset", "online"))
    assert (law["fixed_seconds"], law["seconds_a_relu"]) == pytest.approx((0.04, 2e-6))
    assert law["largest_residual"] == pytest.approx(0, abs=1e-9)
    entry = next(f for f in document["floors"] if (f["backend"], f["subject"]) == ("preset", "200"))
    assert entry["measured_over_floor"] == pytest.approx(0.0404 / 0.004)
    assert len(document["predictions"]) == 20


def test_links_bring_the_layers_floors_and_the_ratio_to_loopback(results: Results, tmp_path: Path) -> None:
    """The rows once more on the WAN, 17 rounds each: 0.68 s of round trips that a floor has and loopback has not."""
    wan = [row.model_copy(update={"network": "wan"}) for row in (*results.rows, *results.layers)]
    rows = (*results.rows, *wan[: len(results.rows)])
    both = results.model_copy(update={"rows": rows, "layers": (*results.layers, *wan[len(results.rows) :])})
    both.save(tmp_path / "results.json")
    view = law_view(both)
    assert {entry.network for entry in view.layers} == {"wan"}
    assert all(entry.link_s > 0 for layers in view.layers for entry in layers.rows)
    page = write_report(tmp_path, gallery=False).read_text(encoding="utf-8")
    assert "÷ link + loopback" in page
    assert page.count("<summary>Layers: ") == len(view.layers) > 0
