"""The accuracy that the simulator promises: against the secure run bit by bit, and against onnxruntime."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from in_memory import secure
from sklearn.datasets import load_digits
from torch import nn

from pi_runtime.errors import ConfigError
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset import precision
from pi_runtime.preset.calibrate import calibrate, calibration_choice
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.plan import with_plan
from pi_runtime.preset.precision import choose_subject, fill_table
from pi_runtime.preset.precision_table import Measured, Refused, read_table, write_csv, write_figure
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.simulator import RandomPads, simulate


def digits():
    """Normalised float32 [1797, 1, 8, 8] and labels; the first 1,437 to train on."""
    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    return (images - images.mean()) / images.std(), data.target.astype(np.int64)


@pytest.fixture
def trained(make_net, tmp_path):
    """The small residual network with four of ten ReLUs kept, trained on the digits and calibrated: (graph, file)."""
    images, labels = digits()
    model = make_net(0.4, classes=10).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in torch.randperm(1437, generator=order).split(64):
            loss = nn.functional.cross_entropy(model(torch.from_numpy(images)[batch]), torch.from_numpy(labels)[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    export_onnx(model.eval(), (1, 8, 8), tmp_path / "m.onnx")
    graph = load_onnx(tmp_path / "m.onnx")
    return with_plan(graph, calibrate(graph, images[calibration_choice(1437, 64)]).plan), tmp_path / "m.onnx"


def plaintext(path, images):
    return onnxruntime.InferenceSession(str(path)).run(None, {"input": images})[0]


def test_secure_logits_are_the_simulators_on_200_images_and_it_answers_as_plaintext_on_1000(trained):
    graph, path = trained
    images, labels = digits()
    program = compile_program(graph)
    weights = quantise(program)
    start = 0
    for batch in (64, 7, 64, 1, 64):  # 200 images
        part = images[start : start + batch]
        logits, _, pads = secure(graph, part, batch)
        assert np.array_equal(logits, simulate(program, weights, part, pads).logits)
        start += batch
    assert start == 200
    # The 360 test images and 640 of the training images: the digits have no thousand to test on.
    thousand = images[-1000:]
    simulated = simulate(program, weights, thousand, RandomPads(1000, np.random.default_rng(0))).logits
    plain = plaintext(path, thousand)
    assert np.mean(plain.argmax(1) == labels[-1000:]) > 0.9  # the network tells digits apart
    assert np.mean(simulated.argmax(1) == plain.argmax(1)) >= 0.995


@pytest.fixture
def subject(make_net, tmp_path):
    """Fifty test images of values up to fifty and 128 to calibrate on, for the small network with random weights."""
    facts = {"name": "small", "dataset": "noise", "mean": [0.5], "std": [0.01]}
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "m.onnx", metadata=facts)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 4, 100)
    return choose_subject(
        tmp_path / "m.onnx", training=pixels[:300], test=pixels[300:], labels=labels, count=50, seed=1
    )


def test_rows_say_what_simulation_and_onnxruntime_say(subject, tmp_path):
    table = fill_table(subject, [8, 16], tmp_path / "p.json")
    plain = plaintext(tmp_path / "m.onnx", subject.images)
    assert table.plaintext_accuracy == np.mean(plain.argmax(1) == subject.labels)
    assert (table.images, table.calibration_images, table.model.name) == (50, 128, "small")
    for row, bits in zip(table.rows, (8, 16), strict=True):
        found = calibrate(subject.graph, subject.calibration, frac_bits=bits, seed=1)
        program = compile_program(with_plan(subject.graph, found.plan))
        logits = simulate(program, quantise(program), subject.images, RandomPads(50, np.random.default_rng(9))).logits
        assert isinstance(row, Measured)
        assert row.frac_bits == bits
        # Other coins of the same noise: as large within a factor.
        assert row.rms_logit_error == pytest.approx(np.sqrt(np.mean((logits - plain) ** 2)), rel=0.3)
        assert row.rms_logit_error < row.max_abs_logit_error < 10 * row.rms_logit_error
        assert row.agreement_with_plaintext >= 0.9
        rings = found.plan.gate_ring_bits.values()
        assert (row.ring_bits_min, row.ring_bits_max) == (min(rings), max(rings))
        assert row.failure_rate == found.failure_rate
        assert row.wrapped_elements == 0
    assert table.rows[0].rms_logit_error > 50 * table.rows[1].rms_logit_error  # eight bits are a factor of 256
    assert read_table(tmp_path / "p.json") == table


def test_a_scale_that_is_refused_and_images_out_of_range_give_a_row_that_says_why(subject, tmp_path):
    (refused,) = fill_table(subject, [22], tmp_path / "p.json").rows
    assert isinstance(refused, Refused)
    assert "failed truncations an image, more than 0.0001" in refused.reason
    subject.images[7, 0, 0, 0] = 1000.0
    (refused,) = fill_table(subject, [12], tmp_path / "q.json").rows
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("image 8 of 50 holds values up to 1000")


def test_elements_outside_their_ring_are_counted(subject, monkeypatch):
    narrow = calibrate(subject.graph, subject.calibration / 64).plan
    program = compile_program(with_plan(subject.graph, narrow))
    monkeypatch.setattr(precision, "_calibrated", lambda subject, bits: (program, 0.0))
    monkeypatch.setattr(precision, "check_images", lambda images, program: None)
    row = precision.measure(subject, 12, "calibrated", lambda images: None)
    by_hand = simulate(program, quantise(program), subject.images, RandomPads(50, np.random.default_rng([1, 12])))
    assert isinstance(row, Measured)
    assert row.wrapped_elements > 100
    # Batches draw their pads in another order than one call for all, and an element at the very edge may differ.
    assert row.wrapped_elements == pytest.approx(sum(by_hand.wrapped.values()), rel=0.05)


def test_the_carried_plan_is_measured_and_refused_where_these_images_predict_too_much(subject, tmp_path):
    carried = with_plan(subject.graph, calibrate(subject.graph, subject.calibration, frac_bits=10).plan)
    (row,) = fill_table(replace(subject, graph=carried), None, tmp_path / "p.json").rows
    assert (row.status, row.plan, row.frac_bits) == ("measured", "carried", 10)
    wide = calibrate(subject.graph, subject.calibration, frac_bits=16).plan
    careless = replace(wide, weight_frac_bits=24, layer_weight_frac_bits={}, failure_rate=None)
    (row,) = fill_table(replace(subject, graph=with_plan(subject.graph, careless)), None, tmp_path / "q.json").rows
    assert isinstance(row, Refused)
    assert "the plan of the graph predicts" in row.reason


def test_rows_are_kept_for_the_same_inputs_and_no_others(subject, tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    first = fill_table(subject, [10], path)
    measured = []

    def measure(subject, bits, origin, advance):
        measured.append(bits)
        return Refused(frac_bits=bits, plan=origin, reason="not measured here")

    monkeypatch.setattr(precision, "measure", measure)
    second = fill_table(subject, [8, 10], path)
    assert measured == [8]
    assert second.rows[1] == first.rows[0]
    assert len(fill_table(replace(subject, fingerprint="0" * 64), [10], path).rows) == 1
    assert measured == [8, 10]


def test_other_images_weights_or_seeds_have_another_fingerprint(make_net, tmp_path):
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "a.onnx")
    export_onnx(make_net(0.4, seed=1), (1, 8, 8), tmp_path / "b.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    usual = {"training": pixels[:20], "test": pixels[20:], "labels": np.zeros(20, np.int64), "count": 10, "seed": 0}

    def fingerprint(model="a", **changed):
        return choose_subject(tmp_path / f"{model}.onnx", **usual | changed).fingerprint

    others = [
        fingerprint("b"),
        fingerprint(training=pixels[1:21]),
        fingerprint(test=pixels[:20]),
        fingerprint(labels=np.ones(20, np.int64)),
        fingerprint(count=11),
        fingerprint(seed=1),
    ]
    assert len({fingerprint(), *others}) == 7
    assert fingerprint() == fingerprint()


def test_images_of_another_size_are_refused(make_net, tmp_path):
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "m.onnx")
    pixels = np.zeros((4, 1, 9, 9), np.uint8)
    with pytest.raises(ConfigError, match=r"takes images of \(1, 8, 8\), the training images are \(1, 9, 9\)"):
        choose_subject(tmp_path / "m.onnx", training=pixels, test=pixels, labels=np.zeros(4), count=4, seed=0)


def test_csv_and_figure_hold_the_rows(subject, tmp_path):
    table = fill_table(subject, [8, 22], tmp_path / "p.json")
    write_csv(table, tmp_path / "p.csv")
    write_figure(table, tmp_path / "p.png")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["measured", "refused"]
    assert float(rows[0]["rms_logit_error"]) == table.rows[0].rms_logit_error
    assert (rows[1]["accuracy"], rows[1]["reason"]) == ("", table.rows[1].reason)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.update(schema=2),
        lambda document: document.update(extra=1),
        lambda document: document["rows"][0].update(accuracy=1.5),
        lambda document: document["rows"][0].pop("plan"),
        lambda document: document.update(fingerprint="short"),
    ],
)
def test_a_damaged_table_is_refused(subject, tmp_path, spoil):
    path = tmp_path / "p.json"
    fill_table(subject, [8], path)
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"p\.json is no precision table \(.*\); remove it and simulate again"):
        fill_table(subject, [8], path)
