"""What an inference costs, without running it. Oracles: the counts of three roles that ran, and sizes by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from pi_runtime.backend import ROLES
from pi_runtime.cli.main import cli
from pi_runtime.errors import ConfigError
from pi_runtime.export import export_onnx
from pi_runtime.net.messages import Kind
from pi_runtime.net.wire import HEADER_BYTES, MAX_PAYLOAD_BYTES, as_bytes, split_frames
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.costs import Reading, offline_layers, online_layers
from pi_runtime.preset.estimate import (
    Message,
    bundle_messages,
    count_messages,
    estimate,
    online_messages,
    setup_messages,
)
from pi_runtime.preset.program import compile_program


def read(parties, client):
    """What every role has counted since it began, with nothing under way."""
    assert parties.server.wait_idle(10)
    assert parties.dealer.wait_idle(10)
    traffic = {
        "client": client.ledger.traffic(),
        "server": parties.server.ledger.traffic(),
        "dealer": parties.dealer.ledger.traffic(),
    }
    return Reading(traffic, {})


def by_tag(reading):
    return {role: dict(reading.traffic[role].by_tag) for role in ROLES}


def declared(messages):
    return {role: dict(traffic.by_tag) for role, traffic in count_messages(messages).items()}


def exported(net, directory, **metadata):
    export_onnx(net, (1, 8, 8), directory / "model.onnx", metadata=metadata or None)
    return load_onnx(directory / "model.onnx")


def keep(net, count):
    """Keeps the first ``count`` ReLUs of the first layer and none elsewhere."""
    for name in ("relu1", "relu2", "relu3"):
        getattr(net, name).relu_mask.zero_()
    net.relu1.relu_mask.view(-1)[:count] = 1
    return net


def test_declared_traffic_is_the_measured_one(parties):
    """Of every role and message: payload, framing, messages and rounds, in set-up, offline and online."""
    graph = parties.graph
    program = compile_program(graph.public())
    client, _ = parties.client()
    client.load_weight_pads()
    session = list(setup_messages(graph.public(), program))
    for batch in (1, 2):
        client.prepare(batch)
        client.reserve(batch)
        session += bundle_messages(program, batch)
        prepared = read(parties, client)
        assert by_tag(prepared) == declared(session)
        client.infer(parties.images(batch))
        session += online_messages(program, batch)
        assert by_tag(read(parties, client)) == declared(session)


def test_declared_layers_are_the_measured_ones(parties):
    graph = parties.graph
    program = compile_program(graph)
    client, _ = parties.client()
    for batch in (1, 2):
        exact = estimate(graph.public(), batch)
        client.prepare(batch)  # the first one meets the dealer, too
        before = read(parties, client)
        client.prepare(batch)
        client.reserve(batch)
        made = read(parties, client)
        client.infer(parties.images(batch))
        offline = made.since(before)
        measured = offline_layers(graph, program, offline, {})
        sending = [layer for layer, step in zip(exact.layers, program.steps, strict=True) if step.kind != "public"]
        for found, layer in zip(sending, measured, strict=True):
            assert (found.name, found.op) == (layer.name, layer.op)
            assert found.offline.sent_bytes == layer.cost.sent_bytes
            assert (found.offline.messages, found.offline.rounds) == (layer.cost.messages, layer.cost.rounds)
        _, *measured, _ = online_layers(graph, program, read(parties, client).since(made), {})
        for found, layer in zip(exact.layers, measured, strict=True):
            assert (found.name, found.relu_count) == (layer.name, layer.relu_count)
            assert found.online.sent_bytes == layer.cost.sent_bytes
            assert (found.online.messages, found.online.rounds) == (layer.cost.messages, layer.cost.rounds)


def test_bundle_files_have_the_declared_sizes(parties):
    exact = estimate(parties.graph, 2)
    client, _ = parties.client()
    client.prepare(2)
    sizes = {
        side: [path.stat().st_size for path in (parties.directory / where).rglob("*.material")]
        for side, where in (("server", "server/bundles"), ("client", "client"))
    }
    assert sizes == {"server": [exact.server_bundle_bytes], "client": [exact.client_bundle_bytes]}


def test_a_layer_that_kept_nothing_costs_nothing(make_net, tmp_path):
    full = exported(make_net(1.0), tmp_path)
    kept_none = np.empty(0, np.int64)
    graph = replace(full, nodes=tuple(replace(n, kept=kept_none) if n.name == "relu2" else n for n in full.nodes))
    before, exact = estimate(full, 3), estimate(graph, 3)
    (layer,) = [layer for layer in exact.layers if layer.name == "relu2"]
    assert (layer.op, layer.relu_count) == ("relu", 0)
    for volume in (layer.online, layer.offline):
        assert (volume.total_bytes, volume.messages, volume.rounds) == (0, 0, 0)
    (gone,) = [layer for layer in before.layers if layer.name == "relu2"]
    assert gone.relu_count == 8 * 16
    for phase in ("online", "offline"):
        saved = getattr(gone, phase)
        assert getattr(before, phase).total_bytes - getattr(exact, phase).total_bytes == saved.total_bytes > 0
        assert getattr(before, phase).messages - getattr(exact, phase).messages == saved.messages > 0
    assert (before.online.rounds, exact.online.rounds) == (4, 3)


def test_a_network_without_relus_sends_its_input_and_its_logits(make_net, tmp_path):
    net = make_net()
    none = estimate(exported(keep(net, 0), tmp_path), 3)
    assert (none.online.messages, none.online.rounds, none.opening_bytes, none.answer_bytes) == (2, 1, 0, 0)
    assert none.online.sent_bytes == {"client": 3 * 8 * 64 + 16, "server": 3 * 4 * 4 + 16, "dealer": 0}


@pytest.mark.parametrize("batch", [1, 3])
def test_online_bytes_are_linear_in_the_kept_count(make_net, tmp_path, batch):
    """A ReLU of 24 bits: 3 bytes opened, 8 answered, and 5 bits of each side."""
    net = make_net()
    none = estimate(exported(keep(net, 0), tmp_path), batch).online.total_bytes
    for count in (8, 16, 64, 384):
        total = estimate(exported(keep(net, count), tmp_path), batch).online.total_bytes
        assert total - none - 2 * HEADER_BYTES == batch * count * (3 + 8 + 2 * 5 / 8)


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 3 * MAX_PAYLOAD_BYTES])
def test_long_messages_take_the_frames_that_the_wire_cuts(size):
    frames = list(split_frames([as_bytes(bytes(size))])) if size else [[]]
    assert Message("dealer", "server", Kind.GATE_SHARE, size, 0).framing_bytes == HEADER_BYTES * len(frames)


def test_a_batch_out_of_range_is_refused(preset_graph):
    with pytest.raises(ConfigError, match="batch must be from 1 to 65,536, got 0"):
        estimate(preset_graph, 0)


def run(*arguments):
    result = CliRunner().invoke(cli, ["estimate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def test_the_verb_takes_all_three_forms_of_a_model(make_net, tmp_path):
    graph = exported(make_net(0.4), tmp_path)
    public = tmp_path / "model.public.json"
    graph.save_public(public)
    documents = [run(path, "--no-timing", "--batch", 2)[0] for path in (tmp_path, tmp_path / "model.onnx", public)]
    for document in documents:
        assert document.pop("model").startswith(str(tmp_path))
        assert document["latency"] is None
    assert documents[0] == documents[1] == documents[2]
    exact = estimate(graph, 2)
    assert documents[0]["online"]["sent_bytes"] == exact.online.sent_bytes
    assert documents[0]["online"]["kind"] == documents[0]["stored"]["kind"] == "exact"
    assert documents[0]["relu_count"] == graph.relu_count
    online = documents[0]["online"]
    parts = ("input", "opening", "answer", "logit")
    assert sum(online[f"{part}_payload_bytes"] for part in parts) == sum(online["payload_bytes"].values())


def test_errors_name_what_is_wrong(make_net, tmp_path):
    from pi_runtime.errors import GraphError

    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "bad.json").write_text("{}")
    exported(make_net(0.4), tmp_path)
    for arguments, kind, message in (
        (["missing.onnx"], ConfigError, "there is no file missing.onnx"),
        ([str(empty)], ConfigError, "has no model.onnx or model.public.json"),
        ([str(tmp_path / "bad.onnx")], GraphError, "bad.onnx"),
        ([str(tmp_path / "bad.json")], GraphError, "not a public graph"),
        ([str(tmp_path), "--network", "moon"], ConfigError, "a network profile is one of loopback, lan, wan, mobile"),
    ):
        with pytest.raises(kind, match=message):
            run(*arguments)
