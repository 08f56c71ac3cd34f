"""Compiles and loads what a party will run, before its first client waits for it."""

from __future__ import annotations

import numpy as np

from pi_runtime.preset.bundle import layout_of
from pi_runtime.preset.online import Product
from pi_runtime.preset.program import Program
from pi_runtime.primitives.prg import Stream
from pi_runtime.primitives.relu_gate import gate_deal, gate_expand, gate_finish, gate_load, gate_open
from pi_runtime.primitives.ring import pack, unpack


def warm_up(program: Program, product: Product | None = None) -> None:
    """Runs one gate of each layout and, where ``product`` is given, each linear step once, on zeros."""
    for layout in {layout_of(step) for step in program.gate_steps}:
        pieces = gate_deal(layout, np.zeros(1, np.uint64), Stream.from_system(), Stream.from_system())
        ours = gate_load(layout, 1, b"".join(piece.tobytes() for piece in pieces))
        for material in (ours, gate_expand(layout, 1, Stream.from_system())):
            xhat = unpack(pack(np.zeros(1, np.uint64), layout.ring_bits), 1, layout.ring_bits)
            gate_finish(material, xhat, gate_open(material, xhat))
    if product is not None:
        for step in program.linear_steps:
            product(step, np.zeros((1, *program.shape(step.node.inputs[0])), np.int64))
