"""A harness run that was stopped, or is given other inputs: what is measured again, what is kept, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bench import KEPT, Bench, open_after, timed
from tiny_network import save_network

from benchmarks.errors import MeasureError
from benchmarks.harness import BenchSettings
from benchmarks.results_file import load_results
from benchmarks.summary import phase_cost
from pi_runtime.errors import BackendError
from pi_runtime.spu.interpreter import PINS


def test_a_run_that_failed_goes_on_from_the_last_finished_unit(bench: Bench) -> None:
    calls = itertools.count()

    def die_in_second_check(logits: Any) -> Any:
        if next(calls) == 12 + 1:  # runs of both networks, none for the first's images, one batch of the second's
            raise BackendError("the process died")
        return logits

    bench.distort["second"] = die_in_second_check
    with pytest.raises(BackendError):
        bench.run("first", "second")
    assert not bench.path.exists()
    partial = load_results(bench.path.with_name("results.partial.json"))
    assert partial.backends == ("first", "second")
    assert [(e.backend, e.subject) for e in partial.secure] == [
        ("first", "full"),
        ("first", "linearized"),
        ("second", "full"),
    ]
    bench.journal.clear()
    bench.distort.clear()
    results = bench.run("first", "second")
    assert bench.journal == [
        "prepare second model",
        "infer second model 4",
        "infer second model 4",
        "infer second model 3",
        "close second model",
    ]
    assert results.rows == partial.rows
    assert not bench.path.with_name("results.partial.json").exists()
    assert load_results(bench.path) == results


def test_a_finished_run_is_not_measured_again_and_takes_in_another_backend(bench: Bench) -> None:
    first = bench.run("first")
    bench.journal.clear()
    assert bench.run("first") == first
    assert bench.journal == []
    both = bench.run("second")
    assert both.backends == ("first", "second")
    assert not [entry for entry in bench.journal if "first" in entry]


def test_versions_of_a_backends_own_python_are_told_and_measure_nothing_anew(bench: Bench) -> None:
    first = bench.run("fake")
    told = bench.run("fake", "spu-semi2k").environment
    assert told.packages == PINS | first.environment.packages
    assert told.packages["numpy"] == np.__version__
    assert [line for line in bench.journal if line.startswith("prepare fake")] == [
        "prepare fake full",
        "prepare fake model",
    ]


def test_a_sweep_that_dies_in_the_middle_goes_on_with_what_is_missing(bench: Bench) -> None:
    bench.settings = BenchSettings(runs=4, warmup=0, sweeps=2, accuracy_batch=50)
    calls = itertools.count()

    def die_on_the_way_back(logits: Any) -> Any:
        if next(calls) == 2 * 2 + 1 + 3:  # both subjects' first runs, one comparison, three of the second sweep's
            raise BackendError("the process died")
        return logits

    bench.distort["b"] = die_on_the_way_back
    with pytest.raises(BackendError):
        bench.run("a", "b")
    assert sum(open_after(entry) for entry in bench.journal) == 0, "what was opened is closed"
    partial = load_results(bench.path.with_name("results.partial.json"))
    done = {(row.backend, row.subject, row.sweep) for row in partial.rows}
    pairs = [(backend, subject) for backend in ("a", "b") for subject in ("full", "linearized")]
    assert done == {(*pair, 0) for pair in pairs} | {("a", "linearized", 1), ("b", "linearized", 1)}
    bench.journal.clear()
    bench.distort.clear()
    results = bench.run("a", "b")
    assert timed(bench.journal) == ["a full", "b full", "b full", "a full"]
    assert results.rows[: len(partial.rows)] == partial.rows
    assert {(row.backend, row.subject, row.sweep) for row in results.rows} == {
        (*pair, sweep) for pair in pairs for sweep in (0, 1)
    }


@pytest.mark.parametrize("change", ["images", "settings", "network", "labels"])
def test_other_inputs_are_measured_anew(bench: Bench, change: str) -> None:
    bench.run()
    bench.journal.clear()
    match change:
        case "images":
            bench.images = bench.images * 2
        case "settings":
            bench.settings = BenchSettings(runs=4)
        case "network":
            save_network(bench.linearized, [1, 3])
        case "labels":
            bench.labels = (bench.labels + 1) % 3
    bench.run()
    assert "prepare fake full" in bench.journal


@pytest.mark.parametrize(
    ("sweeps", "order"),
    [
        # Two warm-ups, then three runs of each, to and fro.
        (1, "full model, model full, full model, model full"),
        # One run of each in the first sweep, two in the second.
        (2, "full model, model full, model full, full model, model full"),
    ],
)
def test_more_runs_are_added_to_those_that_are_there(bench: Bench, sweeps: int, order: str) -> None:
    bench.settings = replace(bench.settings, runs=2)
    first = bench.run("a", "b")
    bench.journal.clear()
    bench.settings = replace(bench.settings, runs_of={"b": 5}, sweeps=sweeps)
    results = bench.run("a", "b")
    assert results.rows[: len(first.rows)] == first.rows
    assert results.secure == first.secure
    assert timed(bench.journal) == [f"b {subject}" for subject in order.replace(",", "").split()]
    assert not [line for line in bench.journal if " a " in line]
    for subject in ("full", "linearized"):
        cost = phase_cost(results, "b", subject, "online")
        assert cost is not None
        assert cost.latency_s.runs == 5
    assert results.schedule.runs_of == {"b": 5}
    bench.journal.clear()
    assert bench.run("a", "b") == results
    assert bench.journal == []


def test_fewer_runs_are_another_measurement(bench: Bench) -> None:
    bench.run()
    bench.settings = replace(bench.settings, runs=4)
    assert {len(row.seconds) for row in bench.run().rows if row.phase == "online"} == {4}


def test_a_damaged_file_of_an_earlier_run_is_measured_over(bench: Bench) -> None:
    bench.path.write_text('{"schema": 1', encoding="utf-8")
    results = bench.run()
    assert load_results(bench.path) == results


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((5, 1, 3, 3), np.float32),
            None,
            r"images of full must have shape \[N, 1, 2, 2\], got \[5, 1, 3, 3\]",
        ),
        (np.zeros((0, 1, 2, 2), np.float32), None, "images of full must have shape"),
        (np.zeros((5, 1, 2, 2), np.uint8), None, "images of full must be float32, got uint8"),
        (np.zeros((5, 1, 2, 2), np.float32), np.zeros(4, np.int64), r"labels of full must have shape \[5\]"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(bench: Bench, images: Any, labels: Any, message: str) -> None:
    bench.images, bench.labels = images, labels
    with pytest.raises(MeasureError, match=message):
        bench.run()
    assert bench.journal == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"backends": ()}, "backends must name at least one"), ({"subjects": ()}, "subjects must hold at least one")],
)
def test_nothing_to_measure_is_one_line(bench: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        bench.run(**changes)


def test_two_subjects_of_one_name_are_refused(bench: Bench) -> None:
    with pytest.raises(MeasureError, match="got 'full' twice"):
        bench.run(subjects=[bench.subjects[0], bench.subjects[0]])


def test_networks_of_different_classes_are_refused(bench: Bench, tmp_path: Path) -> None:
    bench.linearized = save_network(tmp_path / "other.onnx", KEPT, classes=5, name="tiny")
    with pytest.raises(MeasureError, match="must be of one network"):
        bench.run()


@pytest.mark.parametrize(
    ("name", "value"), [("runs", 0), ("warmup", -1), ("sweeps", 0), ("subjects_at_once", 0), ("threads", 0)]
)
def test_settings_out_of_range_name_the_setting(name: str, value: int) -> None:
    with pytest.raises(MeasureError, match=f"{name} must be >= .*, got {value}"):
        BenchSettings(**{name: value})
