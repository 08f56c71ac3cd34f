"""The online phase without sockets: the server's walk and the client's answers.

Messages, for B images (all little endian; ``k`` gates a layer and image, ``n`` its ring bits, ``o`` its opened bits):

- input, client -> server: x - r_0, int64 [B, C, H, W]. Uniform to the server by r_0.
- opening of a layer, server -> client: xhat = (m + q) mod 2**n, n bits each, then the server's shares of the opened
  bits, o bits each. Uniform to the client by alpha and by the mask bits.
- answer, client -> server: y_c - rho, 8 bytes each, then the client's shares of the opened bits. Uniform to the server
  by rho and by its half of the tables.
- logits, server -> client: its share mod 2**logit_ring_bits, packed. The logits minus a share that the client knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import LocalProtocolError
from pi_runtime.preset.bundle import layout_of
from pi_runtime.preset.program import Program, Step
from pi_runtime.preset.public_ops import apply_public
from pi_runtime.preset.shares import BundlePads, kept_elements, replace_kept, walk_client_shares
from pi_runtime.primitives.relu_gate import GateMaterial, gate_expand, gate_finish, gate_open, join_gates
from pi_runtime.primitives.ring import (
    I64,
    add_then_truncate,
    decode,
    encode,
    pack,
    packed_bytes,
    signed_low_bits,
    unpack,
)

Bytes = bytes | bytearray | memoryview
Product = Callable[[Step, I64], I64]
"""The server's ``W * m`` of a linear step, exact mod 2^64."""


@dataclass(frozen=True)
class OpeningSizes:
    """Bytes of a gate layer's two messages, framing apart."""

    xhat: int
    bits: int
    outputs: int

    @property
    def opening(self) -> int:
        return self.xhat + self.bits

    @property
    def answer(self) -> int:
        return self.outputs + self.bits


@lru_cache(maxsize=1024)
def opening_sizes(step: Step, batch: int) -> OpeningSizes:
    """The sizes for ``batch`` images."""
    layout, count = layout_of(step), batch * step.gate_count
    return OpeningSizes(packed_bytes(count, layout.ring_bits), packed_bytes(count, layout.opened_bits), 8 * count)


def input_bytes(program: Program, batch: int) -> int:
    """Bytes of the input message."""
    return 8 * batch * int(np.prod(program.input_shape))


def logit_bytes(program: Program, batch: int) -> int:
    """Bytes of the logits' message."""
    return packed_bytes(batch * program.classes, program.plan.logit_ring_bits)


@dataclass(frozen=True)
class ServerMaterial:
    """What the server holds of one bundle.

    shares: s_l by linear step (bias and rounding folded in); gates: by gate step, the material of all images.
    """

    share: Callable[[Step], I64]
    gates: Callable[[Step], GateMaterial]


def run_server(
    program: Program,
    product: Product,
    material: ServerMaterial,
    masked_input: I64,
    exchange: Callable[[Step, bytes], Bytes],
    watch: Callable[[Step], object] | None = None,
) -> bytes:
    """The server's online phase over one bundle.

    Args:
        product: multiplies by the weights.
        masked_input: x - r_0, int64 [B, C, H, W].
        exchange: sends the opening of a gate layer and returns the client's answer, of ``opening_sizes`` bytes.
        watch: called after each step.

    Returns:
        The payload of the logits' message.

    Raises:
        LocalProtocolError: material that was used before.
        RemoteProtocolError: an answer that is no answer.
    """
    wires = {program.input: masked_input}
    for step in program.steps:
        inputs = [wires[wire] for wire in step.node.inputs]
        if step.kind == "linear":
            out = product(step, inputs[0])
            add_then_truncate(out, material.share(step), step.shift)
        elif step.kind == "gate":
            out = replace_kept(step, inputs[0], _server_gate(step, inputs[0], material.gates(step), exchange))
        else:
            out = apply_public(step, inputs, constants=True)
        wires[step.node.output] = out
        for wire in set(step.node.inputs):
            if program.last_use[wire] == step.index:
                del wires[wire]
        if watch is not None:
            watch(step)
    return pack(wires[program.output], program.plan.logit_ring_bits).tobytes()


