"""The server's part of a bundle: what is stored for one inference, and where each step's part lies.

Layout, little endian, no header: the parts of the steps in order, each at a multiple of 64 bytes. A linear step has
its offline share s_l, int64 [B, *shape]; a gate step has the material of its B images one after the other
(:func:`pi_runtime.primitives.relu_gate.gate_deal`), each at a multiple of 8. Offsets follow from the public
program and the batch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pi_runtime.preset.program import Program, Step
from pi_runtime.primitives.relu_gate import GateLayout, GateMaterial, gate_layout, gate_load, join_gates
from pi_runtime.primitives.ring import I64

ALIGNMENT = 64  # a cache line
DEFAULT_MAX_BUNDLE_BYTES = 16 << 30
"""The largest bundle that server and dealer make for a client: what a batch may cost them in disk and work."""


@dataclass(frozen=True)
class Part:
    """Where the material of one step lies; ``size`` in bytes without padding."""

    offset: int
    size: int


@dataclass(frozen=True)
class BundleLayout:
    """Sizes and offsets of the server's material for ``batch`` images."""

    program: Program
    batch: int

    @cached_property
    def parts(self) -> dict[int, Part]:
        """By the index of the step; steps without material have none."""
        parts: dict[int, Part] = {}
        offset = 0
        for step in self.program.steps:
            if size := part_bytes(step, self.batch):
                parts[step.index] = Part(offset, size)
                offset = _aligned(offset + size, ALIGNMENT)
        return parts

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole material."""
        last = max(self.parts.values(), key=lambda part: part.offset, default=Part(0, 0))
        return _aligned(last.offset + last.size, ALIGNMENT)


def part_bytes(step: Step, batch: int) -> int:
    """Bytes of one step's material; 0 where it needs none."""
    if step.kind == "linear":
        return 8 * batch * step.size
    if step.kind == "gate":
        return batch * _aligned(layout_of(step).material_bytes(step.gate_count), 8)
    return 0


def layout_of(step: Step) -> GateLayout:
    """The gate layout of a gate step."""
    return gate_layout(step.ring_bits)


def gate_padding(step: Step) -> bytes:
    """What follows the material of each image, so that the next begins at a multiple of 8."""
    exact = layout_of(step).material_bytes(step.gate_count)
    return bytes(_aligned(exact, 8) - exact)


def load_gate_part(step: Step, batch: int, data: memoryview) -> GateMaterial:
    """The material of a batch, as one, from the bytes of its part.

    Raises:
        RemoteProtocolError: damaged material.
    """
    layout = layout_of(step)
    exact, size = layout.material_bytes(step.gate_count), len(data) // batch
    starts = range(0, batch * size, size)
    return join_gates([gate_load(layout, step.gate_count, data[start : start + exact]) for start in starts])


def load_linear_part(step: Step, batch: int, data: memoryview) -> I64:
    """The offline share s_l of a linear step, int64 [B, *shape]."""
    share: I64 = np.frombuffer(data, "<i8").reshape(batch, *step.node.shape)
    return share


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
