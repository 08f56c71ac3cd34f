"""A harness run on backends of known cost: plaintext logits, and seconds and bytes by a formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tiny_network import save_network

from benchmarks.harness import BenchSettings, run_bench
from benchmarks.schema import Results
from benchmarks.subjects import SubjectFile
from pi_runtime.backend import Backend, Cost, LayerCost, RunCost

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
        """The full network, on two images, and the linearized one, on eleven; five of them in timed runs."""
        common: dict[str, Any] = {"images": self.images, "labels": self.labels, "weights": "trained"}
        return [
            SubjectFile(name="full", path=self.full, mask="all", accuracy_images=2, **common),
            SubjectFile(name="linearized", path=self.linearized, mask="trained", accuracy_images=11, **common),
        ]

    def run(self, *backends: str, **changes: Any) -> Results:
        arguments: dict[str, Any] = {
            "subjects": self.subjects,
            "backends": backends or ("fake",),
            "results_path": self.path,
            "settings": self.settings,
            "opener": self.open,
            "memory": lambda: None,
        }
        return run_bench(**(arguments | changes))

    def plaintext(self, file: Path) -> Any:
        session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
        return session.run(None, {"input": self.images})[0]


def timed(journal: list[str]) -> list[str]:
    """Backend and network of every inference of one image."""
    return [" ".join(entry.split()[1:3]) for entry in journal if entry.endswith(" 1")]


def open_after(entry: str) -> int:
    """What an entry of the journal adds to the backends that are open."""
    return {"prepare": 1, "close": -1}.get(entry.split()[0], 0)
