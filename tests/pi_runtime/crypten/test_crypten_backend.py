"""The crypten backend through its real processes, against onnxruntime, traffic formulas and the kernel's counts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pi_runtime.backend import ROLES, sum_costs
from pi_runtime.backends import open_backend
from pi_runtime.crypten.crypten_graph import build_crypten_graph, run_node
from pi_runtime.errors import BackendError, ConfigError, GraphError, LocalProtocolError
from pi_runtime.onnx_graph import load_onnx

ULP = 2.0**-16
# Words of 64 bits that a party opens for one ReLU: the first AND of the adder (2), six levels of it on two rows (4
# each), one bit to arithmetic (1), one product (2).
RELU_BYTES = 8 * (2 + 6 * 4 + 1 + 2)
KEPT = (40, 80, 160)
SHAPE = (4, 9, 8)


def onnx_of_every_operator(path, rng):
    """Every operator of the set, with the attributes that CrypTen's own modules lack; three ReLU layers keep KEPT."""
    constants, nodes = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(name, *shape):
        return constant(name, (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    def add(kind, inputs, output, **attrs):
        nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}.{output}", **attrs))
        return output

    def sparse_relu(wire, output, size, count):
        kept = np.sort(rng.choice(size, count, replace=False)).astype(np.int64)
        index = constant(f"{output}.kept", kept)
        row = constant(f"{output}.row", kept[None])
        flat = add("Flatten", [wire], f"{output}.flat")
        part = add("Relu", [add("Gather", [flat, index], f"{output}.part", axis=1)], f"{output}.rectified")
        leading = add("Shape", [part], f"{output}.size")
        spread = add("Expand", [row, leading], f"{output}.index")
        return add("ScatterElements", [flat, spread, part], output, axis=1)

    x = add(
        "BatchNormalization", ["images", *(constant(f"n{i}", np.float32([0.5, 1, 1.5, 2])) for i in range(4))], "norm"
    )
    x = add("Conv", [x, weights("w0", 6, 2, 3, 3), weights("b0", 6)], "asymmetric", group=2, pads=[1, 0, 0, 1])  # 6x8x7
    x = add("Relu", [x], "full")
    y = add("Conv", [x, weights("w1", 6, 6, 3, 3)], "dilated", dilations=[2, 2], pads=[2, 2, 2, 2])
    x = add("Add", [x, y], "sum")
    x = add("Add", [x, x], "twice")
    pooled = [
        add("MaxPool", [x], "max", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
        add("AveragePool", [x], "mean", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1], count_include_pad=0),
        add("AveragePool", [x], "padded", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1], count_include_pad=1),
    ]  # 6x4x4 each
    x = add("Concat", [*pooled, pooled[0]], "joined", axis=1)  # 24x4x4
    x = add("Pad", [x, constant("pads", np.int64([0, 0, 1, 0, 0, 0, 0, 2]))], "margin")  # 24x5x6
    bounds = [
        constant(key, np.int64(value))
        for key, value in (("from", [0, 1]), ("to", [24, 6]), ("axes", [1, 3]), ("by", [2, 2]))
    ]
    x = add("Slice", [x, *bounds], "every_other")  # 12x5x3
    # Branches, so that no error passes through many layers and each operator shows in the output.
    ends = [x, *pooled, "asymmetric", "twice"]
    for position, count in enumerate(KEPT):
        y = sparse_relu(x, f"sparse{position}", 180, count)
        ends.append(
            add("Gemm", [y, weights(f"g{position}", 30, 180), weights(f"c{position}", 30)], f"d{position}", transB=1)
        )
    y = add("Reshape", [y, constant("shape", np.int64([0, 12, 5, 3]))], "map")
    y = add("Flatten", [add("GlobalAveragePool", [y], "global")], "features")
    ends.append(add("MatMul", [y, weights("w2", 12, 5)], "product"))
    add("Concat", [add("Flatten", [end], f"{end}.row") for end in ends], "logits", axis=1)
    graph = helper.make_graph(
        nodes,
        "every operator",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        constants,
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def error_bound(graph, images):
    """The largest error that rounding to 16 fraction bits can cause, in the maximum norm, worked out wire by wire.

    A parameter or image is off by half a unit at most, a truncation by two (shares, then their sum).
    """
    plain = build_crypten_graph(graph)
    wires, errors = {graph.input: torch.tensor(images)}, {graph.input: ULP / 2}
    for node in graph.nodes:
        wires[node.output] = run_node(plain, node, wires)
        error = max(errors[wire] for wire in node.inputs)
        if node.op == "add":
            error = sum(errors[wire] for wire in node.inputs)
        elif node.op == "avg_pool":
            error += 2 * ULP
        elif "weight" in node.params:
            rows = np.abs(node.params["weight"]).reshape(len(node.params["weight"]), -1)
            terms = rows.shape[1]
            largest = float(wires[node.inputs[0]].abs().max()) + error
            error = error * float(rows.sum(1).max()) + terms * largest * ULP / 2 + ULP / 2 + 2 * ULP
        errors[node.output] = error
    return errors[graph.output]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("crypten") / "model.onnx"
    onnx_of_every_operator(path, np.random.default_rng(7))
    return path


@pytest.fixture(scope="module")
def backend(model_path):
    with open_backend("crypten") as backend:
        backend.prepare(model_path)
        yield backend


def images(batch):
    return np.random.default_rng(batch).standard_normal((batch, *SHAPE)).astype(np.float32)


def plain_logits(path, batch):
    with open_backend("plaintext") as reference:
        reference.prepare(path)
        return reference.infer(images(batch))[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_every_operator_equals_onnxruntime_to_the_fixed_point_bound(backend, model_path, batch):
    logits, _ = backend.infer(images(batch))
    expected = plain_logits(model_path, batch)
    bound = error_bound(load_onnx(model_path), images(batch))
    assert bound < np.ptp(expected) / 20
    assert np.abs(logits - expected).max() <= bound


def test_layers_add_up_to_the_phases(backend):
    _, cost = backend.infer(images(1))
    for phase in ("offline", "online"):
        total = sum_costs(layer.cost for layer in cost.layers if layer.phase == phase)
        assert total.sent_bytes == cost.phases[phase].sent_bytes
        assert (total.messages, total.rounds) == (cost.phases[phase].messages, cost.phases[phase].rounds)
    assert cost.phases["setup"].total_bytes > 0


def test_what_was_sent_is_what_the_others_received(backend):
    backend.infer(images(1))
    if backend.byte_source != "tcp_info":
        pytest.skip("this kernel does not count bytes")
    totals = backend._totals().values()
    assert sum(total["sent_bytes"] for total in totals) == sum(total["received_bytes"] for total in totals)


@pytest.mark.parametrize("batch", [1, 2])
def test_relu_traffic_is_in_proportion_to_the_kept_elements(backend, batch):
    _, cost = backend.infer(images(batch))
    online = {layer.relu_count: layer.cost for layer in cost.layers if layer.phase == "online" and layer.op == "relu"}
    assert set(KEPT) < set(online)
    for role in ("client", "server"):
        framing = {online[kept].sent_bytes[role] - batch * kept * RELU_BYTES for kept in KEPT}
        assert len(framing) == 1
        assert 0 < framing.pop() < 20_000
    assert {online[kept].rounds for kept in KEPT} == {9}
    offline = {layer.relu_count: layer.cost for layer in cost.layers if layer.phase == "offline" and layer.op == "relu"}
    # c of each AND (1 + 6 * 2 words), of the bit conversion and of the product; requests are the same for any count.
    for fewer, more in pairwise(KEPT):
        grown = offline[more].sent_bytes["dealer"] - offline[fewer].sent_bytes["dealer"]
        assert grown == pytest.approx(batch * (more - fewer) * 8 * 15, abs=64)


def test_each_phase_is_paid_by_its_roles(backend):
    _, cost = backend.infer(images(1))
    assert cost.phases["online"].sent_bytes["dealer"] == 0
    assert cost.phases["offline"].sent_bytes["client"] == 0
    assert cost.phases["offline"].sent_bytes["dealer"] > cost.phases["offline"].sent_bytes["server"] > 0
    for role in ("client", "server"):
        assert cost.phases["online"].sent_bytes[role] > 0
    free = {"concat", "slice", "pad", "reshape", "add", "avg_pool", "input"}
    for layer in cost.layers:
        assert set(layer.cost.sent_bytes) == set(ROLES)
        assert (layer.cost.total_bytes == 0) == (layer.op in free or (layer.op, layer.phase) == ("output", "offline"))


def test_material_made_ahead_is_used_once(backend):
    backend.offline(2, count=2)
    before = backend._totals()["dealer"]["sent_bytes"]
    first, _ = backend.infer(images(2))
    second, _ = backend.infer(images(2))
    assert backend._totals()["dealer"]["sent_bytes"] == before
    backend.infer(images(2))
    assert backend._totals()["dealer"]["sent_bytes"] > before
    assert np.abs(first - second).max() < np.ptp(first) / 20


def test_images_of_another_shape_are_refused(backend):
    with pytest.raises(ConfigError, match=r"images must be \[B, 4, 9, 8\], got \(1, 3, 9, 8\)"):
        backend.infer(np.zeros((1, 3, 9, 8), np.float32))


def test_a_killed_process_gives_one_clear_line_and_ends_the_others(model_path):
    with open_backend("crypten") as backend:
        backend.prepare(model_path)
        pids = {role: process.pid for role, process in backend._processes.items()}
        os.kill(pids["client"], signal.SIGKILL)
        with pytest.raises(BackendError, match="the client process was killed by signal 9"):
            backend.infer(images(1))
        assert not [pid for pid in pids.values() if is_running(pid)]
        with pytest.raises(LocalProtocolError, match="call prepare first"):
            backend.infer(images(1))


def test_an_occupied_port_is_named_at_once(model_path):
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        started = time.monotonic()
        with (
            open_backend("crypten", port=port) as backend,
            pytest.raises(BackendError, match=f"port {port} on 127.0.0.1 cannot be used .*; give another --port"),
        ):
            backend.prepare(model_path)
        assert time.monotonic() - started < 3


def test_a_truncated_model_is_refused_by_the_server(model_path, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model_path.read_bytes()[:300])
    with open_backend("crypten") as backend, pytest.raises(GraphError, match="not a whole ONNX model"):
        backend.prepare(broken)


def test_no_process_outlives_a_backend_that_was_killed(model_path):
    script = (
        "import sys, time; from pathlib import Path; from pi_runtime.backends import open_backend\n"
        "backend = open_backend('crypten'); backend.prepare(Path(sys.argv[1]))\n"
        "print(*(process.pid for process in backend._processes.values()), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(model_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.kill()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid):
    """Whether the process exists and is no zombie that waits for its parent."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
