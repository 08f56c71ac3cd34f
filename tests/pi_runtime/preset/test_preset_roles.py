"""Inference by three roles over real sockets. Oracles: the simulator bit by bit, the declared sizes, the stores."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pi_runtime.errors import ConfigError
from pi_runtime.export import export_onnx
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import ErrorCode
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.bundle import BundleLayout, part_bytes
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.online import input_bytes, logit_bytes, opening_sizes
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.simulator import simulate


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_logits_equal_the_simulator_bit_for_bit(parties, batch):
    client, store = parties.client()
    images = parties.images(batch)
    client.prepare(batch)
    pads = parties.pads_of(client, store, batch)
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


def test_a_server_with_another_model_erases_what_belongs_to_the_old_one(parties, make_net, tmp_path):
    client, store = parties.client()
    client.prepare(1, 2)
    old, address = client.model.model_id, parties.server.address
    parties.stop(parties.server)
    # Other weights, the same public graph: the dealer's file stays right.
    net = make_net(0.4)
    net.fc.weight.data += 0.01
    export_onnx(net, (1, 8, 8), tmp_path / "other.onnx")
    other = load_onnx(tmp_path / "other.onnx")
    assert other.public_hash == parties.graph.public_hash
    parties.graph = other
    server = parties.start_server(address)
    assert server._store.counts() == {"reserved": 0, "ready": 0, "spent": 2}
    assert list((parties.directory / "server" / "bundles").glob("*.material")) == []
    client.infer(parties.images(1))
    assert client.model.model_id != old
    assert store.counts() == {"reserved": 0, "ready": 0, "spent": 3}
    assert list(store.directory.glob("*.material")) == []


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
