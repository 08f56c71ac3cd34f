"""All three roles of the protocol in one process, their messages handed over in memory."""

from __future__ import annotations

import numpy as np

from pi_runtime.preset import offline, online
from pi_runtime.preset.bundle import BundleLayout, load_gate_part, load_linear_part
from pi_runtime.preset.linear_ops import multiply, quantise
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.shares import BundlePads
from pi_runtime.primitives.prg import Seed, Stream


def joined(delivery):
    """The bytes of a delivery, as many as it says."""
    payload = b"".join(delivery.pieces)
    assert len(payload) == delivery.nbytes
    return payload


def secure(graph, images, batch, bundle_pads=None):
    """Runs all three roles' code over in-memory messages; returns logits, sizes of the messages, and the pads."""
    program, public = compile_program(graph), compile_program(graph.public())
    weights = quantise(program)
    graph_hash = bytes.fromhex(graph.public_hash)
    client_pads = offline.expand_weight_pads(public, Seed.fresh(), graph_hash, b"m" * 16)
    dealer_pads = offline.dealer_pads(program, weights, client_pads)
    pads = bundle_pads or BundlePads(Seed.fresh(), b"b" * 16, graph_hash, batch)
    from_client = {d.step.index: joined(d) for d in offline.client_deliveries(public, client_pads, pads)}
    shares, gates = {}, {}
    layout = BundleLayout(program, batch)
    for delivery in offline.deal(public, dealer_pads, pads, Stream.from_system()):
        step, payload = delivery.step, joined(delivery)
        assert len(payload) == layout.parts[step.index].size
        if step.kind == "linear":
            parts = (load_linear_part(step, batch, memoryview(p)) for p in (payload, from_client[step.index]))
            shares[step.index] = offline.server_share(program.steps[step.index], weights, *parts)
        else:
            gates[step.index] = load_gate_part(step, batch, memoryview(payload))
    client = online.ClientInference(public, pads)
    sizes = {}

    def exchange(step, opening):
        answer = client.answer(public.steps[step.index], opening)
        sizes[step.name] = (len(opening), len(answer))
        return answer

    masked = np.frombuffer(client.mask_input(images), "<i8").reshape(images.shape)
    material = online.material_from(shares, gates)
    logits = online.run_server(
        program, lambda step, share: multiply(step, weights[step.name][0], share), material, masked, exchange
    )
    return client.logits(logits), sizes, pads
