"""Channels over memory and sockets. Oracles: the bytes that were sent, hand-counted traffic, and errors by name."""

import os
import socket
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi_runtime.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from pi_runtime.net.channel import Channel
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import ErrorCode, Identity, Kind
from pi_runtime.net.order import Session
from pi_runtime.net.traffic import Counts, Traffic
from pi_runtime.net.transport import SocketTransport, Timeouts, memory_pair
from pi_runtime.net.wire import HEADER_BYTES, MAX_PAYLOAD_BYTES, NO_LAYER, Frame, encode, encode_header

MODEL = {"model_id": "0b" * 16, "graph_hash": "0c" * 32}
BUNDLE = {"bundle_id": "0a" * 16, "batch": 1, **MODEL}
FAST = Timeouts(read_s=0.2, min_rate_bytes_s=1e9)


def channel(transport, own, peer, timeouts=None, state="ready"):
    session = Session(connector=own == "client")
    session.pair(own, peer)
    session.state = state
    return Channel(transport, session, peer=Identity(peer, peer), timeouts=timeouts)


def pair(state="ready", timeouts=None, transports=None):
    left, right = transports or memory_pair()
    return channel(left, "client", "server", timeouts, state), channel(right, "server", "client", timeouts, state)


def raw_pair(state="ready", timeouts=FAST):
    """A client's channel, and the bare transport at its other end."""
    left, right = memory_pair()
    return channel(left, "client", "server", timeouts, state), right


def put(transport, *pieces):
    transport.send(*pieces, deadline=time.monotonic() + 1)


def get(transport, count):
    data = memoryview(bytearray(count))
    filled = 0
    while filled < count:
        got = transport.recv_into(data[filled:], deadline=time.monotonic() + 1)
        assert got, "closed"
        filled += got
    return bytes(data)


def test_an_inference_crosses_unchanged_and_is_counted_by_hand():
    client, server = pair()
    before = client.traffic()
    rng = np.random.default_rng(1)
    masked, opened, bits = rng.integers(0, 2**63, 10, np.uint64), rng.bytes(33), rng.integers(0, 2, 7) == 1
    answer = rng.integers(0, 2**63, (3, 2), np.int64)

    client.send_control(Kind.OPEN, **BUNDLE)
    assert server.recv_control(Kind.OPEN, Kind.PREPARE) == (Kind.OPEN, BUNDLE)
    server.send_control(Kind.OPENED, bundle_id=BUNDLE["bundle_id"])
    assert client.recv_control(Kind.OPENED).body == {"bundle_id": BUNDLE["bundle_id"]}
    client.send_array(Kind.INPUT, masked, tag="input")
    assert np.array_equal(server.recv_array(Kind.INPUT, 80).view(np.uint64), masked)
    server.send_array(Kind.SERVER_OPEN, opened, bits, layer=3)
    first, second = bytearray(33), np.empty(7, bool)
    client.recv_into(Kind.SERVER_OPEN, first, second, layer=3, tag="relu3.open")
    assert first == opened
    assert np.array_equal(second, bits)
    client.send_array(Kind.CLIENT_ANSWER, answer, layer=3, tag="relu3.answer")
    received = np.empty((3, 2), np.int64)
    server.recv_into(Kind.CLIENT_ANSWER, received, layer=3)
    assert np.array_equal(received, answer)
    server.send_array(Kind.LOGITS, memoryview(b"12345678"))
    assert client.recv_array(Kind.LOGITS, 8).tobytes() == b"12345678"

    traffic = client.traffic() - before
    assert traffic.by_tag["input"] == Counts(payload_sent_bytes=80, framing_sent_bytes=16, messages_sent=1)
    assert traffic.by_tag["relu3.open"] == Counts(
        payload_received_bytes=40, framing_received_bytes=16, messages_received=1, rounds=1
    )
    assert traffic.by_tag["relu3.answer"].payload_sent_bytes == 48
    online = sum((traffic.by_tag[tag] for tag in ("input", "relu3.open", "relu3.answer", "logits")), Counts())
    assert online.rounds == 2, "one a ReLU layer, and one for the logits"
    assert (online.messages_sent, online.messages_received) == (2, 2)
    mine, theirs = traffic.total, server.traffic().total
    assert mine.payload_sent_bytes == theirs.payload_received_bytes
    assert mine.payload_received_bytes == theirs.payload_sent_bytes
    assert server.traffic().by_tag["layer3.server_open"].payload_sent_bytes == 40
    assert client.traffic() - client.traffic() == Traffic({})
    client.bye()
    assert server.recv_control(Kind.BYE).body == {}


