"""The three roles over real sockets. Oracles: the simulator bit by bit, the declared sizes, errors by name."""

from __future__ import annotations

import secrets
import socket
import stat
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from pi_runtime.errors import ConfigError, RemoteProtocolError
from pi_runtime.net.certs import make_certificates
from pi_runtime.net.channel import Channel
from pi_runtime.net.endpoint import Endpoint, parse_address
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import ErrorCode, Identity, Kind
from pi_runtime.net.tls import load_credentials
from pi_runtime.net.wire import NO_LAYER, Frame, as_bytes, encode
from pi_runtime.preset import dealer as dealing
from pi_runtime.preset.bundle import BundleLayout, part_bytes
from pi_runtime.preset.dealer import Dealer
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.model import remember_identity
from pi_runtime.preset.online import input_bytes, logit_bytes, opening_sizes
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.shares import BundlePads
from pi_runtime.preset.simulator import simulate
from pi_runtime.primitives import prg
from pi_runtime.primitives.prg import PRG_ID, Seed


def pads_of(client, store, batch):
    """The pads of the client's next bundle, read from its store."""
    model = client.model
    with store.next_ready(model_id=model.model_id, graph_hash=model.graph_hash, batch=batch) as lease:
        seed = Seed(lease.map()[:])
        return BundlePads(seed, bytes.fromhex(lease.bundle.bundle_id), bytes.fromhex(model.graph_hash), batch)


def connect(parties, name="client"):
    """A bare channel to the server, for requests that no client of ours makes."""
    channel = parties.endpoint("client", name).connect(parties.server.address, "server")
    parties.ending.append(channel)
    return channel


def request(parties, **changes):
    """The fields of OPEN and PREPARE for the served model, with ``changes``."""
    return {"bundle_id": secrets.token_hex(16), "batch": 1, **parties.server.model.public.fields, **changes}


def refusal_of(channel, kind, **fields):
    channel.send_control(kind, **fields)
    with pytest.raises(PeerRefusal) as caught:
        channel.recv_control(Kind.OPENED, Kind.PREPARED)
    return caught.value


def assert_serves(parties, client):
    """The server still answers, and rightly."""
    images = parties.images(1, seed=9)
    client.prepare(1)
    assert client.infer(images).shape == (1, 4)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_logits_equal_the_simulator_bit_for_bit(parties, batch):
    client, store = parties.client()
    images = parties.images(batch)
    client.prepare(batch)
    pads = pads_of(client, store, batch)
    logits = client.infer(images)
    program = compile_program(parties.graph)
    assert np.array_equal(logits, simulate(program, quantise(program), images, pads).logits)
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}


def test_measured_payload_equals_the_declared_sizes(parties):
    batch = 2
    client, _ = parties.client()
    client.prepare(batch)
    client.infer(parties.images(batch))
    program = client.model.program
    mine = client.ledger.traffic().by_tag
    assert parties.server.wait_idle(10)
    assert parties.dealer.wait_idle(10)
    theirs, dealt = parties.server.ledger.traffic().by_tag, parties.dealer.ledger.traffic().by_tag
    assert mine["input"].payload_sent_bytes == input_bytes(program, batch)
    assert theirs["logits"].payload_sent_bytes == mine["logits"].payload_received_bytes == logit_bytes(program, batch)
    for step in program.steps:
        tag = f"layer{step.index}."
        if step.kind == "gate":
            sizes = opening_sizes(step, batch)
            assert theirs[tag + "server_open"].payload_sent_bytes == sizes.opening
            assert mine[tag + "client_answer"].payload_sent_bytes == sizes.answer
            assert dealt[tag + "gate_share"].payload_sent_bytes == part_bytes(step, batch)
        elif step.kind == "linear":
            assert dealt[tag + "linear_share"].payload_sent_bytes == part_bytes(step, batch)
            assert mine[tag + "client_share"].payload_sent_bytes == part_bytes(step, batch)
        else:
            assert not [known for known in (*mine, *theirs, *dealt) if known.startswith(tag)]
    online = ("server_open", "logits")
    rounds = sum(counts.rounds for tag, counts in mine.items() if tag.split(".")[-1] in online)
    assert rounds == len(program.gate_steps) + 1


def test_prepared_bundles_are_used_in_order_and_more_are_made_when_none_is_left(parties):
    client, store = parties.client()
    client.prepare(1, 2)
    assert client.ready(1) == 2
    for left in (1, 0, 0):
        client.infer(parties.images(1))
        assert client.ready(1) == left
    assert store.counts()["spent"] == 3


