"""Networks at several budgets: which file each gets, what its mask is called, and that its numbers fit it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pi_runtime import budgets as budgets_module
from pi_runtime.budgets import at_budgets, parse_budgets
from pi_runtime.errors import ConfigError, ExportError
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.plan import KEY, plan_of

TOTAL = 6 * 8 * 8 + 2 * 8 * 4 * 4
IMAGES = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def network(make_net, tmp_path):
    export_onnx(make_net(1.0), (1, 8, 8), tmp_path / "full.onnx", metadata={"name": "small"})
    return tmp_path / "full.onnx"


@pytest.fixture
def trained(make_net, tmp_path):
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "model.onnx", metadata={"name": "small"})
    return tmp_path / "model.onnx"


def files_of(network, budgets, directory, **changes):
    return at_budgets(network, budgets, **({"images": IMAGES, "directory": directory, "seed": 1} | changes))


def test_each_budget_has_its_count_and_says_how_its_mask_came_about(network, trained, tmp_path):
    count = load_onnx(trained).relu_count
    found = files_of(network, (37, "full", "trained", count, TOTAL), tmp_path / "made", trained=trained)
    assert [(file.name, file.mask, load_onnx(file.path).relu_count) for file in found] == [
        ("37", "random", 37),
        ("full", "all", TOTAL),
        ("linearized", "trained", count),
        (str(count), "trained", count),
        (str(TOTAL), "all", TOTAL),
    ]


def test_every_file_is_calibrated_for_its_own_mask(network, tmp_path):
    plans = [plan_of(load_onnx(file.path)) for file in files_of(network, (37, 200, "full"), tmp_path / "made")]
    layers = {node.name for node in load_onnx(network).relu_layers}
    assert set(plans[2].gate_ring_bits) == layers
    assert len({json.dumps(plan.to_metadata(), sort_keys=True) for plan in plans}) > 1


def test_a_file_that_has_its_numbers_is_taken_as_it_is(network, tmp_path):
    (full,) = files_of(network, ("full",), tmp_path / "made")
    assert KEY in load_onnx(full.path).metadata
    again = files_of(full.path, ("full", 37), tmp_path / "again")
    assert [file.path for file in again] == [full.path, tmp_path / "again" / "37.onnx"]
    assert plan_of(load_onnx(again[1].path)) != plan_of(load_onnx(full.path)), "not the numbers of another mask"


def test_the_same_arguments_make_the_same_bytes(network, tmp_path):
    first, second = (files_of(network, (37,), tmp_path / name)[0].path for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_what_was_made_is_taken_again_unless_it_or_its_inputs_changed(network, tmp_path, monkeypatch):
    calibrated = []
    real = budgets_module.calibrate
    monkeypatch.setattr(budgets_module, "calibrate", lambda *args: (calibrated.append(1), real(*args))[1])
    (made,) = files_of(network, (37,), tmp_path / "made")
    before = made.path.read_bytes()
    files_of(network, (37,), tmp_path / "made")
    assert len(calibrated) == 1
    made.path.write_bytes(before[:-9])
    files_of(network, (37,), tmp_path / "made")
    assert made.path.read_bytes() == before
    files_of(network, (37,), tmp_path / "made", seed=2)
    files_of(network, (37,), tmp_path / "made", images=IMAGES * 2)
    assert len(calibrated) == 4


def test_progress_counts_the_budgets(network, tmp_path):
    told = []
    files_of(network, (37, "full"), tmp_path / "made", progress=lambda *step: told.append(step))
    assert told == [("full: budgets", done, 2) for done in (0, 1, 2)]


def test_what_a_file_tells_of_its_mask_is_believed(network, trained, tmp_path):
    (random,) = files_of(network, (37,), tmp_path / "made")
    assert files_of(random.path, ("full",), tmp_path / "again")[0].mask == "random"
    assert files_of(trained, ("full",), tmp_path / "again")[0].mask == "given"


def test_a_network_that_lost_relus_takes_no_other_budget(trained, tmp_path):
    with pytest.raises(ExportError, match="needs a network with all its ReLUs"):
        files_of(trained, (37,), tmp_path / "made")


def test_a_trained_mask_must_be_there(network, tmp_path):
    with pytest.raises(ConfigError, match="comes without a trained mask"):
        files_of(network, ("trained",), tmp_path / "made")


def test_budgets_are_read_in_their_order_each_once():
    assert parse_budgets("6000, full,15000,6000,trained,") == (6000, "full", 15000, "trained")


@pytest.mark.parametrize("text", ["6k", "-5", "1.5", "all", "٣"])
def test_what_is_no_budget_is_named(text):
    with pytest.raises(ConfigError, match=f"must be a count of ReLUs, full or trained, got '{text}'"):
        parse_budgets(f"full,{text}")


@pytest.mark.parametrize("text", ["", ",", " "])
def test_no_budget_is_one_line(text):
    with pytest.raises(ConfigError, match="--budgets names no budget"):
        parse_budgets(text)
