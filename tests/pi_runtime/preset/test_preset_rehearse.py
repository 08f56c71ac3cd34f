"""The seconds of ``estimate``. Oracles: terms by hand, a fake machine of known cost, and rows that it had given."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from benchmarks.schema import Environment, ReluLayer, Results, Row, Schedule, SentBytes, Subject
from pi_runtime.backend import Cost, LayerCost, RunCost
from pi_runtime.cli.main import cli
from pi_runtime.errors import ConfigError
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset import rehearse as module
from pi_runtime.preset.estimate import Volume, estimate
from pi_runtime.preset.latency import MOST_WAKING_S
from pi_runtime.preset.rehearse import Rehearsal, rehearse, summarise
from pi_runtime.preset.stand_in import load_served

LINEAR_S, ROUND_S, RELU_S, REST_S, OFFLINE_S = 0.020, 0.0003, 1e-7, 0.002, 0.25
DEALT_S = {"relu1": 0.03, "conv2": 0.01}
COUNTS = {"relu1": 100, "relu2": 5000, "relu3": 40000}
FAST = Rehearsal(
    linear_s=0.5, gate_s=0.25, rest_s=0.25, online_s=1.0, offline_s=2.0, dealt=(), round_s=3e-4, relu_s=1e-7, runs=9
)


def layer(name, op, count, seconds):
    return LayerCost(name=name, op=op, relu_count=count, phase="online", cost=Cost(seconds=seconds))


def dealt_layer(name, seconds):
    cost = Cost(seconds=seconds, sent_bytes={"client": 10, "server": 0, "dealer": 100})
    return LayerCost(name=name, op="relu", relu_count=1, phase="offline", cost=cost)


def one_run(batch, slow=1.0):
    """An inference on a machine of the constants above, ``slow`` times as slow."""
    layers = [layer(f"conv{i}", "conv", 0, slow * LINEAR_S / 4) for i in range(4)]
    layers += [layer(name, "relu", count, slow * (ROUND_S + batch * count * RELU_S)) for name, count in COUNTS.items()]
    layers += [layer("none", "relu", 0, 0.0), layer("add", "add", 0, slow * REST_S / 2)]
    layers += [dealt_layer(name, slow * seconds) for name, seconds in DEALT_S.items()]
    online = slow * (LINEAR_S + 3 * ROUND_S + batch * sum(COUNTS.values()) * RELU_S + REST_S)
    phases = {"setup": Cost(), "offline": Cost(seconds=slow * OFFLINE_S), "online": Cost(seconds=online)}
    return RunCost(phases=phases, layers=tuple(layers))


def volume(client, server, dealer, rounds):
    return Volume(
        payload_bytes={"client": client, "server": server, "dealer": dealer},
        framing_bytes=dict.fromkeys(("client", "server", "dealer"), 0),
        messages=2 * rounds,
        rounds=rounds,
    )


def exported(net, directory, **metadata):
    export_onnx(net, (1, 8, 8), directory / "model.onnx", metadata=metadata or None)
    return load_onnx(directory / "model.onnx")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_machine_of_known_cost_is_taken_apart_into_its_terms(batch):
    """The median run of three; a line through the layers gives the cost of a round and of a ReLU."""
    found = summarise([one_run(batch, slow) for slow in (1.0, 0.9, 5.0)], batch)
    gates_s = 3 * ROUND_S + batch * sum(COUNTS.values()) * RELU_S
    assert found.linear_s == pytest.approx(LINEAR_S)
    assert found.gate_s == pytest.approx(gates_s)
    assert found.rest_s == pytest.approx(REST_S)
    assert found.online_s == pytest.approx(LINEAR_S + gates_s + REST_S)
    assert found.offline_s == pytest.approx(OFFLINE_S)
    assert {entry.name: entry.seconds for entry in found.dealt} == pytest.approx(DEALT_S)
    assert {tuple(entry.sent_bytes.values()) for entry in found.dealt} == {(10, 0, 100)}
    assert (found.round_s, found.relu_s) == (pytest.approx(ROUND_S), pytest.approx(RELU_S))
    assert found.runs == 3


def test_rounds_and_relus_are_not_told_apart_by_a_restless_machine():
    run = one_run(1)
    backwards = [replace(entry, cost=Cost(seconds=1.0 / (1 + entry.relu_count))) for entry in run.layers]
    found = summarise([replace(run, layers=tuple(backwards))], 1)
    assert (found.round_s, found.relu_s) == (None, None)
    alike = [entry for entry in run.layers if entry.name != "relu3"]
    assert summarise([replace(run, layers=tuple(alike))], 1).round_s is None


def test_a_rehearsal_runs_the_public_graph_of_a_network(tmp_path):
    """With a MaxPool, whose gates are its own: the processes are real, so is every term."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()
    )
    graph = exported(torch.nn.Sequential(net, torch.nn.Linear(64, 3)), tmp_path)
    found = rehearse(graph.public(), 2, measure_s=0.0)
    assert found.runs == 3
    assert all(0 < seconds < 60 for seconds in (found.linear_s, found.gate_s, found.rest_s, found.offline_s))
    exact = [entry for entry in estimate(graph, 2).layers if any(entry.offline.sent_bytes.values())]
    assert [entry.sent_bytes for entry in found.dealt] == [entry.offline.sent_bytes for entry in exact]
    assert 0 < sum(entry.seconds for entry in found.dealt) < 3 * found.offline_s
    assert found.linear_s + found.gate_s < 3 * found.online_s, "medians of parts of the same few runs"


