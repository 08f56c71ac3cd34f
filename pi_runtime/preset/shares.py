"""The client's share of every wire: fixed before the input is known, expanded from the bundle's seed.

Client and dealer walk the same program over the same pads. A derived share masks nothing: what is sent is always masked
by a pad of its own (PROTOCOL.md, the lemma).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pi_runtime.graph import Shape
from pi_runtime.preset.program import Program, Step
from pi_runtime.preset.public_ops import apply_public, truncate
from pi_runtime.primitives.prg import Label, Seed, Stream
from pi_runtime.primitives.ring import I64


class Pads(Protocol):
    """Where the client's uniform pads come from; each is asked for once."""

    @property
    def batch(self) -> int:
        """Images."""

    def input(self, shape: Shape) -> I64:
        """r_0: the share of the input wire, int64 [B, *shape]."""

    def linear(self, step: Step) -> I64:
        """p: the share of a linear layer's output before truncation, int64 [B, *shape]."""

    def gate(self, step: Step) -> I64:
        """rho: the share of the kept elements' outputs, int64 [B, gates]."""


@dataclass(frozen=True)
class BundlePads:
    """The pads of one bundle: a stream of its own for each image, layer and purpose, all keyed by the seed."""

    seed: Seed
    bundle_id: bytes
    graph_hash: bytes
    batch: int

    def input(self, shape: Shape) -> I64:
        return self._words("", "r_0", shape)

    def linear(self, step: Step) -> I64:
        return self._words(step.name, "p", step.node.shape)

    def linear_blind(self, step: Step) -> I64:
        """g: blinds the dealer's and the client's parts of ``W * r - p`` against the server, int64 [B, *shape]."""
        return self._words(step.name, "g", step.node.shape)

    def gate(self, step: Step) -> I64:
        return self._words(step.name, "rho", (step.gate_count,))

    def gate_stream(self, step: Step, image: int) -> Stream:
        """The stream of the client's half of a layer's gates."""
        return self._stream(step.name, "gate", image)

    def _words(self, layer: str, purpose: str, shape: Shape) -> I64:
        images = [self._stream(layer, purpose, image).words(*shape) for image in range(self.batch)]
        return np.stack(images).view(np.int64)

    def _stream(self, layer: str, purpose: str, image: int) -> Stream:
        label = Label(
            bundle_id=self.bundle_id,
            graph_hash=self.graph_hash,
            role="client",
            image=image,
            layer=layer,
            purpose=purpose,
        )
        return self.seed.stream(label)


@dataclass(frozen=True, eq=False, repr=False)
class WalkedStep:
    """A step with the client's shares around it.

    shares_in: of its inputs; share_out: of its output, which for a gate holds rho at the kept elements.
    pad: p of a linear step, rho of a gate, None otherwise.
    """

    step: Step
    shares_in: tuple[I64, ...]
    share_out: I64
    pad: I64 | None


def walk_client_shares(program: Program, pads: Pads) -> Iterator[WalkedStep]:
    """Yields every step in order; wires are forgotten after their last use. The last step's output is the logits'."""
    wires = {program.input: pads.input(program.input_shape)}
    for step in program.steps:
        inputs = tuple(wires[wire] for wire in step.node.inputs)
        pad: I64 | None = None
        if step.kind == "linear":
            pad = pads.linear(step)
            out = truncate(pad, step.shift, constants=False)
        elif step.kind == "gate":
            pad = pads.gate(step)
            out = replace_kept(step, inputs[0], pad)
        else:
            out = apply_public(step, inputs, constants=False)
        wires[step.node.output] = out
        yield WalkedStep(step, inputs, out, pad)
        for wire in set(step.node.inputs):
            if program.last_use[wire] == step.index:
                del wires[wire]


def kept_elements(step: Step, wire: I64) -> I64:
    """The kept elements of a gate's input, int64 [B, gates]."""
    assert step.node.kept is not None
    picked: I64 = wire.reshape(len(wire), -1).take(step.node.kept, axis=1)
    return picked


def replace_kept(step: Step, wire: I64, values: I64) -> I64:
    """A copy of ``wire`` with the kept elements replaced by ``values`` [B, gates]."""
    assert step.node.kept is not None
    out = wire.copy().reshape(len(wire), -1)
    out[:, step.node.kept] = values
    return out.reshape(wire.shape)
