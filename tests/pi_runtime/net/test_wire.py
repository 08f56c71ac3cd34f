"""Frames, control messages and their legal order. Oracles: bytes written by hand, and the tables of PROTOCOL."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.net.messages import CONTROL, LAYERED, MAX_CONTROL_BYTES, ErrorCode, Kind, decode_control, encode_control
from pi_runtime.net.order import BYE_STATES, CLOSED, TABLES, Session
from pi_runtime.net.wire import HEADER_BYTES, MAX_PAYLOAD_BYTES, NO_LAYER, Decoder, Frame, encode, encode_header

# Kind, layer, sequence, payload, and the whole frame as its layout says.
KNOWN_FRAMES = [
    (Kind.BYE, NO_LAYER, 0, b"{}", "70490102" "ffffffff" "00000000" "02000000" "7b7d"),
    (Kind.INPUT, NO_LAYER, 1, b"\x01\x02\x03", "70490132" "ffffffff" "01000000" "03000000" "010203"),
    (Kind.SERVER_OPEN, 7, 2, b"", "70490133" "07000000" "02000000" "00000000"),
    (Kind.CLIENT_ANSWER, 0x01020304, 3, b"\xff" * 5, "70490134" "04030201" "03000000" "05000000" "ffffffffff"),
]  # fmt: skip
STREAM = b"".join(bytes.fromhex(text) for *_, text in KNOWN_FRAMES)


@pytest.mark.parametrize(("kind", "layer", "sequence", "payload", "text"), KNOWN_FRAMES)
def test_a_frame_has_the_documented_bytes(kind, layer, sequence, payload, text):
    assert encode(Frame(kind, layer, sequence, payload)).hex() == text
    assert len(bytes.fromhex(text)) == HEADER_BYTES + len(payload)


@pytest.mark.parametrize("step", [1, 2, 15, 16, 17, len(STREAM)])
@pytest.mark.parametrize("trailing", [b"", b"pI\x01", STREAM[:10]])
def test_frames_come_out_however_the_bytes_come_in(step, trailing):
    decoder, frames = Decoder(), []
    data = STREAM + trailing
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    assert frames == [Frame(*known[:4]) for known in KNOWN_FRAMES]
    assert decoder.buffered == len(trailing)


def test_a_payload_can_go_past_the_decoder():
    decoder = Decoder()
    frame = encode(Frame(Kind.INPUT, NO_LAYER, 0, bytes(range(100))))
    decoder.feed(frame[:40])
    header = decoder.next_header()
    assert header is not None
    payload = bytearray(header.length)
    taken = decoder.take(memoryview(payload))
    assert taken == 40 - HEADER_BYTES
    payload[taken:] = frame[40:]
    decoder.bypassed(100 - taken)
    assert payload == bytes(range(100))
    decoder.feed(encode(Frame(Kind.BYE, NO_LAYER, 1, b"{}")))
    assert decoder.next_frame() == Frame(Kind.BYE, NO_LAYER, 1, b"{}")


def header_bytes(magic=b"pI", version=1, kind=50, layer=NO_LAYER, sequence=0, length=0):
    return magic + bytes((version, kind)) + b"".join(n.to_bytes(4, "little") for n in (layer, sequence, length))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": b"GE"}, "does not speak this protocol"),
        ({"version": 2}, "protocol version 2, this side 1"),
        ({"kind": 0}, "unknown kind 0"),
        ({"kind": 255}, "unknown kind 255"),
        ({"layer": 3}, "INPUT with layer 3"),
        ({"kind": 51}, "SERVER_OPEN with layer"),
        ({"sequence": 1}, "frame 1 where frame 0 is due"),
        ({"length": MAX_PAYLOAD_BYTES + 1}, "at most 4,194,304"),
        ({"length": 0xFFFFFFFF}, "at most 4,194,304"),
        ({"kind": 1, "length": MAX_CONTROL_BYTES + 1}, "at most 4,096"),
    ],
)
def test_a_bad_header_is_one_clear_error_from_its_16_bytes_alone_and_for_ever(change, message):
    decoder = Decoder()
    decoder.feed(header_bytes(**change))
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=message):
            decoder.next_header()


def test_a_replayed_or_reordered_frame_is_refused():
    first, second = (encode(Frame(Kind.INPUT, NO_LAYER, n, b"x")) for n in range(2))
    for stream, message in ((first + first, "frame 0 where frame 1"), (second + first, "frame 1 where frame 0")):
        decoder = Decoder()
        decoder.feed(stream)
        with pytest.raises(RemoteProtocolError, match=message):
            list(iter(decoder.next_frame, None))


def test_frames_that_a_receiver_would_refuse_are_not_sent():
    for kind, layer, sequence, length in (
        (Kind.INPUT, 3, 0, 0),
        (Kind.SERVER_OPEN, NO_LAYER, 0, 0),
        (Kind.SERVER_OPEN, -1, 0, 0),
        (Kind.INPUT, NO_LAYER, 0, MAX_PAYLOAD_BYTES + 1),
        (Kind.BYE, NO_LAYER, 0, MAX_CONTROL_BYTES + 1),
        (Kind.INPUT, NO_LAYER, 1 << 32, 0),
    ):
        with pytest.raises(LocalProtocolError):
            encode_header(kind, layer, sequence, length)


def drain(data):
    decoder = Decoder()
    decoder.feed(data)
    while (frame := decoder.next_frame()) is not None:
        if frame.kind in CONTROL:
            decode_control(frame.kind, frame.payload)


def only_remote_errors(data):
    with suppress(RemoteProtocolError):
        drain(data)


@given(st.binary(max_size=200))
def test_garbage_yields_only_remote_errors(data):
    only_remote_errors(data)


@given(st.sampled_from(sorted(CONTROL)), st.binary(max_size=100))
def test_garbage_in_a_control_message_yields_only_remote_errors(kind, payload):
    only_remote_errors(header_bytes(kind=kind, length=len(payload)) + payload)


@given(st.integers(0, 8 * len(STREAM) - 1))
def test_any_flipped_bit_yields_frames_or_a_remote_error(bit):
    data = bytearray(STREAM)
    data[bit // 8] ^= 1 << bit % 8
    only_remote_errors(bytes(data))


VALID = {
    "role": "client",
    "name": "alice",
    "prg": "aes-ctr",
    "code": "bundle",
    "text": "spent",
    "bundle_id": "0a" * 16,
    "model_id": "0b" * 16,
    "graph_hash": "0c" * 32,
    "batch": 7,
    "graph_bytes": 1000,
    "client": "alice",
}


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
BODIES = st.fixed_dictionaries({}, optional={name: st.just(value) | JSON for name, value in VALID.items()})


@given(st.sampled_from(sorted(CONTROL)), JSON | BODIES)
def test_any_json_is_decoded_to_its_schema_or_refused(kind, value):
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if name in CONTROL[kind] or len(value) == 1}
    try:
        body = decode_control(kind, json.dumps(value).encode())
    except RemoteProtocolError:
        return
    assert encode_control(kind, body), "what was accepted obeys the schema that a sender must obey"


@pytest.mark.parametrize("kind", sorted(CONTROL))
def test_every_control_message_survives_the_way_there_and_needs_exactly_its_fields(kind):
    body = {name: VALID[name] for name in CONTROL[kind]}
    assert decode_control(kind, encode_control(kind, body)) == body
    for name in body:
        shorter = {key: value for key, value in body.items() if key != name}
        with pytest.raises(RemoteProtocolError, match=f"it lacks {name}"):
            decode_control(kind, json.dumps(shorter).encode())
        with pytest.raises(RemoteProtocolError, match=f"{name} must be"):
            decode_control(kind, json.dumps(body | {name: None}).encode())
    with pytest.raises(RemoteProtocolError, match="unknown field"):
        decode_control(kind, json.dumps(body | {"more": 1}).encode())
    with pytest.raises(LocalProtocolError, match=f"cannot send {kind.name}"):
        encode_control(kind, body | {"more": 1})


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("bundle_id", "0A" * 16),
        ("bundle_id", "0a" * 16 + "\n"),
        ("model_id", "0a" * 15),
        ("batch", 0),
        ("batch", True),
        ("batch", 1.0),
        ("batch", 65_537),
    ],
)
def test_values_out_of_range_are_refused(field, bad):
    body = {name: VALID[name] for name in CONTROL[Kind.OPEN]} | {field: bad}
    with pytest.raises(RemoteProtocolError, match=f"{field} must be"):
        decode_control(Kind.OPEN, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"code":"busy","text":"a","text":"b"}', "not valid JSON"),
        (b'{"code":"busy","text":NaN}', "not valid JSON"),
        (b"[" * 4000, "not valid JSON"),
        (b'{"code":"busy","text":' + b"9" * 4000 + b"}", "text must be"),
        (b"\xff", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b" " * 4097, "at most 4096"),
        (b'{"code":"busy","text":"a\\u001b[2J"}', "text must be"),
    ],
)
def test_hostile_json_is_one_clear_error(payload, message):
    with pytest.raises(RemoteProtocolError, match=message):
        decode_control(Kind.ERROR, payload)


def test_the_longest_error_fits_into_a_control_message():
    assert len(encode_control(Kind.ERROR, {"code": ErrorCode.INTERNAL, "text": "\U0001f600" * 300})) < MAX_CONTROL_BYTES


# The order of messages. A walk lists who says what (and for which layer) from "ready" on.
OPEN = "client OPEN, server OPENED, client INPUT"
WALKS = {
    "client server": [
        "client GET_MODEL, server MODEL, client GET_GRAPH, server GRAPH, client GET_SEED, server WEIGHT_SEED",
        "client PREPARE, server PREPARED, client CLIENT_SHARE 0, client CLIENT_SHARE 3, server STORED, client PREPARE",
        f"{OPEN}, server SERVER_OPEN 1, client CLIENT_ANSWER 1, server SERVER_OPEN 4, "
        "client CLIENT_ANSWER 4, server LOGITS, client OPEN, server OPENED, client INPUT, server SERVER_OPEN 1",
        "client OPEN, server OPENED, client INPUT, server LOGITS, client BYE",
        "client OPEN, server OPENED, server BYE",
    ],
    "client dealer": ["client DEAL, client BUNDLE_SEED, dealer DEALT, client DEAL", "client BYE", "dealer BYE"],
    "server dealer": [
        "server SETUP, dealer SETUP_NEEDED, server WEIGHT_PAD 0, server WEIGHT_PAD 2, dealer SETUP_DONE, "
        "dealer MATERIAL, dealer LINEAR_SHARE 0, dealer GATE_SHARE 1, dealer LINEAR_SHARE 2, server STORED",
        "server SETUP, dealer SETUP_DONE, server SETUP",
        "dealer MATERIAL, server ERROR",
    ],
}
ALL_WALKS = [(pair, walk) for pair, walks in WALKS.items() for walk in walks]


def paired(pair, swap=False):
    own, peer = pair.split()[::-1] if swap else pair.split()
    session = Session(connector=True)
    session.send(Kind.HELLO)
    session.receive(Kind.HELLO)
    session.pair(own, peer)
    return session, own


def step(session, own, text):
    sender, kind, *layer = text.split()
    move = session.send if sender == own else session.receive
    move(Kind[kind], int(layer[0]) if layer else NO_LAYER)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("pair", "walk"), ALL_WALKS)
def test_legal_walks_pass_on_both_sides(pair, walk, swap):
    session, own = paired(pair, swap)
    for text in walk.split(", "):
        step(session, own, text)
    assert (session.state == CLOSED) == walk.endswith(("BYE", "ERROR"))


@pytest.mark.parametrize(
    ("pair", "walk", "message"),
    [
        ("client server", "client INPUT", "INPUT in state 'ready'"),
        ("client server", "server OPENED", "OPENED in state 'ready'; legal is client: GET_MODEL"),
        ("client server", "client OPEN, client INPUT", "INPUT in state 'open asked'"),
        ("client server", "client OPEN, server OPENED, client INPUT, client INPUT", "INPUT in state"),
        ("client server", f"{OPEN}, server SERVER_OPEN 1, server SERVER_OPEN 2", "legal is"),
        (
            "client server",
            f"{OPEN}, server SERVER_OPEN 1, client CLIENT_ANSWER 2",
            "layer 1 was opened",
        ),
        (
            "client server",
            f"{OPEN}, server SERVER_OPEN 4, client CLIENT_ANSWER 4, server SERVER_OPEN 4",
            "each layer comes once",
        ),
        (
            "client server",
            f"{OPEN}, server SERVER_OPEN 4, client CLIENT_ANSWER 4, server SERVER_OPEN 1",
            "each layer comes once",
        ),
        ("client server", "client PREPARE, server PREPARED, client CLIENT_SHARE 2, client CLIENT_SHARE 2", "once"),
        ("client server", "client OPEN, client BYE", "BYE in state 'open asked'"),
        ("client server", "client BYE, client OPEN", "after the end"),
        ("client dealer", "client BUNDLE_SEED", "BUNDLE_SEED in state 'ready'"),
        ("client dealer", "client OPEN", "OPEN in state 'ready'"),
        ("server dealer", "dealer GATE_SHARE 1", "GATE_SHARE in state 'ready'"),
        ("server dealer", "dealer MATERIAL, dealer GATE_SHARE 1, dealer LINEAR_SHARE 1", "comes once"),
    ],
)  # fmt: skip
def test_illegal_steps_are_local_when_ours_and_remote_when_theirs(pair, walk, message):
    for swap in (False, True):
        session, own = paired(pair, swap)
        *legal, illegal = walk.split(", ")
        for text in legal:
            step(session, own, text)
        error = LocalProtocolError if illegal.startswith(own) else RemoteProtocolError
        with pytest.raises(error, match=message):
            step(session, own, illegal)


def test_nothing_but_hello_begins_a_session():
    for kind in set(Kind) - {Kind.HELLO, Kind.ERROR}:
        session = Session(connector=False)
        with pytest.raises(RemoteProtocolError, match="state 'start'"):
            session.receive(kind)


def test_roles_that_have_nothing_to_say_to_one_another_are_refused():
    for role in ("client", "server", "dealer"):
        with pytest.raises(RemoteProtocolError, match="nothing to say"):
            Session(connector=True).pair(role, role)


def test_the_tables_are_closed_and_use_every_kind():
    used = {Kind.HELLO, Kind.BYE, Kind.ERROR}
    for roles, table in TABLES.items():
        assert table.keys() >= BYE_STATES - {"opened"}
        reached = {"ready"}
        for steps in table.values():
            for (sender, kind), following in steps.items():
                assert sender in roles
                assert following in table
                reached.add(following)
                used.add(kind)
        assert reached == table.keys()
    assert used == set(Kind)
    assert not LAYERED & CONTROL.keys()


@given(st.sampled_from(sorted(WALKS)), st.lists(st.tuples(st.sampled_from(sorted(Kind)), st.integers(0, 3))))
def test_no_order_of_a_peers_messages_yields_anything_but_remote_errors(pair, moves):
    session, _ = paired(pair)
    for kind, layer in moves:
        try:
            session.receive(kind, layer if kind in LAYERED else NO_LAYER)
        except RemoteProtocolError:
            return