def test_a_bundle_belongs_to_the_client_that_made_it(parties):
    owner, store = parties.client("alice")
    owner.prepare(1)
    bundle_id = pads_of(owner, store, 1).bundle_id.hex()
    found = refusal_of(connect(parties, "mallory"), Kind.OPEN, **request(parties, bundle_id=bundle_id))
    assert found.code is ErrorCode.BUNDLE
    assert "belongs to another client" in str(found)
    owner.infer(parties.images(1))
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}


def test_a_bundle_is_opened_once(parties):
    client, store = parties.client()
    client.prepare(1)
    bundle_id = pads_of(client, store, 1).bundle_id.hex()
    client.infer(parties.images(1))
    found = refusal_of(connect(parties), Kind.OPEN, **request(parties, bundle_id=bundle_id))
    assert found.code is ErrorCode.BUNDLE
    assert "is spent" in str(found)
    assert_serves(parties, client)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_id": "0" * 32}, ErrorCode.MODEL),
        ({"graph_hash": "0" * 64}, ErrorCode.MODEL),
        ({}, ErrorCode.BUNDLE),
    ],
)
def test_requests_for_what_is_not_served_are_refused(parties, changes, code):
    assert refusal_of(connect(parties), Kind.OPEN, **request(parties, **changes)).code is code
    if code is ErrorCode.MODEL:
        assert refusal_of(connect(parties), Kind.PREPARE, **request(parties, **changes)).code is code


def test_a_bundle_is_for_its_batch_alone(parties):
    client, store = parties.client()
    client.prepare(2)
    bundle_id = pads_of(client, store, 2).bundle_id.hex()
    found = refusal_of(connect(parties), Kind.OPEN, **request(parties, bundle_id=bundle_id))
    assert (found.code, "batch of 2" in str(found)) == (ErrorCode.MODEL, True)
    client.infer(parties.images(2))
    assert store.counts()["spent"] == 1


def test_a_bundle_too_large_is_refused(idle_parties):
    idle_parties.start_dealer()
    idle_parties.start_server(max_bundle_bytes=1_000_000)
    found = refusal_of(connect(idle_parties), Kind.PREPARE, **request(idle_parties, batch=65_536))
    assert (found.code, "use a smaller batch" in str(found)) == (ErrorCode.MODEL, True)


def test_a_client_that_opens_nothing_is_refused_more_bundles(idle_parties):
    idle_parties.start_dealer()
    idle_parties.start_server(max_unspent=2)
    client, _ = idle_parties.client("alice")
    client.prepare(1, 2)
    with pytest.raises(PeerRefusal, match="2 bundles of this client are unspent, at most 2") as caught:
        client.prepare(1)
    assert caught.value.code is ErrorCode.BUSY
    idle_parties.client("bob")[0].prepare(1)
    client.infer(idle_parties.images(1))
    client.prepare(1)


@pytest.mark.parametrize("kind", [Kind.PREPARED, Kind.DEALT, Kind.STORED])
def test_a_reply_about_another_bundle_is_no_reply(parties, monkeypatch, kind):
    client, store = parties.client()
    send_control = Channel.send_control

    def lie(channel, sent, **fields):
        if sent is kind and channel.peer.role == "client":
            fields["bundle_id"] = "0" * 32
        send_control(channel, sent, **fields)

    monkeypatch.setattr(Channel, "send_control", lie)
    with pytest.raises(RemoteProtocolError, match=f"{kind.name} is about another bundle"):
        client.prepare(1)
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}


@pytest.mark.parametrize("moment", ["greeted", "preparing", "opened", "answering"])
def test_a_client_that_breaks_off_leaves_the_server_serving(parties, moment):
    client, store = parties.client()
    program = client.model.program
    channel = connect(parties)
    if moment == "preparing":
        channel.send_control(Kind.PREPARE, **request(parties))
        channel.recv_control(Kind.PREPARED)
    elif moment != "greeted":
        client.prepare(1)
        bundle_id = pads_of(client, store, 1).bundle_id.hex()
        channel.send_control(Kind.OPEN, **request(parties, bundle_id=bundle_id))
        channel.recv_control(Kind.OPENED)
        if moment == "answering":
            channel.send_array(Kind.INPUT, bytes(input_bytes(program, 1)))
            step = program.gate_steps[0]
            channel.recv_array(Kind.SERVER_OPEN, opening_sizes(step, 1).opening, layer=step.index)
    channel.close()
    assert_serves(parties, client)


def connect_dealer(parties):
    """A bare channel to the dealer."""
    channel = parties.endpoint("client").connect(parties.dealer.address, "dealer")
    parties.ending.append(channel)
    return channel


