"""The harness on fake backends whose cost is known: what it books must be exactly that."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_network import save_network

from benchmarks.errors import MeasureError
from benchmarks.harness import BenchSettings, run_bench
from benchmarks.headline import headline
from benchmarks.results_file import load_results
from benchmarks.schema import PHASES, Results
from benchmarks.subjects import SubjectFile, load_subjects
from benchmarks.summary import layer_costs, phase_cost
from benchmarks.sweep import stations
from pi_runtime.backend import Backend, Cost, LayerCost, RunCost
from pi_runtime.errors import BackendError
from pi_runtime.spu.interpreter import PINS

SETUP = Cost(seconds=3.0, sent_bytes={"client": 1, "server": 2, "dealer": 3}, messages=4, rounds=5)
# Seconds of successive inferences; the first belongs to the warm-up. Median 0.3, minimum 0.1, maximum 0.9.
ONLINE_S = (77.0, 0.3, 0.9, 0.1, 0.2, 0.5)
KEPT = [0, 2]


class FakeBackend(Backend):
    """Plaintext logits at a cost that is a formula of the call: bytes grow with the graph's ReLUs."""

    def __init__(self, name: str, journal: list[str], distort: Callable[[Any], Any] = lambda logits: logits) -> None:
        self.name, self.journal, self.distort = name, journal, distort
        self.byte_source = "tcp_info"
        self.calls = itertools.count()

    def prepare(self, model: Path) -> None:
        self.graph = model.stem
        self.session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
        self.journal.append(f"prepare {self.name} {self.graph}")

    def offline(self, batch: int, count: int = 1) -> None:
        """Nothing to make ahead."""

    def infer(self, images: Any) -> tuple[Any, RunCost]:
        self.journal.append(f"infer {self.name} {self.graph} {len(images)}")
        relus = 4 if self.graph == "full" else len(KEPT)
        seconds = ONLINE_S[next(self.calls) % len(ONLINE_S)] * relus
        half = Cost(
            seconds=seconds / 2, sent_bytes={"client": 50 * relus, "server": 7, "dealer": 0}, messages=3, rounds=2
        )
        offline = Cost(
            seconds=0.25, sent_bytes={"client": 0, "server": 0, "dealer": 1000 * relus}, messages=1, rounds=1
        )
        layers = (
            LayerCost(name="relu1", op="relu", relu_count=relus, phase="offline", cost=offline),
            LayerCost(name="relu1", op="relu", relu_count=relus, phase="online", cost=half),
            LayerCost(name="relu1", op="relu", relu_count=relus, phase="online", cost=half),
            LayerCost(name="fc2", op="linear", relu_count=0, phase="online", cost=Cost(seconds=0.01)),
        )
        phases = {"setup": SETUP, "offline": offline, "online": half + half}
        return self.distort(self.session.run(None, {"input": images})[0]), RunCost(phases=phases, layers=layers)

    def close(self) -> None:
        self.journal.append(f"close {self.name} {self.graph}")


