"""Counts of images, by hand."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from linearize.meter import Meter, monitoring
from linearize.stage import SavedState


def images(meter: Meter) -> tuple[int, int, int, int]:
    counts = meter.counts()
    return tuple(
        int(counts[activity][kind])
        for activity in ("search", "finetune")
        for kind in ("forward_images", "backward_images")
    )


def test_images_are_counted_by_activity_and_with_gradients_apart() -> None:
    meter, model = Meter(), nn.Linear(2, 2)
    model(torch.zeros(9, 2))
    with meter.watching(model):
        with torch.no_grad():
            model(torch.zeros(5, 2))
        model(torch.zeros(3, 2))
        with meter.activity("finetune"):
            model(torch.zeros(7, 2))
            with meter.activity("search"), torch.inference_mode():
                model(torch.zeros(11, 2))
        with monitoring():
            model(torch.zeros(100, 2))
        model(torch.zeros(1, 2))
    model(torch.zeros(50, 2))
    assert images(meter) == (5 + 3 + 11 + 1, 3 + 1, 7, 7)


def test_a_copy_of_the_network_counts_in_the_same_meter() -> None:
    meter, model = Meter(), nn.Linear(2, 2)
    with meter.watching(model):
        copy.deepcopy(model)(torch.zeros(4, 2))
    assert images(meter) == (4, 4, 0, 0)


def test_seconds_go_to_the_present_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    meter = Meter()
    with meter.watching(nn.Linear(1, 1)):
        now += 2
        with meter.activity("finetune"):
            now += 5
        now += 1
    now += 40
    counts = meter.counts()
    assert (counts["search"]["seconds"], counts["finetune"]["seconds"]) == (3.0, 5.0)


def test_saved_states_bring_the_latest_counts_back(tmp_path: Path) -> None:
    model, before, after = nn.Linear(2, 2), Meter(), Meter()
    with before.watching(model):
        model(torch.zeros(5, 2))
        SavedState(tmp_path / "outer.safetensors", before).save({}, {"step": 1})
        with before.activity("finetune"):
            model(torch.zeros(7, 2))
            SavedState(tmp_path / "inner.safetensors", before).save({}, {"epoch": 1})
            model(torch.zeros(9, 2))
    with after.watching(model):
        assert SavedState(tmp_path / "outer.safetensors", after).load() == ({}, {"step": 1})
        assert images(after) == (5, 5, 0, 0)
        SavedState(tmp_path / "inner.safetensors", after).load()
        assert images(after) == (5, 5, 7, 7), "what came after the last state is done again"
