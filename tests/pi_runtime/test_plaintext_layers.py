"""Layers of the plaintext backend. Oracles: the graph's own nodes, the timed figure, and profiles written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pi_runtime import plaintext_layers
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.plaintext_backend import PROFILED_RUNS, PlaintextBackend
from pi_runtime.plaintext_layers import LAYOUT, profile_layers

IMAGE = np.zeros((1, 1, 8, 8), np.float32)


@pytest.fixture(params=[1.0, 0.4], ids=["all ReLUs", "some ReLUs"])
def model(request, make_net, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(make_net(request.param), (1, 8, 8), path)
    return path


def test_layers_are_nodes_of_the_graph_and_every_convolution_is_one(model):
    nodes = {(node.name, node.op, node.relu_count) for node in load_onnx(model).nodes}
    with PlaintextBackend() as backend:
        backend.prepare(model)
        _, cost = backend.infer(IMAGE)
    found = [(layer.name, layer.op, layer.relu_count) for layer in cost.layers]
    assert set(found) <= nodes | {(LAYOUT, LAYOUT, 0)}
    assert {entry for entry in nodes if entry[1] in ("conv", "linear")} <= set(found)
    assert len(found) == len(set(found))
    for layer in cost.layers:
        assert (layer.phase, layer.cost.total_bytes, layer.cost.rounds) == ("online", 0, 0)
        assert 0 <= layer.cost.seconds < 1


def test_each_profiled_run_is_handed_out_once_and_only_for_one_image(model):
    with PlaintextBackend() as backend:
        backend.prepare(model)
        assert backend.infer(np.zeros((2, 1, 8, 8), np.float32))[1].layers == ()
        seen = [backend.infer(IMAGE)[1].layers for _ in range(PROFILED_RUNS + 1)]
    assert all(seen[:-1])
    assert seen[-1] == ()
    assert len({id(layers) for layers in seen}) == PROFILED_RUNS + 1


def test_what_is_timed_is_not_profiled_and_setup_is_over_before(model, monkeypatch):
    """The session of the timed runs has no profile; the profile's own clock is in no phase."""
    profiled = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, **rest: (profiled.append(options.enable_profiling), real(source, options, **rest))[1],
    )
    now = iter(range(100))
    monkeypatch.setattr("pi_runtime.plaintext_backend.time.perf_counter", lambda: float(next(now)))
    with PlaintextBackend() as backend:
        backend.prepare(model)
        _, cost = backend.infer(IMAGE)
    assert profiled == [False, True]
    assert (cost.phases["setup"].seconds, cost.phases["online"].seconds) == (1.0, 1.0)


def _chain(path: Path) -> Path:
    """conv -> relu -> conv2, added to the relu -> relu2 -> pooling, nodes without names."""
    weight = numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), "w")
    wires = [
        ("Conv", ["x", "w"], "a"),
        ("Relu", ["a"], "b"),
        ("Conv", ["b", "w"], "c"),
        ("Add", ["c", "b"], "d"),
        ("Relu", ["d"], "e"),
        ("GlobalAveragePool", ["e"], "f"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8, *size])
        for name, size in (("x", (4, 4)), ("f", (1, 1)))
    ]
    graph = helper.make_graph([helper.make_node(op, i, [o]) for op, i, o in wires], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Written:
    """A session whose profile is what a test wrote: (kernel, microseconds) of each run."""

    def __init__(self, path, *runs):
        events, at = [], 0
        for kernels in runs:
            total = sum(dur for _, dur in kernels)
            events.append({"cat": "Session", "name": "model_run", "ts": at, "dur": total})
            for name, dur in kernels:
                events.append({"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": dur})
                at += dur
        path.write_text(json.dumps(events[::-1]), encoding="utf-8")
        self.path, self.runs = path, 0

    def run(self, _, feed):
        assert feed["x"].shape == (1, 8, 4, 4)
        self.runs += 1

    def end_profiling(self):
        return str(self.path)


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (  # nothing fused
            [("a", 7), ("b", 1), ("c", 5), ("d", 2), ("e", 1), ("f", 3)],
            {"a": 7, "b": 1, "c": 5, "d": 2, "e": 1, "f": 3},
        ),
        (  # fused and re-laid: the first ReLU's name stands for its convolution, the second convolution has the rest
            [("ReorderInput", 4), ("b_nchwc", 8), ("c_nchwc", 6), ("f_nchwc", 3), ("ReorderOutput_token_2", 1)],
            {"a": 8, "c": 6, "f": 3, LAYOUT: 5},
        ),
        ([("fused a", 8), ("c", 5), ("d", 2), ("e_token_7", 1), ("f", 3)], {"a": 8, "c": 5, "d": 2, "e": 1, "f": 3}),
    ],
)
def test_kernels_are_booked_on_the_nodes_that_they_compute(tmp_path, monkeypatch, kernels, expected):
    path = _chain(tmp_path / "m.onnx")
    session = Written(tmp_path / "profile.json", [("a", 1000)], kernels, [(name, 2 * dur) for name, dur in kernels])
    monkeypatch.setattr(plaintext_layers.onnxruntime, "InferenceSession", lambda *_, **__: session)
    first, second = profile_layers(path, load_onnx(path), onnxruntime.SessionOptions(), runs=2)
    assert session.runs == 3
    assert {layer.name: layer.cost.seconds for layer in first} == pytest.approx(
        {k: v / 1e6 for k, v in expected.items()}
    )
    assert {layer.name: layer.cost.seconds for layer in second} == pytest.approx(
        {k: 2 * v / 1e6 for k, v in expected.items()}
    )
