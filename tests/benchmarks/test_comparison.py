"""Runs against each other: the ratios of what both have, nothing of what one lacks, and the environments told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.comparison import Run, ratio_charts, same_figures, warnings
from benchmarks.comparison_report import write_comparison
from benchmarks.cost_law import predictions
from benchmarks.errors import ReportError
from benchmarks.schema import Results, Row
from benchmarks.tally import backend_tallies
from pi_runtime.cli.report import report
from tests.benchmarks.test_report import HOSTILE, read


def scaled(results: Results, seconds: float, **changes: object) -> Results:
    """The same run where each latency is that many times as long."""

    def longer(row: Row) -> Row:
        return row.model_copy(update={"seconds": tuple(seconds * value for value in row.seconds)})

    return results.model_copy(update={"rows": tuple(longer(row) for row in results.rows)} | changes)


def save(results: Results, path: Path) -> Path:
    results.save(path)
    return path


def test_ratios_are_those_of_the_medians(results: Results) -> None:
    same = same_figures([Run(name="a", results=results), Run(name="b", results=scaled(results, 0.25))])
    for figure in same:
        expected = 0.25 if figure.measure.name == "latency" else 1.0
        assert figure.ratios == (1.0, pytest.approx(expected))
    phases = {(f.backend, f.subject.name, f.phase, f.measure.name) for f in same}
    assert ("crypten", "linearized", "online", "traffic") in phases
    assert not any(f.backend == "plaintext" and f.measure.name == "traffic" for f in same)


def test_only_the_same_network_is_compared(results: Results) -> None:
    full, linearized = results.subjects
    other = results.model_copy(update={"subjects": (full, linearized.model_copy(update={"relu_count": 5999}))})
    same = same_figures([Run(name="a", results=results), Run(name="b", results=other)])
    assert {figure.subject.name for figure in same} == {"full"}
    renamed = json.loads(results.to_json().replace('"linearized"', '"cut"'))
    other = Results.model_validate_json(json.dumps(renamed))
    same = same_figures([Run(name="a", results=results), Run(name="b", results=other)])
    assert {figure.subject.name for figure in same} == {"full", "linearized"}


def test_a_chart_reaches_to_one_and_its_bars_are_the_ratios(results: Results) -> None:
    runs = [Run(name="a", results=results), Run(name="b", results=scaled(results, 0.5))]
    charts = {chart.key: chart for chart in ratio_charts(runs, same_figures(runs))}
    chart = charts["ratio-crypten-loopback-online-latency"]
    assert chart.most == 1.0
    assert [part.value for bar in chart.bars for part in bar.segments] == [pytest.approx(0.5)] * 2


def test_environments_that_differ_are_named(results: Results) -> None:
    environment = results.environment.model_copy(update={"cores": 64})
    other = results.model_copy(update={"environment": environment})
    runs = [Run(name="a", results=results), Run(name="b", results=other)]
    assert warnings(runs[:1] * 2) == ()
    (warning,) = warnings(runs)
    assert "differ in Cores:" in warning


def test_the_page_holds_figures_ratios_and_environments(results: Results, tmp_path: Path) -> None:
    environment = results.environment.model_copy(update={"cpu": HOSTILE})
    first = save(results, tmp_path / "first.json")
    second = save(scaled(results, 2.0, environment=environment, command=HOSTILE), tmp_path / "second.json")
    page = read(write_comparison([first, second], gallery=False))
    for text in (
        "first and second",
        "crypten linearized loopback online latency 2.27 s 4.55 s 2.00×",
        "differ in Processor",
        "Some CPU @ 2.10 GHz",
        f"pi-pipeline report {first} {second}",
    ):
        assert text in page.text
    assert HOSTILE in "".join(page.texts)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}


def test_runs_without_a_common_figure_say_so(results: Results, sweep_results: Results, tmp_path: Path) -> None:
    renamed = [subject.model_copy(update={"model": "other"}) for subject in sweep_results.subjects]
    other = sweep_results.model_copy(update={"subjects": tuple(renamed)})
    paths = [save(results, tmp_path / "a.json"), save(other, tmp_path / "b.json")]
    page = read(write_comparison(paths))
    assert "b shares no figure with a" in page.text
    assert "no figure in common" in page.text


def test_the_page_says_how_well_each_law_predicts(results: Results, sweep_results: Results, tmp_path: Path) -> None:
    """Twice the seconds are as linear; the run of two ReLU counts has no law to judge."""
    first, second = save(sweep_results, tmp_path / "a.json"), save(scaled(sweep_results, 2.0), tmp_path / "b.json")
    text = read(write_comparison([first, second], gallery=False)).text
    told = [tally for tally in backend_tallies(predictions(sweep_results)) if tally.backend == "preset"]
    assert [(tally.between.within, tally.beyond.within) for tally in told] == [(6, 4)]
    for run in ("a", "b"):
        assert f"{run} preset 6 of 6 0.0 % 4 of 4 0.0 %" in text
    few = [save(results, tmp_path / "c.json"), save(scaled(results, 2.0), tmp_path / "d.json")]
    assert "cost law" not in read(write_comparison(few, gallery=False)).text


def test_one_results_file_twice_is_refused(results: Results, tmp_path: Path) -> None:
    path = save(results, tmp_path / "results.json")
    with pytest.raises(ReportError, match="at least two results that differ"):
        write_comparison([path, tmp_path])


def test_the_verb_compares_several_and_reports_one(results: Results, tmp_path: Path) -> None:
    paths = [str(save(results, tmp_path / "a.json")), str(save(scaled(results, 3.0), tmp_path / "b.json"))]
    target = tmp_path / "out" / "page.html"
    run = CliRunner().invoke(report, [*paths, "--output", str(target)])
    assert json.loads(run.stdout) == {"comparison": str(target)}
    assert (tmp_path / "out" / "page-figures" / "ratio-crypten-loopback-online-latency.png").exists()
    key = "phases-crypten-loopback-latency"
    run = CliRunner().invoke(report, [paths[0], "--figure", key])
    written = [str(tmp_path / "a-figures" / f"{key}.{ending}") for ending in ("png", "csv")]
    assert json.loads(run.stdout) == {"figures": written}
    assert sorted(path.name for path in (tmp_path / "a-figures").iterdir()) == [f"{key}.csv", f"{key}.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a PATH"),
        (["a", "--run-dir", "b"], "either a PATH or --run-dir"),
        (["a", "b", "--figure", "x"], "--figure goes with one PATH"),
        (["a", "--output", "x"], "--output goes with several PATHs"),
    ],
)
def test_the_verb_refuses_what_does_not_go_together(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(report, arguments)
    assert run.exit_code == 2
    assert message in run.output