def test_weights_of_a_rehearsal_are_drawn(preset_graph, tmp_path):
    path = tmp_path / "model.public.json"
    preset_graph.save_public(path)
    graph = load_served(path, random_weights=True)
    assert graph.public_hash == preset_graph.public_hash
    for node in graph.nodes:
        assert {name: value.shape for name, value in node.params.items()} == dict(node.param_shapes)


def test_a_rehearsal_that_would_not_fit_is_refused(preset_graph, monkeypatch):
    monkeypatch.setattr(module, "MAX_REHEARSED_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"batch 7 needs [\d,]+ bytes of material.*--no-timing"):
        rehearse(preset_graph, 7)


def run(*arguments):
    result = CliRunner().invoke(cli, ["estimate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), " ".join(result.stderr.split())


def test_the_verb_shows_each_term_of_the_modelled_latency(make_net, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rehearse", lambda graph, batch, threads: FAST)
    exported(make_net(0.4), tmp_path)
    document, shown = run(tmp_path, "--network", "bandwidth_mbps=8,rtt_ms=100", "--threads", 2)
    modelled = document["latency"]
    assert modelled["kind"] == "modelled"
    assert modelled["compute_seconds"] == 1.0
    assert modelled["round_trip_seconds"] == pytest.approx(0.1 * document["online"]["rounds"])
    assert modelled["transfer_seconds"] == pytest.approx(document["online"]["total_bytes"] / 1e6)
    assert modelled["offline"]["transfer_seconds"] == pytest.approx(document["offline"]["sent_bytes"]["dealer"] / 1e6)
    assert (modelled["bandwidth_mbps"], modelled["rtt_ms"], modelled["party_threads"]) == (8, 100, 2)
    for text in (
        "modelled latency on",
        "rounds of 100 ms: 4, 4",
        "300 µs a round and 100 ns a ReLU",
        "exact bytes by layer",
        "exact bytes by phase",
        "left out",
    ):
        assert text in shown
    assert run(tmp_path, "--network", "loopback")[0]["latency"]["bandwidth_mbps"] is None


def measured_rows(graph, exact, cost):
    """Rows of `preset` at two budgets, the second that of ``graph``; ``cost`` gives seconds by network and phase."""
    subjects = [
        Subject(
            name=name,
            model="net",
            dataset="none",
            relu_total=graph.metadata["relu_total"],
            relu_budget=count,
            relu_count=count,
            mask="random",
            weights="random",
            images="noise",
        )
        for name, count in (("7", 7), ("own", graph.relu_count))
    ]
    volumes = {"online": exact.online, "offline": exact.offline}
    rows = [
        Row(
            backend="preset",
            subject=subject.name,
            network=network,
            kind="measured",
            phase=phase,
            sweep=0,
            images=1,
            seconds=(cost[network, phase],),
            sent_bytes=SentBytes(**volumes[phase].sent_bytes),
            messages=volumes[phase].messages,
            rounds=volumes[phase].rounds,
        )
        for subject in subjects
        for network, phase in cost
    ]
    environment = Environment(
        cpu="a CPU", cores=2, memory_bytes=1, system="s", python="3", packages={}, threads=2, commit=None
    )
    schedule = Schedule(runs=1, warmup=0, sweeps=1, subjects_at_once=1, accuracy_batch=1)
    return Results(
        inputs_sha256="0", subjects=tuple(subjects), schedule=schedule, rows=tuple(rows), environment=environment
    )


def test_a_check_compares_with_the_rows_of_the_same_network(make_net, tmp_path, monkeypatch):
    """Measured 1.25 s for a predicted 1 s is -20 %; on the WAN the exact counts are predicted, 0 % off."""
    graph = exported(make_net(0.4), tmp_path)
    exact = estimate(graph, 1)
    asked = []
    monkeypatch.setattr(module, "rehearse", lambda graph, batch, threads: asked.append((batch, threads)) or FAST)
    wan_s = 1.0 + (0.04 + MOST_WAKING_S) * exact.online.rounds + exact.online.total_bytes / 12.5e6
    cost = {
        ("loopback", "online"): 1.25,
        ("loopback", "offline"): 2.0,
        ("wan", "online"): wan_s,
        ("moon", "online"): 9.0,
    }
    measured_rows(graph, exact, cost).save(tmp_path / "results.json")
    document, shown = run(tmp_path / "model.onnx", "--check", tmp_path / "results.json")
    assert asked == [(1, 2)], "one rehearsal, with the threads of the results"
    found = {(entry["network"], entry["phase"]): entry for entry in document["check"]}
    assert found.keys() == cost.keys() - {("moon", "online")}
    assert {entry["subject"] for entry in document["check"]} == {"own"}
    assert found["loopback", "online"]["error"] == pytest.approx(-0.2)
    assert found["loopback", "offline"]["error"] == pytest.approx(0)
    assert found["wan", "online"]["error"] == pytest.approx(0)
    assert document["largest_error"] == pytest.approx(0.2)
    for entry in document["check"]:
        assert entry["predicted_bytes"] == entry["measured_bytes"] > 0
    assert "predicted against measured" in shown
    assert "-20.0 %" in shown


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (1, ("--check",), r"--check needs rows of preset for .*; the results have 7 of \d+, \d+ of \d+"),
        (2, (), "one MODEL is estimated at a time, got 2"),
        (0, (), "one MODEL is estimated at a time, got 0"),
    ],
)
def test_what_cannot_be_checked_is_refused(make_net, tmp_path, count, arguments, message):
    graph = exported(make_net(0.4), tmp_path)
    results = measured_rows(graph, estimate(graph, 1), {("loopback", "online"): 1.0})
    without = results.model_copy(update={"rows": ()})
    without.save(tmp_path / "results.json")
    options = [*arguments, tmp_path / "results.json"] if arguments else []
    expectation = pytest.raises(ConfigError, match=message) if arguments else nullcontext()
    with expectation:
        given = [*[tmp_path] * count, *options]
        result = CliRunner().invoke(cli, ["estimate", *map(str, given)], catch_exceptions=False)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_check_tells_networks_of_one_count_by_their_layers(make_net, tmp_path, monkeypatch):
    """A second network keeps as many ReLUs, one more in its first layer and one fewer in its last: not this one."""
    graph = exported(make_net(0.4), tmp_path)
    monkeypatch.setattr(module, "rehearse", lambda graph, batch, threads: FAST)
    base = measured_rows(graph, estimate(graph, 1), {("loopback", "online"): 1.0})
    own, layers = base.subjects[1], graph.relu_layers
    other = own.model_copy(update={"name": "other"})
    moved = {layers[0].name: 1, layers[-1].name: -1}
    kept = [
        ReluLayer(subject=subject.name, layer=node.name, elements=10_000, relu_count=node.relu_count + more)
        for subject in (own, other)
        for node in layers
        for more in [moved.get(node.name, 0) if subject is other else 0]
    ]
    rows = [row.model_copy(update={"subject": name}) for row in base.rows[:1] for name in ("own", "other")]
    base.model_copy(update={"subjects": (own, other), "rows": tuple(rows), "relu_layers": tuple(kept)}).save(
        tmp_path / "results.json"
    )
    document, _ = run(tmp_path / "model.onnx", "--check", tmp_path / "results.json")
    assert {entry["subject"] for entry in document["check"]} == {"own"}


def test_a_check_shows_the_cost_law_of_held_back_counts(make_net, tmp_path):
    """Rows of 0.01 s and 1e-6 s a ReLU at four counts: a law fitted on two of them predicts the others."""
    graph = exported(make_net(0.4), tmp_path)
    base = measured_rows(graph, estimate(graph, 1), {("loopback", "online"): 1.0})
    counts = (100, 200, 300, 400)
    subjects = [base.subjects[0].model_copy(update={"name": str(n), "relu_count": n}) for n in counts]
    rows = [
        base.rows[0].model_copy(
            update={
                "subject": str(n),
                "seconds": (0.01 + 1e-6 * n,),
                "sent_bytes": SentBytes(client=8 * n, server=3 * n, dealer=0),
            }
        )
        for n in counts
    ]
    path = tmp_path / "results.json"
    base.model_copy(update={"subjects": tuple(subjects), "rows": tuple(rows)}).save(path)
    document, shown = run("--check", path, "--hold-back", "200,400")
    assert (document["check"], document["largest_error"]) == ([], None)
    assert [entry["relu_count"] for entry in document["law"]] == [200, 400]
    assert document["law_largest_error"] == pytest.approx(0, abs=1e-9)
    (told,) = document["law_tallies"]
    assert [(told[where]["within"], told[where]["total"]) for where in ("between", "beyond")] == [(1, 1), (1, 1)]
    assert "400*" in shown
    assert len(run("--check", path)[0]["law"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.onnx", "--hold-back", "200"), "--hold-back goes with --check"),
        (("--check", "results.json", "--hold-back", "full"), "--hold-back must be counts of ReLUs"),
    ],
)
def test_a_hold_back_that_says_nothing_is_refused(arguments, message):
    result = CliRunner().invoke(cli, ["estimate", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
