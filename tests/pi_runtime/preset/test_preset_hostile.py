"""Hostile peers of every role. Oracles: one clear error on their connection, and an inference afterwards."""

from __future__ import annotations

import socket

import pytest

from pi_runtime.net.endpoint import parse_address
from pi_runtime.net.messages import Kind
from pi_runtime.net.wire import NO_LAYER, Frame, encode
from pi_runtime.preset.online import input_bytes, opening_sizes
from pi_runtime.primitives.prg import PRG_ID


@pytest.mark.parametrize("moment", ["greeted", "preparing", "opened", "answering"])
def test_a_client_that_breaks_off_leaves_the_server_serving(parties, moment):
    client, store = parties.client()
    program = client.model.program
    channel = parties.connect()
    if moment == "preparing":
        channel.send_control(Kind.PREPARE, **parties.request())
        channel.recv_control(Kind.PREPARED)
    elif moment != "greeted":
        client.prepare(1)
        bundle_id = parties.pads_of(client, store, 1).bundle_id.hex()
        channel.send_control(Kind.OPEN, **parties.request(bundle_id=bundle_id))
        channel.recv_control(Kind.OPENED)
        if moment == "answering":
            channel.send_array(Kind.INPUT, bytes(input_bytes(program, 1)))
            step = program.gate_steps[0]
            channel.recv_array(Kind.SERVER_OPEN, opening_sizes(step, 1).opening, layer=step.index)
    channel.close()
    parties.assert_serves(client)


HELLO = encode(Frame(Kind.HELLO, NO_LAYER, 0, b'{"role":"client","name":"eve","prg":"%s"}' % PRG_ID.encode()))
OPEN = encode(Frame(Kind.OPEN, NO_LAYER, 1, b"{}"))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        HELLO[:20],
        HELLO + OPEN,
        HELLO + HELLO,
        HELLO + OPEN[:8] + b"\xff" * 8,
        HELLO + encode(Frame(Kind.INPUT, NO_LAYER, 1, bytes(512))),
        HELLO + encode(Frame(Kind.MATERIAL, NO_LAYER, 1, b"{}")),
        HELLO + bytes(4096),
    ],
    ids=["nothing", "http", "cut", "no fields", "twice", "damaged", "out of order", "not a client's", "zeros"],
)
def test_hostile_bytes_end_their_connection_alone(parties, sent):
    client, _ = parties.client()
    client.reserve(1)
    for party in (parties.server, parties.dealer):
        with socket.create_connection(parse_address(party.address), timeout=10) as stranger:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            # Until the party has closed: a greeting and one ERROR, or nothing at all.
            answers = b"".join(iter(lambda: stranger.recv(4096), b""))
        assert len(answers) < 1000
    assert client.infer(parties.images(1)).shape == (1, 4)
    parties.assert_serves(client)
