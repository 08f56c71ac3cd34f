"""The offline phase without sockets: what the dealer and the client each give the server for one bundle.

For a linear layer with client share r of its input, s_l = W_l * r - p_l, where W_l = A_l + D_l:

- dealer -> server: a_l = A_l * r - g_l, uniform to the server by g_l;
- client -> server: b_l = D_l * r + g_l - p_l, uniform to the server by p_l.

The server adds them. Neither the dealer (who has A, uniform without D) nor the client (who has D) learns W. For a gate
the dealer gives the server its half of the tables and q = (r + alpha) mod 2**n.

What this file computes is the same for any provider of bundles that keeps the client's pads seed-derived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pi_runtime.net.wire import Sendable
from pi_runtime.preset.bundle import gate_padding, layout_of, part_bytes
from pi_runtime.preset.linear_ops import Weight, Weights, broadcast_bias, multiply, weight_shape
from pi_runtime.preset.program import Program, Step
from pi_runtime.preset.shares import BundlePads, kept_elements, walk_client_shares
from pi_runtime.primitives.prg import Label, Seed, Stream
from pi_runtime.primitives.relu_gate import gate_deal
from pi_runtime.primitives.ring import I64

Pad = Mapping[str, I64]
PackedPad = Mapping[str, Weight]
"""A pad of the weights, by the name of the step; packed where it serves many bundles."""


@dataclass(frozen=True, eq=False)
class Delivery:
    """What the server gets of one step, in pieces that come one by one; the kind of the message follows from the step.

    nbytes: of all pieces together.
    """

    step: Step
    nbytes: int
    pieces: Iterable[Sendable] = field(repr=False)


def expand_weight_pads(program: Program, seed: Seed, graph_hash: bytes, model_id: bytes) -> dict[str, I64]:
    """D_l of every linear step: uniform int64 in the shape of its weight, from the seed of the model."""
    return {step.name: expand_weight_pad(step, seed, graph_hash, model_id) for step in program.linear_steps}


def dealer_pads(program: Program, weights: Weights, client_pads: Pad) -> dict[str, I64]:
    """A_l = W_l - D_l of every linear step: what the server sends the dealer once a model."""
    return {step.name: weights[step.name][0] - client_pads[step.name] for step in program.linear_steps}


def deal(
    program: Program, dealer_weight_pads: PackedPad, pads: BundlePads, dealer: Stream, threads: int = 1
) -> Iterator[Delivery]:
    """The dealer's deliveries to the server, in the order of the steps; take each one's pieces before the next.

    dealer: the dealer's own generator, which the client can never expand: it gives alpha and the opening masks.
    """
    for walked in walk_client_shares(program, pads):
        step, share = walked.step, walked.shares_in[0]
        if step.kind == "linear":
            part = multiply(step, dealer_weight_pads[step.name], share, threads) - pads.linear_blind(step)
            yield _linear_delivery(step, part)
        elif step.kind == "gate":
            pieces = _gate_pieces(step, kept_elements(step, share), pads, dealer)
            yield Delivery(step, part_bytes(step, pads.batch), pieces)


def client_deliveries(
    program: Program, client_weight_pads: PackedPad, pads: BundlePads, threads: int = 1
) -> Iterator[Delivery]:
    """The client's deliveries to the server: b_l of each linear step in order."""
    for walked in walk_client_shares(program, pads):
        step = walked.step
        if step.kind == "linear":
            assert walked.pad is not None
            product = multiply(step, client_weight_pads[step.name], walked.shares_in[0], threads)
            yield _linear_delivery(step, product + pads.linear_blind(step) - walked.pad)


def server_share(step: Step, weights: Weights, from_dealer: I64, from_client: I64) -> I64:
    """s_l with the bias and the rounding of its truncation folded in: int64 [B, *shape]."""
    rounding = np.int64((1 << step.shift) - 1 if step.shift else 0)
    return from_dealer + from_client + broadcast_bias(step, weights[step.name][1]) + rounding


def expand_weight_pad(step: Step, seed: Seed, graph_hash: bytes, model_id: bytes) -> I64:
    """D_l of one linear step: uniform int64 in the shape of its weight, from the seed of the model."""
    label = Label(
        bundle_id=model_id, graph_hash=graph_hash, role="server", image=0, layer=step.name, purpose="weight pad"
    )
    return seed.stream(label).words(*weight_shape(step)).view(np.int64)


def _linear_delivery(step: Step, part: I64) -> Delivery:
    return Delivery(step, part.nbytes, (part.astype("<i8", copy=False),))


def _gate_pieces(step: Step, kept: I64, pads: BundlePads, dealer: Stream) -> Iterator[Sendable]:
    for image, share in enumerate(kept):
        yield from gate_deal(layout_of(step), share, pads.gate_stream(step, image), dealer)
        yield gate_padding(step)