def _server_gate(step: Step, wire: I64, material: GateMaterial, exchange: Callable[[Step, bytes], Bytes]) -> I64:
    layout, sizes = layout_of(step), opening_sizes(step, len(wire))
    xhat = material.mask_input(kept_elements(step, wire).reshape(-1))
    own = gate_open(material, xhat)
    answer = memoryview(exchange(step, _joined(pack(xhat, layout.ring_bits), pack(own, layout.opened_bits))))
    theirs = unpack(answer[sizes.outputs :], xhat.size, layout.opened_bits).astype(np.uint8)
    share: I64 = gate_finish(material, xhat, own ^ theirs).view(np.int64)
    share += np.frombuffer(answer[: sizes.outputs], "<i8")
    return share.reshape(len(wire), -1)


class ClientInference:
    """The client's side of one bundle: everything but the input is expanded beforehand, and each part is used once."""

    def __init__(self, program: Program, pads: BundlePads) -> None:
        self._program = program
        self._batch = pads.batch
        self._input_pad: I64 | None = pads.input(program.input_shape)
        self._rho: dict[int, I64] = {}
        self._gates: dict[int, GateMaterial] = {}
        for walked in walk_client_shares(program, pads):
            step = walked.step
            if step.kind == "gate":
                assert walked.pad is not None
                self._rho[step.index] = walked.pad
                streams = [pads.gate_stream(step, image) for image in range(pads.batch)]
                self._gates[step.index] = join_gates(
                    [gate_expand(layout_of(step), step.gate_count, stream) for stream in streams]
                )
            share = walked.share_out
        self._logit_share = share.reshape(pads.batch, -1)

    def __repr__(self) -> str:
        return f"ClientInference(batch={self._batch}, <secret>)"

    def mask_input(self, images: npt.NDArray[np.floating]) -> bytes:
        """The payload of the input message for ``images`` [B, C, H, W], normalised.

        Raises:
            LocalProtocolError: a second call, another shape, or values that the fixed point cannot hold.
        """
        if images.shape != (self._batch, *self._program.input_shape):
            raise LocalProtocolError(
                f"images must be {(self._batch, *self._program.input_shape)}, got {images.shape}; prepare such a bundle"
            )
        encoded = encode(images, self._program.plan.frac_bits)
        pad, self._input_pad = self._input_pad, None
        if pad is None:
            raise LocalProtocolError("the input pad of this bundle was used; take a fresh bundle")
        return (encoded - pad).astype("<i8", copy=False).tobytes()

    def answer(self, step: Step, opening: Bytes) -> bytes:
        """The answer to the opening of a gate layer; its material is used up.

        Raises:
            LocalProtocolError: the layer was opened before.
            RemoteProtocolError: an opening that is none.
        """
        if step.index not in self._gates:
            raise LocalProtocolError(f"{step.name} was opened before; the client refuses a second opening")
        material, rho = self._gates.pop(step.index), self._rho.pop(step.index)
        layout, sizes = layout_of(step), opening_sizes(step, self._batch)
        view = memoryview(opening)
        xhat = unpack(view[: sizes.xhat], material.count, layout.ring_bits)
        theirs = unpack(view[sizes.xhat :], material.count, layout.opened_bits).astype(np.uint8)
        own = gate_open(material, xhat)
        masked: I64 = gate_finish(material, xhat, own ^ theirs).view(np.int64)
        masked -= rho.reshape(-1)
        return _joined(masked.astype("<i8", copy=False), pack(own, layout.opened_bits))

    def logits(self, payload: Bytes) -> npt.NDArray[np.float64]:
        """The logits [B, classes] from the server's share of them."""
        bits = self._program.plan.logit_ring_bits
        theirs = unpack(payload, self._logit_share.size, bits).view(np.int64).reshape(self._logit_share.shape)
        return decode(signed_low_bits(self._logit_share + theirs, bits), self._program.output_frac_bits)


def _joined(*arrays: npt.NDArray[Any]) -> bytes:
    return b"".join(array.data for array in arrays)


def material_from(shares: Mapping[int, I64], gates: Mapping[int, GateMaterial]) -> ServerMaterial:
    """Server material that lies in memory, by the index of the step."""
    return ServerMaterial(lambda step: shares[step.index], lambda step: gates[step.index])