@pytest.mark.parametrize("nbytes", [0, 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 2 * MAX_PAYLOAD_BYTES + 77])
@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_long_messages_go_as_several_frames(nbytes, kind):
    transports = memory_pair() if kind == "memory" else tuple(SocketTransport(end) for end in socket.socketpair())
    client, server = pair(state="opened", transports=transports)
    data = np.random.default_rng(2).integers(0, 256, nbytes, np.uint8)
    sender = threading.Thread(target=client.send_array, args=(Kind.INPUT, data[: nbytes // 3], data[nbytes // 3 :]))
    sender.start()
    received = server.recv_array(Kind.INPUT, nbytes)
    sender.join()
    assert np.array_equal(received, data)
    counts = server.traffic().total
    frames = max(-(-nbytes // MAX_PAYLOAD_BYTES), 1)
    assert (counts.payload_received_bytes, counts.messages_received) == (nbytes, 1)
    assert counts.framing_received_bytes == frames * HEADER_BYTES
    client.close()
    server.close()


def test_a_frame_may_have_more_pieces_than_the_system_takes_at_once():
    transports = tuple(SocketTransport(end) for end in socket.socketpair())
    client, server = pair(state="opened", transports=transports)
    pieces = [bytes([n % 251]) for n in range(3 * os.sysconf("SC_IOV_MAX"))]
    client.send_stream(Kind.INPUT, len(pieces), pieces)
    assert server.recv_array(Kind.INPUT, len(pieces)).tobytes() == b"".join(pieces)
    client.close()
    server.close()


def test_streams_are_never_whole_in_memory():
    total, piece = 64 << 20, 1 << 20
    transports = tuple(SocketTransport(end) for end in socket.socketpair())
    client, server = pair(state="opened", transports=transports)
    tracemalloc.start()
    pieces = (np.full(piece, n, np.uint8) for n in range(total // piece))
    sender = threading.Thread(target=client.send_stream, args=(Kind.INPUT, total, pieces))
    sender.start()
    sums = []
    server.recv_stream(
        Kind.INPUT, total, lambda part: sums.append((len(part), int(np.frombuffer(part, np.uint8).sum())))
    )
    sender.join()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(length for length, _ in sums) == total
    assert sum(part for _, part in sums) == sum(n * piece for n in range(total // piece))
    assert peak < 8 << 20
    client.close()
    server.close()


@pytest.mark.parametrize("pieces", [[b"abc"], [b"abc", b"defg"], [], [b"", b"12345", b""]])
def test_a_stream_must_have_the_length_that_it_announced(pieces):
    client, server = pair(state="opened")
    if sum(map(len, pieces)) == 5:
        client.send_stream(Kind.INPUT, 5, pieces)
        assert server.recv_array(Kind.INPUT, 5).tobytes() == b"".join(pieces)
        return
    with pytest.raises(LocalProtocolError, match="INPUT must have 5 bytes"):
        client.send_stream(Kind.INPUT, 5, pieces)
    with pytest.raises(PeerRefusal, match="could not make INPUT"):
        server.recv_array(Kind.INPUT, 5)


def test_what_fails_while_sending_or_storing_ends_the_connection():
    def broken():
        yield b"123"
        raise ZeroDivisionError

    client, server = pair(state="opened")
    with pytest.raises(ZeroDivisionError):
        client.send_stream(Kind.INPUT, 5, broken())
    with pytest.raises(PeerRefusal) as refusal:
        server.recv_array(Kind.INPUT, 5)
    assert refusal.value.code is ErrorCode.INTERNAL

    def full(part):
        raise OSError(28, "No space left on device")

    client, server = pair(state="opened")
    client.send_array(Kind.INPUT, b"12345")
    with pytest.raises(OSError, match="No space"):
        server.recv_stream(Kind.INPUT, 5, full)
    with pytest.raises(PeerRefusal, match="for a reason of its own"):
        client.recv_array(Kind.LOGITS, 1)


def test_only_contiguous_memory_goes_on_the_wire():
    client, _ = pair(state="opened")
    with pytest.raises(LocalProtocolError, match="must be contiguous"):
        client.send_array(Kind.INPUT, np.zeros((4, 4))[:, ::2])


# What a hostile peer does, and the one line that it gets.
def frame(kind, payload=b"", layer=NO_LAYER, sequence=0):
    return encode(Frame(kind, layer, sequence, payload))


@pytest.mark.parametrize(
    ("state", "data", "message"),
    [
        ("client's turn", b"GET / HTTP/1.1\r\n\r\n", "does not speak this protocol"),
        ("server's turn", frame(Kind.LOGITS, bytes(81)), "81 bytes or an empty frame of LOGITS, which has exactly 80"),
        ("server's turn", frame(Kind.LOGITS, bytes(79)) + frame(Kind.LOGITS, bytes(2), sequence=1), "exactly 80"),
        ("server's turn", frame(Kind.LOGITS), "an empty frame"),
        (
            "server's turn",
            frame(Kind.LOGITS, bytes(79)) + frame(Kind.OPENED, b"{}", sequence=1),
            "OPENED in the middle",
        ),
        ("server's turn", frame(Kind.LOGITS, bytes(79)) + frame(Kind.LOGITS, bytes(1)), "frame 0 where frame 1"),
        ("server's turn", frame(Kind.SERVER_OPEN, bytes(80), layer=2), "sent SERVER_OPEN where LOGITS is due"),
        ("ready", frame(Kind.LOGITS, bytes(80)), "LOGITS in state 'ready'"),
        ("opened", frame(Kind.BYE, b"{}"), "ended the session"),
        ("server's turn", frame(Kind.ERROR, b'{"code":"bundle","text":"it is spent"}'), "refused: it is spent"),
        ("server's turn", frame(Kind.ERROR, b"{}"), "ERROR is malformed: it lacks code"),
        ("server's turn", b"", "did not go on in time"),
        ("server's turn", frame(Kind.LOGITS, bytes(80))[:-1], "did not go on in time"),
    ],
)
def test_hostile_bytes_are_one_clear_remote_error_and_close(state, data, message):
    client, peer = raw_pair(state)
    put(peer, data)
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        client.recv_array(Kind.LOGITS, 80)
    assert "\n" not in str(caught.value)
    with pytest.raises(LocalProtocolError, match="after the end"):
        client.send_control(Kind.GET_MODEL)


def test_a_broken_rule_is_told_to_the_peer():
    client, server = pair(state="opened")
    client.send_array(Kind.INPUT, bytes(9))
    with pytest.raises(RemoteProtocolError, match="exactly 8"):
        server.recv_array(Kind.INPUT, 8)
    with pytest.raises(PeerRefusal, match=r"server 'server' refused: .*exactly 8") as refusal:
        client.recv_array(Kind.LOGITS, 8)
    assert refusal.value.code is ErrorCode.PROTOCOL


def test_another_layer_than_the_one_due_is_refused():
    client, server = pair(state="server's turn")
    server.send_array(Kind.SERVER_OPEN, b"x", layer=5)
    with pytest.raises(RemoteProtocolError, match="SERVER_OPEN for layer 5, due is 3"):
        client.recv_array(Kind.SERVER_OPEN, 1, layer=3)


def test_a_claimed_length_takes_no_memory_before_it_is_checked():
    client, peer = raw_pair("server's turn")
    put(peer, encode_header(Kind.LOGITS, NO_LAYER, 0, MAX_PAYLOAD_BYTES)[:12], b"\xff\xff\xff\x7f")
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError, match="at most"):
        client.recv_array(Kind.LOGITS, 1 << 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_garbage_yields_only_remote_errors(data, valid_start):
    client, peer = raw_pair("server's turn", Timeouts(read_s=0.005))
    start = encode_header(Kind.LOGITS, NO_LAYER, 0, 80) if valid_start else b""
    put(peer, start + data)
    try:
        assert client.recv_array(Kind.LOGITS, 80).tobytes() == data[:80]
        client.recv_control(Kind.OPENED)
    except RemoteProtocolError:
        return
    pytest.fail("garbage was taken for a message")


def test_going_away_is_told_from_being_slow():
    client, peer = raw_pair("server's turn")
    peer.close()
    with pytest.raises(RemoteProtocolError, match="server 'server' closed the connection"):
        client.recv_array(Kind.LOGITS, 1)
    client, peer = raw_pair("opened")
    peer.close()
    with pytest.raises(RemoteProtocolError, match="went away while this side was sending INPUT"):
        client.send_array(Kind.INPUT, b"x")


def test_why_a_peer_went_away_is_told_even_to_who_was_sending():
    client, server = pair(state="opened")
    server.refuse(ErrorCode.BUNDLE, "bundle is spent\nreally")
    with pytest.raises(PeerRefusal, match=r"refused: bundle is spent\?really") as refusal:
        client.send_array(Kind.INPUT, b"x")
    assert refusal.value.code is ErrorCode.BUNDLE


def test_a_peer_that_does_not_read_is_noticed():
    transports = tuple(SocketTransport(end) for end in socket.socketpair())
    client, server = pair("opened", FAST, transports)
    with pytest.raises(RemoteProtocolError, match="did not go on in time while this side was sending INPUT"):
        client.send_array(Kind.INPUT, bytes(16 << 20))
    server.close()


def test_leaving_the_block_says_bye_or_why():
    client, server = pair()
    with client:
        pass
    assert server.recv_control(Kind.BYE).kind is Kind.BYE
    client, server = pair()
    with pytest.raises(ZeroDivisionError), client:
        raise ZeroDivisionError
    with pytest.raises(PeerRefusal, match="for a reason of its own"):
        server.recv_control(Kind.OPEN)
    client.bye()  # a second end is no error
    client.refuse(ErrorCode.BUSY, "x")


@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_closing_from_another_thread_wakes_who_waits(kind):
    transports = memory_pair() if kind == "memory" else tuple(SocketTransport(end) for end in socket.socketpair())
    client, server = pair(transports=transports)
    closer = threading.Timer(0.05, server.close)
    closer.start()
    with pytest.raises(RemoteProtocolError, match=r"closed the connection|went away"):
        server.recv_control(Kind.OPEN, within_s=5)
    closer.join()
    client.close()


def test_timeouts_must_be_positive():
    with pytest.raises(ConfigError, match="read_s must be more than 0, got 0"):
        Timeouts(read_s=0)
