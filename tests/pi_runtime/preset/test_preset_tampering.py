"""Every message of every role, spoilt once in every way. Oracles: one clear line, no crash, and a service that goes on.

The sender's own frames are spoilt where they leave it, so that the receiver sees exactly what a hostile peer could send
without TLS. Bits of array payloads are not flipped here: that is for TLS to notice (the last test), since any array is
as good as another to whoever does not know the secret.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from pi_runtime.errors import PiError
from pi_runtime.export import export_onnx
from pi_runtime.net.frames import FramePipe
from pi_runtime.net.messages import CONTROL, MAX_CONTROL_BYTES, Kind
from pi_runtime.net.wire import HEADER_BYTES, encode_header
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset import dealer_link

# Every message by its sender and receiver; STORED and HELLO have two receivers.
MESSAGES = [
    ("client", "server", Kind.HELLO),
    ("server", "client", Kind.HELLO),
    ("client", "server", Kind.GET_MODEL),
    ("server", "client", Kind.MODEL),
    ("client", "server", Kind.GET_GRAPH),
    ("server", "client", Kind.GRAPH),
    ("client", "server", Kind.GET_SEED),
    ("server", "client", Kind.WEIGHT_SEED),
    ("client", "server", Kind.PREPARE),
    ("server", "client", Kind.PREPARED),
    ("client", "server", Kind.CLIENT_SHARE),
    ("server", "client", Kind.STORED),
    ("client", "server", Kind.OPEN),
    ("server", "client", Kind.OPENED),
    ("client", "server", Kind.INPUT),
    ("server", "client", Kind.SERVER_OPEN),
    ("client", "server", Kind.CLIENT_ANSWER),
    ("server", "client", Kind.LOGITS),
    ("client", "dealer", Kind.HELLO),
    ("dealer", "client", Kind.HELLO),
    ("client", "dealer", Kind.DEAL),
    ("client", "dealer", Kind.BUNDLE_SEED),
    ("dealer", "client", Kind.DEALT),
    ("server", "dealer", Kind.HELLO),
    ("dealer", "server", Kind.HELLO),
    ("server", "dealer", Kind.SETUP),
    ("dealer", "server", Kind.SETUP_NEEDED),
    ("server", "dealer", Kind.WEIGHT_PAD),
    ("dealer", "server", Kind.SETUP_DONE),
    ("dealer", "server", Kind.MATERIAL),
    ("dealer", "server", Kind.LINEAR_SHARE),
    ("dealer", "server", Kind.GATE_SHARE),
    ("server", "dealer", Kind.STORED),
]
DELIVERY = {Kind.MATERIAL, Kind.LINEAR_SHARE, Kind.GATE_SHARE, Kind.STORED}
NAMES_A_MODEL = {kind for kind, fields in CONTROL.items() if "model_id" in fields}


def header(kind, layer, sequence, length):
    """A header that says what it likes."""
    data = bytearray(encode_header(kind, layer, sequence, 0))
    data[HEADER_BYTES - 4 :] = length.to_bytes(4, "little")
    return bytes(data)


def truncated(kind, layer, sequence, payload):
    frame = header(kind, layer, sequence, len(payload)) + payload
    return frame[: len(frame) - 1], True


def shortened(kind, layer, sequence, payload):
    return header(kind, layer, sequence, len(payload) - 1) + payload[:-1], False


def oversized(kind, layer, sequence, payload):
    more = payload + bytes(1 if kind not in CONTROL else MAX_CONTROL_BYTES)
    return header(kind, layer, sequence, len(more)) + more, False


def replayed(kind, layer, sequence, payload):
    frame = header(kind, layer, sequence, len(payload)) + payload
    return frame + frame, False


def repeated(kind, layer, sequence, payload):
    return b"".join(header(kind, layer, sequence + n, len(payload)) + payload for n in (0, 1)), False


def reordered(kind, layer, sequence, payload):
    """A later frame first: its number betrays it."""
    return header(kind, layer, sequence + 1, len(payload)) + payload, False


def out_of_turn(kind, layer, sequence, payload):
    """Another message of the same length, which is not due."""
    other = Kind.SERVER_OPEN if kind is not Kind.SERVER_OPEN else Kind.GATE_SHARE
    return header(other, 0, sequence, len(payload)) + payload, False


def flipped(place):
    """One bit of the header or, of a control message, anywhere; ``place`` spreads it."""

    def flip(kind, layer, sequence, payload):
        frame = bytearray(header(kind, layer, sequence, len(payload)) + payload)
        # Without TLS a party's name is its word, so a bit of HELLO's payload may change nothing that is checked.
        bit = 37 * place % (8 * (len(frame) if kind in CONTROL and kind is not Kind.HELLO else HEADER_BYTES))
        frame[bit // 8] ^= 1 << bit % 8
        return bytes(frame), False

    return flip


def of_another_model(kind, layer, sequence, payload):
    body = json.dumps(json.loads(payload) | {"model_id": "5" * 32}, separators=(",", ":"), sort_keys=True).encode()
    return header(kind, layer, sequence, len(body)) + body, False


SPOILERS = {spoil.__name__: spoil for spoil in (truncated, shortened, oversized, replayed, repeated, reordered)}
SPOILERS |= {"out_of_turn": out_of_turn, "of_another_model": of_another_model}
SPOILERS |= {f"flipped_{place}": flipped(place) for place in range(1, 7)}
SILENT = {"replayed", "repeated"}
"""What comes after the last message that somebody waits for is noticed at the next use of the connection."""
PROGRESS = re.compile(r"is set up|prepared a bundle|: dealt |images in")


def spoilers(kind):
    """The names of those that apply to ``kind``."""
    return [name for name in SPOILERS if name != "of_another_model" or kind in NAMES_A_MODEL]


class Tampering:
    """Spoils the first frame of one message that one role sends another; ``done`` is set then."""

    def __init__(self, monkeypatch, sender, receiver, kind, spoil):
        self.done = threading.Event()
        put = FramePipe._put

        def tampered(pipe, sent, layer, payload, deadline):
            data = b"".join(payload)
            wanted = sent is kind and pipe.peer.role == receiver
            if kind is Kind.HELLO:  # the only kind that several roles send one receiver
                wanted = wanted and json.loads(data)["role"] == sender
            if self.done.is_set() or not wanted:
                put(pipe, sent, layer, payload, deadline)
                return
            self.done.set()
            spoilt, ends = spoil(kind, layer, pipe._sent, data)
            pipe._transport.send(spoilt, deadline=deadline)
            pipe._sent += 1
            if ends:
                pipe.close()

        monkeypatch.setattr(FramePipe, "_put", tampered)


@pytest.fixture(scope="module")
def parties(tmp_path_factory, parties_of):
    """One server and one dealer for all that is done to them, who wait a second for the rest of a message."""
    directory = tmp_path_factory.mktemp("parties")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
    export_onnx(nn.Sequential(net, nn.Linear(4, 4)), (1, 8, 8), directory / "m.onnx")
    parties = parties_of(load_onnx(directory / "m.onnx"), directory)
    parties.timeouts = replace(parties.timeouts, read_s=1.0, handshake_s=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealer_link, "_RETRY_S", 0.02)
        parties.start_dealer()
        parties.start_server()
        yield parties
        parties.close()


def meet_again(parties):
    """Ends the link between server and dealer, which then begins again from nothing."""
    parties.dealer._models.clear()
    parties.server.link._visit.channel.close()


@pytest.mark.parametrize(
    ("sender", "receiver", "kind"), MESSAGES, ids=[f"{kind.name}-{one}-{other}" for one, other, kind in MESSAGES]
)
def test_a_spoilt_message_ends_one_connection_with_one_line(parties, monkeypatch, caplog, sender, receiver, kind):
    caplog.set_level("INFO", "pi_runtime.preset")
    for name in spoilers(kind):
        with monkeypatch.context() as patch:
            tampering = Tampering(patch, sender, receiver, kind, SPOILERS[name])
            caplog.clear()
            fault = None
            if {sender, receiver} == {"server", "dealer"} and kind not in DELIVERY:
                meet_again(parties)
                assert tampering.done.wait(60)
            else:
                client, _ = parties.client()
                try:
                    client.prepare(1)
                    client.infer(parties.images(1))
                except PiError as error:
                    fault = str(error)
                client.close()
            assert tampering.done.is_set(), f"{kind.name} was not sent after {name}"
            assert parties.server.link.wait_ready(60)
        lines = [record.getMessage() for record in caplog.records]
        assert not any(record.exc_info for record in caplog.records), (name, lines)
        complaints = [line for line in (*lines, *([fault] if fault else [])) if not PROGRESS.search(line)]
        assert complaints or name in SILENT, name
        assert not [line for line in complaints if "\n" in line], name
    client, _ = parties.client()
    parties.assert_serves(client)
    client.close()
