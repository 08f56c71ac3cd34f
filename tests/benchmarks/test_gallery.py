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
from benchmarks.schema import ReluLayer, Results


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_of_a_report_is_a_png_and_a_csv(run_dir: Path, results: Results) -> None:
    report.write_report(run_dir)
    files = sorted(path.name for path in (run_dir / "figures").iterdir())
    assert len(files) == 2 * len({name.rpartition(".")[0] for name in files})
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
