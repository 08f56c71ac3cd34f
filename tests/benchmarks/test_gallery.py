"""Figures as files: the CSV holds the raw rows, the PNG is an image, and both come from what the page shows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.bars import Bar, Chart, Segment
from benchmarks.cost_figures import cost_plots
from benchmarks.errors import ReportError
from benchmarks.gallery import csv_text, distinct, save_gallery
from benchmarks.law_figures import law_figures
from benchmarks.law_view import law_view
from benchmarks.raw_tables import law_tables
from benchmarks.schema import ReluLayer, Results


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_of_a_report_is_a_png_and_a_csv(run_dir: Path, results: Results) -> None:
    report.write_report(run_dir)
    files = sorted(path.name for path in (run_dir / "figures").iterdir())
    tables = {table.key for table in law_tables(law_view(results))}
    assert {"floor", "published"} <= tables
    images = {name.removesuffix(".png") for name in files if name.endswith(".png")}
    assert {name.removesuffix(".csv") for name in files if name.endswith(".csv")} == images | tables
    assert not images & tables
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    for name in files:
        assert f'href="figures/{name}"' in page
        if name.endswith(".png"):
            with Image.open(run_dir / "figures" / name) as image:
                assert image.width > 300
    layers = rows_of(run_dir / "figures" / "layers-crypten-linearized-loopback-online.csv")
    measured = [row for row in results.layers if row.subject == "linearized"]
    assert [(row["layer"], float(row["seconds"]), int(row["client_bytes"])) for row in layers] == [
        (row.layer, row.seconds[0], row.sent_bytes.client) for row in measured
    ]


def test_the_csv_of_a_cost_has_the_raw_medians(sweep_results: Results) -> None:
    plot = next(plot for plot in cost_plots(sweep_results) if plot.key == "cost-loopback-online-traffic")
    rows = list(csv.DictReader(csv_text(plot).splitlines()))
    preset = [row for row in rows if (row["series"], row["kind"]) == ("preset", "measured")]
    assert [float(row["bytes of all roles"]) for row in preset] == [
        20_000 + 11 * count for count in (200, 1000, 6000, 15000, 30720)
    ]


def test_the_tables_of_law_and_floor_are_raw_csv_files(sweep_results: Results, tmp_path: Path) -> None:
    """`preset` costs 40 ms and 2 us a ReLU exactly, and runs over 4 ms of plaintext."""
    sweep_results.save(tmp_path / "results.json")
    keys = ["law-coefficients", "law-residuals", "law-held-back", "floor", "published"]
    written = report.save_figures(tmp_path, keys)
    assert [path.name for path in written] == [f"{key}.csv" for key in keys]
    law, residuals, held_back, floor, published = (rows_of(path) for path in written)
    mine = next(row for row in law if (row["backend"], row["phase"]) == ("preset", "online"))
    assert (float(mine["fixed_s"]), float(mine["s_per_relu"])) == pytest.approx((0.04, 2e-6))
    assert len(residuals) == 20
    for row in residuals:
        assert float(row["residual_s"]) == pytest.approx(float(row["measured_s"]) - float(row["law_s"]), abs=1e-12)
    assert len(held_back) == 20
    for row in held_back:
        assert float(row["error"]) == pytest.approx(float(row["predicted_s"]) / float(row["measured_s"]) - 1)
    first = next(row for row in floor if (row["backend"], row["subject"]) == ("preset", "200"))
    assert float(first["measured_over_floor"]) == pytest.approx(0.0404 / 0.004)
    assert {row["kind"] for row in published} == {"modelled"}
    assert int(published[0]["online_bytes"]) == 200 * 1184


def test_predictions_and_floors_are_drawn_from_the_tables_figures(sweep_results: Results) -> None:
    view = law_view(sweep_results)
    drawn = law_figures(sweep_results, view)
    assert drawn.predicted is not None
    points = {(m.x, m.y) for s in drawn.predicted.series if s.kind == "predicted" for m in s.marks}
    assert points == {(entry.measured_s, entry.predicted_s) for entry in view.predictions if entry.predicted_s > 0}
    line = next(series for series in drawn.predicted.series if series.name == "as measured")
    assert all(mark.x == mark.y for mark in line.marks)
    chart = next(chart for chart in drawn.floors if chart.key == "floor-preset-loopback")
    ratios = [entry.ratio for entry in view.floors if entry.backend == "preset"]
    assert [sum(part.value for part in bar.segments) for bar in chart.bars] == pytest.approx(ratios)
    assert [bar.segments[0].label for bar in chart.bars] == ["plaintext"] * len(ratios)


def test_one_figure_alone(run_dir: Path) -> None:
    written = report.save_figures(run_dir, ["accuracy-descent"])
    assert [path.name for path in written] == ["accuracy-descent.png", "accuracy-descent.csv"]
    assert {path.name for path in (run_dir / "figures").iterdir()} == {path.name for path in written}
    with pytest.raises(ReportError, match=r"--figure must be one of .*accuracy-descent.*; got 'nope'"):
        report.save_figures(run_dir, ["nope"])


def test_maps_are_drawn_and_written_location_by_location(run_dir: Path, results: Results) -> None:
    counts = tuple(range(16))
    layer = ReluLayer(
        subject="linearized", layer="relu", elements=4096, relu_count=120, shape=(256, 4, 4), kept_map=counts
    )
    others = tuple(entry for entry in results.relu_layers if entry.layer != "relu")
    results.model_copy(update={"relu_layers": (layer, *others)}).save(run_dir / "results.json")
    report.save_figures(run_dir, ["maps-linearized"])
    rows = rows_of(run_dir / "figures" / "maps-linearized.csv")
    assert [(int(row["row"]), int(row["column"]), int(row["kept"])) for row in rows] == [
        (place // 4, place % 4, count) for place, count in enumerate(counts)
    ]


def test_figures_of_one_name_are_told_apart_and_formulas_stay_text(tmp_path: Path) -> None:
    bar = Bar(label="=1+1", segments=(Segment(kind="accent", label="$x_y", value=2.0),), value="$ 中")
    chart = Chart(key="a", title="$a_b$ {", unit="s", bars=(bar,))
    figures = distinct([chart, chart])
    assert [figure.key for figure in figures] == ["a", "a-2"]
    save_gallery(figures, tmp_path)
    assert rows_of(tmp_path / "a.csv") == [{"bar": "'=1+1", "part": "$x_y", "kind": "measured", "s": "2.0"}]