def deal(channel, seed, **fields):
    channel.send_control(Kind.DEAL, **fields)
    channel.send_array(Kind.BUNDLE_SEED, seed)
    channel.recv_control(Kind.DEALT)


def test_the_dealer_refuses_a_bundle_too_large_that_nobody_announced(idle_parties):
    idle_parties.start_dealer(max_bundle_bytes=1_000_000)
    idle_parties.start_server()
    channel = connect_dealer(idle_parties)
    channel.send_control(Kind.DEAL, **request(idle_parties, batch=1024))
    with pytest.raises(PeerRefusal, match="use a smaller batch") as caught:
        channel.recv_control(Kind.DEALT, within_s=5)
    assert caught.value.code is ErrorCode.MODEL
    deal(connect_dealer(idle_parties), bytes(16), **request(idle_parties))


def test_material_that_no_client_announced_is_dropped(parties, monkeypatch):
    whole, recv_array = [], Channel.recv_array

    def tap(channel, kind, *arguments, **options):
        whole.append(kind)
        return recv_array(channel, kind, *arguments, **options)

    client, _ = parties.client()
    monkeypatch.setattr(Channel, "recv_array", tap)
    deal(connect_dealer(parties), bytes(16), **request(parties))
    # The linear parts too go by in pieces: what nobody announced may be of any size.
    assert whole == [Kind.BUNDLE_SEED]
    assert list((parties.directory / "server" / "bundles").glob("*.material")) == []
    assert_serves(parties, client)


def test_a_dealer_whose_system_generator_repeats_still_tells_bundles_apart(parties, monkeypatch):
    drawn, real = [], dealing.deal

    def tap(program, weight_pads, pads, own, threads):
        drawn.append(own.octets(32).tobytes())
        return real(program, weight_pads, pads, own, threads)

    monkeypatch.setattr(dealing, "deal", tap)
    monkeypatch.setattr(prg, "secrets", SimpleNamespace(token_bytes=bytes))
    channel = connect_dealer(parties)
    for _ in range(2):
        deal(channel, bytes(16), **request(parties))
    assert len(set(drawn)) == 2


def test_a_bundle_that_was_announced_once_is_delivered_once(parties):
    fields = request(parties)
    server, dealer = connect(parties), connect_dealer(parties)
    server.send_control(Kind.PREPARE, **fields)
    server.recv_control(Kind.PREPARED)
    (part,) = (parties.directory / "server" / "bundles").glob("*.part")
    empty = part.read_bytes()
    deal(dealer, bytes(16), **fields)
    delivered = part.read_bytes()
    assert delivered != empty
    # A second alpha for the same pads would show the server the xor of two truths (PROTOCOL.md, section 4.2).
    deal(dealer, bytes(16), **fields)
    assert part.read_bytes() == delivered


