"""The dealer and what it is told. Oracles: errors by name, and the bytes that reach the server's store."""

from __future__ import annotations

import stat
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import pytest

from pi_runtime.errors import ConfigError
from pi_runtime.net.channel import Channel
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import ErrorCode, Kind
from pi_runtime.preset import dealer as dealing
from pi_runtime.preset.linear_ops import quantise, weight_shape
from pi_runtime.preset.model import remember_identity
from pi_runtime.preset.program import compile_program
from pi_runtime.primitives import prg


def test_the_dealer_refuses_a_bundle_too_large_that_nobody_announced(idle_parties):
    idle_parties.start_dealer(max_bundle_bytes=1_000_000)
    idle_parties.start_server()
    channel = idle_parties.connect_dealer()
    channel.send_control(Kind.DEAL, **idle_parties.request(batch=1024))
    with pytest.raises(PeerRefusal, match="use a smaller batch") as caught:
        channel.recv_control(Kind.DEALT, within_s=5)
    assert caught.value.code is ErrorCode.MODEL
    idle_parties.deal(idle_parties.connect_dealer(), bytes(16), **idle_parties.request())


def test_material_that_no_client_announced_is_dropped(parties, monkeypatch):
    whole, recv_array = [], Channel.recv_array

    def tap(channel, kind, *arguments, **options):
        whole.append(kind)
        return recv_array(channel, kind, *arguments, **options)

    client, _ = parties.client()
    monkeypatch.setattr(Channel, "recv_array", tap)
    parties.deal(parties.connect_dealer(), bytes(16), **parties.request())
    # The linear parts too go by in pieces: what nobody announced may be of any size.
    assert whole == [Kind.BUNDLE_SEED]
    assert list((parties.directory / "server" / "bundles").glob("*.material")) == []
    parties.assert_serves(client)


def test_a_dealer_whose_system_generator_repeats_still_tells_bundles_apart(parties, monkeypatch):
    drawn, real = [], dealing.deal

    def tap(program, weight_pads, pads, own, threads):
        drawn.append(own.octets(32).tobytes())
        return real(program, weight_pads, pads, own, threads)

    monkeypatch.setattr(dealing, "deal", tap)
    monkeypatch.setattr(prg, "secrets", SimpleNamespace(token_bytes=bytes))
    channel = parties.connect_dealer()
    for _ in range(2):
        parties.deal(channel, bytes(16), **parties.request())
    assert len(set(drawn)) == 2


def test_a_bundle_that_was_announced_once_is_delivered_once(parties):
    fields = parties.request()
    server, dealer = parties.connect(), parties.connect_dealer()
    server.send_control(Kind.PREPARE, **fields)
    server.recv_control(Kind.PREPARED)
    (part,) = (parties.directory / "server" / "bundles").glob("*.part")
    empty = part.read_bytes()
    parties.deal(dealer, bytes(16), **fields)
    delivered = part.read_bytes()
    assert delivered != empty
    # A second alpha for the same pads would show the server the xor of two truths (PROTOCOL.md, section 4.2).
    parties.deal(dealer, bytes(16), **fields)
    assert part.read_bytes() == delivered


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


def test_a_server_that_stored_another_bundle_has_stored_none(parties, monkeypatch):
    client, store = parties.client()
    send_control = Channel.send_control

    def lie(channel, sent, **fields):
        if sent is Kind.STORED and channel.peer.role == "dealer":
            fields["bundle_id"] = "0" * 32
        send_control(channel, sent, **fields)

    monkeypatch.setattr(Channel, "send_control", lie)
    with pytest.raises(PeerRefusal, match=r"the server went away while it was dealt to|the dealer broke off"):
        client.prepare(1)
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}
    monkeypatch.undo()
    parties.assert_serves(client)


def set_up(channel, program, **fields):
    """Sets the dealer up with weight pads of zeros."""
    channel.send_control(Kind.SETUP, **fields)
    channel.recv_control(Kind.SETUP_NEEDED)
    for step in program.linear_steps:
        channel.send_array(Kind.WEIGHT_PAD, bytes(8 * prod(weight_shape(step))), layer=step.index)
    channel.recv_control(Kind.SETUP_DONE)


def test_a_model_that_another_connection_replaces_is_dealt_to_the_end_of_its_own(parties, caplog):
    newer = parties.endpoint("server").connect(parties.dealer.address, "dealer")
    parties.ending.append(newer)
    other = {**parties.server.model.public.fields, "model_id": "0" * 32}
    set_up(newer, parties.server.model.program, **other)
    parties.deal(parties.connect_dealer(), bytes(16), **parties.request())
    assert "unexpected failure" not in caplog.text


def test_who_waits_for_other_bundles_is_told_in_time(idle_parties):
    idle_parties.timeouts = replace(idle_parties.timeouts, read_s=1.0)
    idle_parties.start_dealer()
    idle_parties.start_server()
    client, store = idle_parties.client()
    client.load_weight_pads()
    (link,) = idle_parties.dealer._links.values()
    with (
        link.lock,
        pytest.raises(PeerRefusal, match=r"keep the dealer busy for more than 0\.\d+ s; try again") as caught,
    ):
        client.prepare(1)
    assert caught.value.code is ErrorCode.BUSY
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 1}
    idle_parties.assert_serves(client)
