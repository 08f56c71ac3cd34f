"""The harness on fake backends whose cost is known: what it books must be exactly that."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bench import ONLINE_S, Bench, open_after, timed
from tiny_network import save_network

from benchmarks.errors import MeasureError
from benchmarks.harness import BenchSettings
from benchmarks.headline import headline
from benchmarks.report import write_report
from benchmarks.schema import PHASES
from benchmarks.subjects import SubjectFile, load_subjects
from benchmarks.summary import layer_costs, phase_cost
from benchmarks.sweep import picture_of_run, stations


@pytest.mark.parametrize(("subject", "relus"), [("full", 4), ("linearized", 2)])
def test_rows_hold_the_known_cost_of_each_phase(bench: Bench, subject: Any, relus: int) -> None:
    results = bench.run()
    setup, offline, online = (phase_cost(results, "fake", subject, phase) for phase in PHASES)
    assert setup is not None
    assert offline is not None
    assert online is not None
    assert (setup.latency_s.median, setup.latency_s.runs, setup.rounds, setup.messages) == (3.0, 1, 5, 4)
    assert setup.sent_bytes.model_dump() == {"client": 1, "server": 2, "dealer": 3}
    assert (offline.latency_s.median, offline.latency_s.runs, offline.rounds) == (0.25, 5, 1)
    assert offline.sent_bytes.model_dump() == {"client": 0, "server": 0, "dealer": 1000 * relus}
    assert asdict(online.latency_s) == pytest.approx(
        {"median": 0.3 * relus, "min": 0.1 * relus, "max": 0.9 * relus, "runs": 5}
    )
    assert online.sent_bytes.model_dump() == {"client": 100 * relus, "server": 14, "dealer": 0}
    assert (online.rounds, online.messages, online.images, online.subject.relu_count) == (4, 6, 1, relus)
    assert {row.kind for row in results.rows} == {"measured"}
    assert {row.network for row in results.rows} == {row.network for row in results.layers} == {"loopback"}
    assert online.byte_source == "tcp_info"


def test_rows_keep_the_seconds_of_every_run_in_their_order(bench: Bench) -> None:
    (row,) = [row for row in bench.run().rows if (row.subject, row.phase) == ("full", "online")]
    assert row.seconds == pytest.approx([4 * seconds for seconds in ONLINE_S[1:]])


def test_layers_are_booked_once_with_their_parts_added(bench: Bench) -> None:
    results = bench.run()
    relu, last = layer_costs(results, "fake", "linearized", "online")
    assert (relu.layer, relu.op, relu.relu_count, relu.rounds) == ("relu1", "relu", 2, 4)
    assert relu.seconds == pytest.approx(0.3 * 2)
    assert relu.sent_bytes.model_dump() == {"client": 200, "server": 14, "dealer": 0}
    assert (last.layer, last.seconds, last.sent_bytes.total) == ("fc2", 0.01, 0)
    assert [row.layer for row in layer_costs(results, "fake", "linearized", "offline")] == ["relu1"]


def test_networks_that_are_open_together_take_turns_and_the_warm_up_comes_first(bench: Bench) -> None:
    bench.run()
    assert timed(bench.journal) == ["fake full", "fake model", "fake model", "fake full"] * 3
    assert [entry for entry in bench.journal if entry.startswith("close")] == ["close fake model", "close fake full"]


def test_backends_of_one_subject_take_turns_and_subjects_are_visited_to_and_fro(bench: Bench) -> None:
    bench.settings = BenchSettings(runs=3, warmup=0, sweeps=2, accuracy_batch=50)
    results = bench.run("a", "b")
    assert timed(bench.journal) == [
        *("a full", "b full", "b full", "a full"),  # two of the three runs
        *("a model", "b model", "b model", "a model"),
        *("a model", "b model"),  # the other one, on the way back
        *("a full", "b full"),
    ]
    assert results.schedule.model_dump(include={"runs", "sweeps", "subjects_at_once"}) == {
        "runs": 3,
        "sweeps": 2,
        "subjects_at_once": 1,
    }
    rows = [row for row in results.rows if (row.backend, row.subject, row.phase) == ("a", "full", "online")]
    assert [(row.sweep, len(row.seconds)) for row in rows] == [(0, 2), (1, 1)]
    # A fresh process in each sweep starts its list of seconds anew: 77, 0.3 and 77 a ReLU.
    cost = phase_cost(results, "a", "full", "online")
    assert cost is not None
    assert asdict(cost.latency_s) == pytest.approx({"median": 308.0, "min": 1.2, "max": 308.0, "runs": 3})
    setup = phase_cost(results, "a", "full", "setup")
    assert setup is not None
    assert setup.latency_s.runs == 2, "once a sweep"
    opened = max(itertools.accumulate(open_after(entry) for entry in bench.journal))
    assert opened == 2, "only one subject's backends are open at a time"


def test_there_are_never_more_sweeps_than_runs(bench: Bench) -> None:
    bench.settings = BenchSettings(runs=1, sweeps=4)
    results = bench.run()
    assert (results.schedule.sweeps, {row.sweep for row in results.rows}) == (1, {0})


@pytest.mark.parametrize(("runs", "sweeps"), [(1, 1), (5, 2), (7, 3), (4, 4)])
def test_the_runs_of_all_sweeps_add_up(bench: Bench, runs: int, sweeps: int) -> None:
    schedule = BenchSettings(
        runs=runs, sweeps=sweeps, runs_on={"wan": 2}, runs_of={"slow": 1, "often@wan": 9}
    ).schedule(2)
    stops = list(stations(bench.subjects, schedule))
    for name in ("full", "linearized"):
        visits = [stop.sweep for stop in stops if name in {file.name for file in stop.subjects}]
        for network, backend, total in (
            ("loopback", "a", runs),
            ("wan", "a", 2),
            ("loopback", "slow", 1),
            ("wan", "slow", 1),
            ("wan", "often", 9),
            ("loopback", "often", runs),
        ):
            assert [run for sweep in visits for run in schedule.share(sweep, network, backend)] == list(range(total))


def test_a_backend_of_fewer_runs_sits_out_evenly_and_has_its_own_images(bench: Bench) -> None:
    bench.settings = BenchSettings(runs=6, warmup=1, sweeps=1, runs_of={"slow": 2})
    results = bench.run("fast", "slow")
    lengths = {(row.backend, row.subject, len(row.seconds)) for row in results.rows if row.phase == "online"}
    assert lengths == {
        (name, subject, runs) for name, runs in (("fast", 6), ("slow", 2)) for subject in ("full", "linearized")
    }
    order = [backend for backend, subject in map(str.split, timed(bench.journal)) if subject == "full"]
    # A warm-up of both; then both in the first and in the fourth of six repetitions, in alternating order.
    assert order == ["fast", "slow", "slow", "fast", "fast", "fast", "fast", "slow", "fast", "fast"]
    assert results.schedule.runs_of == {"slow": 2}


def test_a_backend_may_go_without_a_warm_up(bench: Bench) -> None:
    bench.settings = BenchSettings(runs=2, warmup=2, sweeps=1, no_warmup=("slow",))
    results = bench.run("fast", "slow")
    lengths = {(row.backend, len(row.seconds)) for row in results.rows if row.phase == "online"}
    assert lengths == {("fast", 2), ("slow", 2)}
    order = [backend for backend, subject in map(str.split, timed(bench.journal)) if subject == "full"]
    assert order == ["fast", "fast", "fast", "slow", "slow", "fast"]
    assert "no inference before the timed ones of slow" in write_report(bench.path).read_text()


def test_timed_runs_take_the_compared_images_first_and_then_every_other_one(bench: Bench) -> None:
    file = replace(bench.subjects[0], accuracy_images=3)
    taken = [picture_of_run(file, run) for run in range(13 + 4)]
    assert taken[:3] == file.chosen == [0, 4, 8]
    assert sorted(taken[:13]) == list(range(13))
    assert taken[13:] == taken[:4]


def test_a_backend_of_a_single_run_is_open_alone(bench: Bench) -> None:
    """The others are open together, also in the second sweep, which has the last of their three runs."""
    bench.settings = BenchSettings(runs=3, warmup=0, sweeps=2, subjects_at_once=2, runs_of={"large": 1})
    bench.run("fast", "large", "small")
    are_open = itertools.accumulate(map(open_after, bench.journal))
    seen = {(entry.split()[1], count) for entry, count in zip(bench.journal, are_open, strict=True) if " 1" in entry}
    assert seen == {("fast", 4), ("small", 4), ("large", 1)}


def test_a_backend_is_left_out_of_subjects_that_do_not_want_it(bench: Bench) -> None:
    subjects = [bench.subjects[0], replace(bench.subjects[1], left_out=frozenset({"slow"}))]
    results = bench.run("fast", "slow", subjects=subjects)
    assert {(row.backend, row.subject) for row in results.rows} == {
        ("fast", "full"),
        ("fast", "linearized"),
        ("slow", "full"),
    }
    assert {(entry.backend, entry.subject) for entry in results.secure} == {
        (row.backend, row.subject) for row in results.rows
    }
    report = write_report(bench.path).read_text()
    assert "slow" in report
    assert headline(results)["problems"] == []


def test_subjects_are_described_from_their_graphs(bench: Bench) -> None:
    results = bench.run()
    full, linearized = results.subjects
    expected = {"model": "tiny", "dataset": "noise", "relu_total": 4, "weights": "trained", "images": "test"}
    assert full.model_dump(include=set(expected)) == linearized.model_dump(include=set(expected)) == expected
    assert (full.relu_budget, full.relu_count, full.mask) == (4, 4, "all")
    assert (linearized.relu_budget, linearized.relu_count, linearized.mask) == (2, 2, "trained")
    layers = [(layer.subject, layer.layer, layer.elements, layer.relu_count) for layer in results.relu_layers]
    assert layers == [("full", "relu1", 4, 4), ("linearized", "relu1", 4, 2)]


def test_a_layer_that_lost_every_relu_counts_none(bench: Bench, tmp_path: Path) -> None:
    linear = save_network(tmp_path / "linear.onnx", [])
    bench.linearized = linear
    common: dict[str, Any] = {"images": bench.images, "model": "tiny"}
    subjects = [SubjectFile(name="full", path=bench.full, **common), SubjectFile(name="0", path=linear, **common)]
    layers = load_subjects(subjects).relu_layers()
    assert [(layer.subject, layer.elements, layer.relu_count) for layer in layers] == [("full", 4, 4), ("0", 4, 0)]


@pytest.mark.parametrize(("first", "second"), [("relu1", "relu1.1"), ("relu1.1", "relu1")])
def test_a_relu_behind_an_affine_is_the_layer_of_its_activation(
    bench: Bench, tmp_path: Path, first: str, second: str
) -> None:
    """Exported, it is a submodule of the activation that it took the place of."""
    networks = [
        save_network(tmp_path / f"{kept}.onnx", list(range(kept)), relu_name=name)
        for kept, name in ((4, first), (3, second))
    ]
    subjects = [SubjectFile(name=path.stem, path=path, images=bench.images, model="tiny") for path in networks]
    layers = load_subjects(subjects).relu_layers()
    assert [(layer.subject, layer.layer, layer.relu_count) for layer in layers] == [("4", first, 4), ("3", first, 3)]


def test_accuracies_equal_those_of_onnxruntime_alone(bench: Bench) -> None:
    results = bench.run()
    for file, found in (
        (bench.full, results.subject("full").test_accuracy),
        (bench.linearized, results.subject("linearized").test_accuracy),
    ):
        assert found == np.mean(bench.plaintext(file).argmax(1) == bench.labels)
    entry = results.accuracy_of("fake", "linearized")
    assert entry is not None
    assert (entry.images, entry.agreement_with_plaintext, entry.max_abs_logit_error) == (11, 1.0, 0.0)
    batches = [int(e.split()[3]) for e in bench.journal if e.startswith("infer fake model") and not e.endswith(" 1")]
    assert batches == [4, 2], "five of the eleven are of timed runs"


@pytest.mark.parametrize(("off", "error"), [("timed", 0.125), ("warm-up", 0.0)])
def test_logits_of_the_timed_runs_are_compared(bench: Bench, off: str, error: float) -> None:
    calls = itertools.count()
    # Warm-ups of both, then turns: the first timed run of the second network is the third call.
    bench.distort["fake"] = lambda logits: logits + (0.125 if next(calls) == {"timed": 2, "warm-up": 1}[off] else 0.0)
    entry = bench.run().accuracy_of("fake", "linearized")
    assert entry is not None
    assert entry.max_abs_logit_error == pytest.approx(error, abs=1e-6)


def test_logit_error_is_the_largest_of_all_batches(bench: Bench) -> None:
    calls = itertools.count()
    # The two networks' warm-up and timed runs share the counter; only the last batch of the last network is off.
    bench.distort["fake"] = lambda logits: logits + (0.125 if next(calls) == 13 else 0.0)
    results = bench.run()
    entry = results.accuracy_of("fake", "linearized")
    assert entry is not None
    assert entry.max_abs_logit_error == pytest.approx(0.125, abs=1e-6)
    assert entry.agreement_with_plaintext == 1.0


def test_a_backend_that_disagrees_is_reported_loudly(bench: Bench) -> None:
    bench.distort["fake"] = lambda logits: -logits
    results = bench.run()
    entry = results.accuracy_of("fake", "full")
    assert entry is not None
    assert entry.agreement_with_plaintext == 0.0
    problems = headline(results)["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 2
    assert "fake agrees with plaintext on only 0.0%" in problems[0]


@pytest.mark.parametrize(
    ("distort", "message"),
    [
        (lambda logits: logits * np.nan, "'fake' gave logits that are not finite for full"),
        (lambda logits: logits[:, :2], r"'fake' gave logits of shape \(1, 2\) for full, expected \(1, 3\)"),
    ],
)
def test_what_is_no_logits_ends_the_run_and_names_the_backend(
    bench: Bench, distort: Callable[[Any], Any], message: str
) -> None:
    bench.distort["fake"] = distort
    with pytest.raises(MeasureError, match=message):
        bench.run()
    assert not bench.path.exists()
    assert [entry.split()[0] for entry in bench.journal] == ["prepare", "infer", "close"]


def test_a_network_alone_without_labels_is_measured(bench: Bench) -> None:
    bench.labels = None
    results = bench.run(subjects=bench.subjects[1:])
    (subject,) = results.subjects
    assert (subject.name, subject.test_accuracy, subject.test_images, subject.relu_total) == ("linearized", None, 0, 2)
    json.loads(json.dumps(headline(results), allow_nan=False))


def test_progress_ends_complete(bench: Bench) -> None:
    told: dict[str, tuple[int, int]] = {}
    bench.run(progress=lambda what, done, total: told.update({what: (done, total)}))
    assert told["full, linearized: timed runs, sweep 1"] == (6, 6)
    assert told["fake: test images (linearized)"] == (6, 6)
    assert "fake: test images (full)" not in told, "both are of timed runs"
    assert all(done == total for done, total in told.values())
