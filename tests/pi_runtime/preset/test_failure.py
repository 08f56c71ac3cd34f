"""The predicted rate of failed truncations: against counts over every pad of small rings, and counts made by hand.

A ring of n bits lies in the top n bits of the 64: an element x stands as x << (64 - n), and a shift by s as one by
64 - n + s, so that the code under test truncates in Z_2^n.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from torch import nn

from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.failure import can_be_seen, failure_rate, truncating_steps, wrapping_pads
from pi_runtime.preset.plan import FixedPointPlan, with_plan
from pi_runtime.preset.program import Step, compile_program
from pi_runtime.preset.public_ops import truncate


def elements(bits):
    """All elements of a ring, as signed numbers."""
    return np.arange(-(1 << (bits - 1)), 1 << (bits - 1))


def failing(value, shares, shift, bits):
    """The client's shares under which the truncation of ``value`` is not value / 2**shift rounded up or down."""
    up, whole = np.int64(64 - bits), 64 - bits + shift
    rest = (np.int64(value) - shares) << up
    out = truncate(rest, whole, constants=True) + truncate(shares << up, whole, constants=False)
    return (out != value >> shift) & (out != -(-value >> shift))


def truncating(kind, shift):
    """As much of a step as counting looks at."""
    return Step(index=0, kind=kind, node=None, frac_bits=0, left_shifts=(0,), shift=shift)


@pytest.mark.parametrize("shift", [1, 2, 5, 8])
def test_every_pad_of_a_ring_of_twelve_bits_fails_where_the_formula_says(shift):
    bits, up = 12, 52
    pads = elements(bits)
    counts = {int(value): int(failing(value, pads, shift, bits).sum()) for value in elements(bits)}
    assert counts == {value: abs(value + (1 << shift)) for value in counts}
    step = truncating("linear", up + shift)
    for value, count in counts.items():
        assert wrapping_pads(step, np.array([value << up])) / 2.0**64 == count / 2.0**bits


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_no_pool_of_two_pads_on_a_ring_of_eight_bits_fails_more_often_than_counted(shift):
    bits, half = 8, 128
    pads = elements(bits)
    values = range(-30, 31, 6)
    worst = 0.0
    for first, second, a, b in itertools.product(range(4), range(4), range(6), range(1, 6)):
        sums = (a * (pads >> first))[:, None] + (b * (pads >> second))[None, :]
        shares, times = np.unique((sums + half) % (2 * half) - half, return_counts=True)
        granule = (a | b) & -(a | b)
        for value in values:
            rate = times[failing(value, shares, shift, bits)].sum() / sums.size
            counted = wrapping_pads(truncating("public", shift), np.array([value])) / 2.0**bits
            assert rate <= counted + 2 * granule / 2.0**bits
            worst = max(worst, rate / counted) if granule == 1 and counted else worst
    assert worst > 0.5  # some of these shares wrap more often than uniform ones: the factor is needed


class PoolsBetween(nn.Module):
    """Pools by 4 and by 9 in front of ReLUs, which truncate, and one by 4 in front of a dense layer, which need not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.four = nn.AvgPool2d(2)
        self.nine = nn.AvgPool2d(3, padding=1, stride=3)
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        x = self.four(self.conv(x)).relu()
        x = self.nine(x).relu()
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_pools_that_truncate_are_counted_and_others_are_not(tmp_path):
    export_onnx(PoolsBetween(), (1, 12, 12), tmp_path / "m.onnx")
    plan = FixedPointPlan(ring_bits=32, logit_ring_bits=32, frac_bits=20, weight_frac_bits=14, zero_bits=0)
    program = compile_program(with_plan(load_onnx(tmp_path / "m.onnx"), plan))
    shifts = {step.node.op + str(step.node.shape): step.shift for step in truncating_steps(program)}
    # The last pool, of 2x2, hands its two more fraction bits on to the dense layer.
    assert shifts == {"conv(2, 12, 12)": 14, "avg_pool(2, 6, 6)": 2, "avg_pool(2, 2, 2)": 12, "linear(3,)": 16}
    # By hand: each relu keeps all and reads 32 bits, which shifts of 14 + 2 bits leave untouched, and of 12.
    assert not any(can_be_seen(program, step) for step in truncating_steps(program))


def test_a_pool_is_seen_at_a_gate_that_reads_what_its_wrap_changes(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(3), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    model = nn.Sequential(*model, nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    export_onnx(model, (1, 6, 6), tmp_path / "m.onnx")
    plan = FixedPointPlan(ring_bits=29, frac_bits=12, weight_frac_bits=12, zero_bits=0)
    graph = with_plan(load_onnx(tmp_path / "m.onnx"), plan)
    program = compile_program(graph)
    seen = [(step.node.op, can_be_seen(program, step)) for step in truncating_steps(program)]
    # By hand, bits of shift at the gate of 29 bits, which sees more than 35: conv 12 + 24 (the pool, read by a
    # convolution alone, hands its 12 bits on to that) + 12 = 48; the second convolution 24 + 12 = 36; the third 12.
    assert seen == [("conv", True), ("conv", True), ("conv", False), ("linear", False)]
    alone = dict.fromkeys((step.index for step in truncating_steps(program)), 2.0**30)
    assert failure_rate(program, alone) == 2 * 2.0**-34


# By hand, 12 bits a truncation, gates of 24 bits (see errors above 40 bits of shifts), logits of 32 (above 32):
# stem 12, conv1 24, conv2 36, norm2 48 at relu3: seen. conv1 is at 36 there and at 48 at the logits; conv2 and the
# shortcut are at 36 at the logits; norm2 is at 24 and fc at 12. A relu3 that keeps all ends what it does not see.
@pytest.mark.parametrize(
    ("whole_last_layer", "seen"), [(False, {"stem", "conv1", "conv2", "shortcut"}), (True, {"stem"})]
)
def test_failure_rate_counts_what_can_be_seen(make_net, tmp_path, whole_last_layer, seen):
    model = make_net(0.4)
    if whole_last_layer:
        model.relu3.relu_mask.fill_(1)
    export_onnx(model, (1, 8, 8), tmp_path / "m.onnx")
    program = compile_program(with_plan(load_onnx(tmp_path / "m.onnx"), FixedPointPlan(ring_bits=24, zero_bits=0)))
    for step in program.linear_steps:
        alone = {other.index: 2.0**30 * (other is step) for other in program.linear_steps}
        assert failure_rate(program, alone) == (2.0**-34 if step.name in seen else 0.0), step.name