class Bench:
    """The arguments of a run on fake backends; ``distort`` changes the logits of the backends named in it."""

    def __init__(self, root: Path) -> None:
        self.journal: list[str] = []
        self.distort: dict[str, Callable[[Any], Any]] = {}
        self.path = root / "results.json"
        facts = {"name": "tiny", "dataset": "noise", "relu_budget": 2}
        self.full = save_network(root / "full.onnx", [0, 1, 2, 3], **facts)
        self.linearized = save_network(root / "model.onnx", KEPT, **facts)
        rng = np.random.default_rng(3)
        self.images = rng.normal(size=(13, 1, 2, 2)).astype(np.float32)
        self.labels: Any = rng.integers(0, 3, size=13)
        self.settings = BenchSettings(runs=5, warmup=1, sweeps=1, subjects_at_once=2, accuracy_batch=4)

    def open(self, name: str) -> Backend:
        return FakeBackend(name, self.journal, self.distort.get(name, lambda logits: logits))

    @property
    def subjects(self) -> list[SubjectFile]:
        """The full network, on two images, and the linearized one, on ten."""
        common: dict[str, Any] = {"images": self.images, "labels": self.labels, "weights": "trained"}
        return [
            SubjectFile(name="full", path=self.full, mask="all", accuracy_images=2, **common),
            SubjectFile(name="linearized", path=self.linearized, mask="trained", accuracy_images=10, **common),
        ]

    def run(self, *backends: str, **changes: Any) -> Results:
        arguments: dict[str, Any] = {
            "subjects": self.subjects,
            "backends": backends or ("fake",),
            "results_path": self.path,
            "settings": self.settings,
            "opener": self.open,
        }
        return run_bench(**(arguments | changes))

    def plaintext(self, file: Path) -> Any:
        session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
        return session.run(None, {"input": self.images})[0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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


def timed(journal: list[str]) -> list[str]:
    """Backend and network of every inference of one image."""
    return [" ".join(entry.split()[1:3]) for entry in journal if entry.endswith(" 1")]


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
    opened = max(itertools.accumulate(_step(entry) for entry in bench.journal))
    assert opened == 2, "only one subject's backends are open at a time"


def _step(entry: str) -> int:
    return {"prepare": 1, "close": -1}.get(entry.split()[0], 0)


def test_there_are_never_more_sweeps_than_runs(bench: Bench) -> None:
    bench.settings = BenchSettings(runs=1, sweeps=4)
    results = bench.run()
    assert (results.schedule.sweeps, {row.sweep for row in results.rows}) == (1, {0})


@pytest.mark.parametrize(("runs", "sweeps"), [(1, 1), (5, 2), (7, 3), (4, 4)])
def test_the_runs_of_all_sweeps_add_up(bench: Bench, runs: int, sweeps: int) -> None:
    schedule = BenchSettings(runs=runs, sweeps=sweeps, runs_on={"wan": 2}).schedule(2)
    stops = list(stations(bench.subjects, schedule))
    for name in ("full", "linearized"):
        visits = [stop.sweep for stop in stops if name in {file.name for file in stop.subjects}]
        for network, total in (("loopback", runs), ("wan", 2)):
            assert [run for sweep in visits for run in schedule.share(sweep, network)] == list(range(total))


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


def test_accuracies_equal_those_of_onnxruntime_alone(bench: Bench) -> None:
    results = bench.run()
    for file, found in (
        (bench.full, results.subject("full").test_accuracy),
        (bench.linearized, results.subject("linearized").test_accuracy),
    ):
        assert found == np.mean(bench.plaintext(file).argmax(1) == bench.labels)
    entry = results.accuracy_of("fake", "linearized")
    assert entry is not None
    assert (entry.images, entry.agreement_with_plaintext, entry.max_abs_logit_error) == (10, 1.0, 0.0)
    batches = [int(e.split()[3]) for e in bench.journal if e.startswith("infer fake model") and not e.endswith(" 1")]
    assert batches == [4, 4, 2]


def test_logit_error_is_the_largest_of_all_batches(bench: Bench) -> None:
    calls = itertools.count()
    # The two networks' warm-up and timed runs share the counter; only the last batch of the last network is off.
    bench.distort["fake"] = lambda logits: logits + (0.125 if next(calls) == 15 else 0.0)
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
    assert len([entry for entry in bench.journal if entry.startswith("close")]) == 2


def test_a_run_that_failed_goes_on_from_the_last_finished_unit(bench: Bench) -> None:
    calls = itertools.count()

    def die_in_second_check(logits: Any) -> Any:
        if next(calls) == 12 + 1 + 1:  # timed runs of both networks, the one batch of the first, one of the second
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
        "infer second model 2",
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
        if next(calls) == 2 * 2 + 2 + 3:  # both subjects' first runs and comparisons, three of the second sweep's
            raise BackendError("the process died")
        return logits

    bench.distort["b"] = die_on_the_way_back
    with pytest.raises(BackendError):
        bench.run("a", "b")
    assert sum(_step(entry) for entry in bench.journal) == 0, "what was opened is closed"
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


def test_a_damaged_file_of_an_earlier_run_is_measured_over(bench: Bench) -> None:
    bench.path.write_text('{"schema": 1', encoding="utf-8")
    results = bench.run()
    assert load_results(bench.path) == results


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
    assert told["fake: test images (full)"] == (2, 2)
    assert all(done == total for done, total in told.values())


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