def test_clients_are_served_side_by_side_up_to_a_limit(idle_parties):
    idle_parties.start_dealer()
    idle_parties.start_server(max_clients=2)
    first, second = (idle_parties.client(name)[0] for name in ("alice", "bob"))
    first.reserve(1)
    second.reserve(1)
    with pytest.raises(PeerRefusal, match="2 peers are connected; try again later") as caught:
        idle_parties.client("carol")[0].prepare(1)
    assert caught.value.code is ErrorCode.BUSY
    results = {}

    def infer(client, seed):
        results[seed] = client.infer(idle_parties.images(1, seed))

    threads = [threading.Thread(target=infer, args=pair) for pair in ((first, 1), (second, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(results) == {1, 2}


def test_a_restarted_dealer_is_set_up_again(parties):
    client, _ = parties.client()
    client.prepare(1)
    address = parties.dealer.address
    parties.stop(parties.dealer)
    parties.start_dealer(address)
    client.prepare(1)
    assert client.ready(1) == 2


def test_a_restarted_server_keeps_its_model_and_its_bundles(parties):
    client, store = parties.client()
    client.prepare(1)
    model_id, address = client.model.model_id, parties.server.address
    parties.stop(parties.server)
    parties.start_server(address)
    client.infer(parties.images(1))
    assert client.model.model_id == model_id
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}


def test_one_weight_pad_serves_one_model(preset_graph, tmp_path):
    weights = quantise(compile_program(preset_graph))
    first = remember_identity(tmp_path / "state", weights, preset_graph.public_hash)
    again = remember_identity(tmp_path / "state", weights, preset_graph.public_hash)
    assert (first.model_id, first.weight_seed.reveal()) == (again.model_id, again.weight_seed.reveal())
    assert stat.S_IMODE((tmp_path / "state" / "model.json").stat().st_mode) == 0o600
    weight, bias = weights["fc"]
    other = remember_identity(tmp_path / "state", weights | {"fc": (weight + 1, bias)}, preset_graph.public_hash)
    assert other.model_id != first.model_id
    assert other.weight_seed.reveal() != first.weight_seed.reveal()
    (tmp_path / "state" / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.json is damaged; remove it"):
        remember_identity(tmp_path / "state", weights, preset_graph.public_hash)


def test_a_dealer_of_another_graph_refuses_the_server(idle_parties, make_net, tmp_path):
    from pi_runtime.export import export_onnx
    from pi_runtime.onnx_graph import load_onnx

    export_onnx(make_net(0.9, seed=1), (1, 8, 8), tmp_path / "other.onnx")
    served = idle_parties.graph
    idle_parties.graph = load_onnx(tmp_path / "other.onnx")
    idle_parties.start_dealer()
    idle_parties.graph = served
    channel = idle_parties.endpoint("server").connect(idle_parties.dealer.address, "dealer")
    channel.send_control(Kind.SETUP, model_id="0" * 32, graph_hash=served.public_hash)
    with pytest.raises(PeerRefusal, match="another public graph") as caught:
        channel.recv_control(Kind.SETUP_DONE)
    assert caught.value.code is ErrorCode.MODEL


def test_another_server_cannot_take_a_models_place_at_the_dealer(parties):
    channel = parties.endpoint("server", "mallory").connect(parties.dealer.address, "dealer")
    channel.send_control(Kind.SETUP, **parties.server.model.public.fields)
    with pytest.raises(PeerRefusal, match="belongs to another server"):
        channel.recv_control(Kind.SETUP_DONE)


def test_a_client_certificate_is_no_dealer(preset_graph, tmp_path):
    make_certificates(tmp_path, [Identity("client", "eve"), Identity("server", "server")])
    eve = Endpoint(Identity("client", "eve"), prg=PRG_ID, credentials=load_credentials(tmp_path, "client"))
    server = Endpoint(Identity("server", "server"), prg=PRG_ID, credentials=load_credentials(tmp_path, "server"))
    with eve.listen("127.0.0.1:0") as listener:

        def pose():
            with pytest.raises(RemoteProtocolError):
                eve.greet(listener.accept(timeout_s=10), ("server",))

        posing = threading.Thread(target=pose)
        posing.start()
        with pytest.raises(RemoteProtocolError):
            server.connect(listener.address, "dealer")
        posing.join(10)


def test_plain_tcp_is_for_loopback_alone(idle_parties):
    with pytest.raises(ConfigError, match="plain TCP is for loopback addresses only"):
        Dealer(idle_parties.graph.public(), idle_parties.endpoint("dealer"), listen="0.0.0.0:0")


def test_images_of_another_shape_cost_no_bundle(parties):
    client, store = parties.client()
    client.prepare(1)
    with pytest.raises(ConfigError, match=r"images must be \[B, 1, 8, 8\], got \(1, 3, 8, 8\)"):
        client.infer(np.zeros((1, 3, 8, 8), np.float32))
    assert store.counts()["ready"] == 1


def test_the_servers_file_has_the_declared_length(parties):
    client, _ = parties.client()
    client.prepare(2)
    (path,) = (parties.directory / "server" / "bundles").glob("*.material")
    assert path.stat().st_size == BundleLayout(client.model.program, 2).total_bytes


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
    assert_serves(parties, client)


SECRET = (
    Kind.WEIGHT_PAD,
    Kind.CLIENT_SHARE,
    Kind.LINEAR_SHARE,
    Kind.GATE_SHARE,
    Kind.INPUT,
    Kind.SERVER_OPEN,
    Kind.CLIENT_ANSWER,
)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_what_leaves_each_role_is_uniform_for_any_input(idle_parties, monkeypatch, value):
    captured = {kind: bytearray() for kind in SECRET}
    send_array = Channel.send_array

    def tap(channel, kind, *buffers, **options):
        if kind in captured:
            captured[kind] += b"".join(bytes(as_bytes(buffer)) for buffer in buffers)
        send_array(channel, kind, *buffers, **options)

    monkeypatch.setattr(Channel, "send_array", tap)
    idle_parties.start_dealer()
    idle_parties.start_server()
    client, _ = idle_parties.client()
    client.infer(np.full((64, 1, 8, 8), value, np.float32))
    for kind, data in captured.items():
        counts = np.bincount(np.frombuffer(bytes(data), np.uint8), minlength=256)
        assert len(data) > 5 * 256, kind.name
        expected = len(data) / 256
        # Chi-square of 255 degrees of freedom has deviation 22.6: six of them, one false alarm in 10^8 or so.
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 22.6, kind.name
