"""Block coordinate descent with its options, stopped in the middle of writes; the oracle is an undisturbed one.

Kills of whole processes are test_resume's; here a write that ends halfway raises through everything, which leaves the
same files and takes no start of a process.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from linearize import bcd_log, files
from linearize.bcd import bcd
from linearize.config import BcdConfig, DataConfig
from linearize.data import Dataset, load_dataset
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import relu_count, set_relu_mask
from linearize.replacement import use_affine
from linearize.stage import StageContext
from linearize.train import Teacher

FINETUNE = {"epochs": 2, "batch_size": 25, "lr": 0.02}
COMMON: dict[str, Any] = {
    "drc": 120,
    "rt": 2,
    "adt": 2.0,
    "eval_batch_size": 16,
    "gradient_images": 30,
    "finetune": FINETUNE,
}
EXCHANGES = {"give_back": 40, "exchange_steps": 3, "proposal": "mixed"}
LATENCY = {"objective": "latency", "round_worth": 25.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "full, drift": {"scoring": "full", "drift": True, "adt": 0.5},
    "exact, drift, exchanges": {**EXCHANGES, "drift": True},
    "exact, exchanges, always": {**EXCHANGES, "finetune_policy": "always"},
    "exact, channels by worth, fractions": {"proposal": "gradient", "shape": "channel", "drc_fraction": 0.4},
    "racing, exchanges": {**EXCHANGES, "scoring": "racing", "racing_share": 0.5, "racing_error": 0.3},
    "exact, latency, exchanges": {**LATENCY, **EXCHANGES, "finetune_policy": "always"},
    "racing, latency": {**LATENCY, "scoring": "racing", "racing_share": 0.5, "proposal": "gradient"},
}
AFFINE = ("exact, drift, exchanges", "racing, exchanges", "exact, latency, exchanges")
BUDGET = 420
WRITE = files.write_atomic


class StoppedError(BaseException):
    """In place of a kill; no handler of the program may take it for an error."""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=60), Reporter(quiet=True))


def network(*, affine: bool) -> nn.Module:
    model = build_network("resnet18", 4, 10, (1, 8, 8), seed=0)
    set_relu_mask(model, torch.rand(1920, generator=torch.Generator().manual_seed(3)) < 0.45)
    if affine:
        use_affine(model)
    return model


def descend(root: Path, data: Dataset, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a call ends with, and its report with counted images."""
    context = StageContext(data, torch.device("cpu"), 5, root / "state", Reporter(quiet=True))
    model = network(affine=name in AFFINE)
    teacher = Teacher(build_network("resnet18", 4, 10, (1, 8, 8), seed=9), data)
    settings = BcdConfig.model_validate({**COMMON, **OPTIONS[name]})
    with context.meter.watching(model):
        report = bcd(model, teacher, BUDGET, settings, context, root / "bcd.jsonl")
    counts = context.meter.counts()
    return model, report | {name: {**cost, "seconds": None} for name, cost in counts.items()}


def stop_in_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let `number` files be written from here on and stop in the middle of the next one."""
    written = 0

    def write_or_stop(path: Path, content: bytes) -> None:
        nonlocal written
        written += 1
        if written > number:
            path.with_name(f".{path.name}.1.tmp").write_bytes(content[: len(content) // 2])
            raise StoppedError
        WRITE(path, content)

    for module in (files, bcd_log):
        monkeypatch.setattr(module, "write_atomic", write_or_stop)


def log_of(root: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (root / "bcd.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]


class Undisturbed:
    """Undisturbed runs, one for each of OPTIONS."""

    def __init__(self, root: Path, data: Dataset) -> None:
        self._root, self._data = root, data
        self._results: dict[str, tuple[nn.Module, dict[str, Any]]] = {}

    def root(self, name: str) -> Path:
        return self._root / name.replace(", ", "-")

    def result(self, name: str) -> tuple[nn.Module, dict[str, Any]]:
        if name not in self._results:
            self.root(name).mkdir()
            self._results[name] = descend(self.root(name), self._data, name)
        return self._results[name]

    def log(self, name: str) -> list[dict[str, Any]]:
        self.result(name)
        return log_of(self.root(name))


@pytest.fixture(scope="module")
def undisturbed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), data)


@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_in_any_write_it_ends_like_an_undisturbed_one(
    name: str, undisturbed: Undisturbed, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, report = undisturbed.result(name)
    assert relu_count(want) == BUDGET
    stops = 0
    while True:
        # The first write of a call shortens the log. One to three more are let through in turn.
        stop_in_write(monkeypatch, 2 + stops % 3)
        try:
            got, resumed = descend(tmp_path, data, name)
        except StoppedError:
            stops += 1
            continue
        break
    assert stops >= 2
    assert resumed == report, "counts of images included"
    assert log_of(tmp_path) == undisturbed.log(name)
    state, expected = got.state_dict(), want.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_options_take_the_paths_that_they_name(undisturbed: Undisturbed) -> None:
    everything = [record for name in OPTIONS for record in undisturbed.log(name)]
    assert any(record["exchanged"] for record in undisturbed.log("racing, exchanges"))
    assert any(record["block"] == 0 for record in undisturbed.log("exact, exchanges, always")), "steps at the budget"
    assert any(record["moved"] for record in undisturbed.log("exact, latency, exchanges"))
    assert any(record["moved"] for record in undisturbed.log("racing, latency"))
    assert {record["accepted"] for record in everything} == {True, False}
    assert {record["finetuned"] for record in everything} == {True, False}
