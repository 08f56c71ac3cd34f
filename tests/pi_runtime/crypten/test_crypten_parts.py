"""The parts of the crypten backend that need no processes."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from pi_runtime.child.control import MAX_HEADER_BYTES, Control
from pi_runtime.crypten.crypten_graph import build_crypten_graph, round_to_encoder, save_crypten_graph
from pi_runtime.crypten.material import StockedProvider
from pi_runtime.crypten.meter import Meter
from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.export import export_onnx
from pi_runtime.graph import Graph, Node, parse_public
from pi_runtime.onnx_graph import load_onnx

# 16 fraction bits of every weight, through three layers of about 50 terms of magnitude one.
TOLERANCE = 5e-3


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_plain_crypten_graph_equals_pytorch(make_net, tmp_path, fraction):
    model = make_net(fraction)
    export_onnx(model, (1, 8, 8), tmp_path / "model.onnx")
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(images)
        logits = build_crypten_graph(load_onnx(tmp_path / "model.onnx"))(images)
    assert (logits - expected).abs().max() < TOLERANCE


def test_a_relu_layer_that_kept_nothing_is_the_identity():
    node = Node(name="relu", op="relu", inputs=("x",), output="y", shape=(4,), kept=np.zeros(0, np.int64))
    graph = Graph(input="x", input_shape=(4,), output="y", nodes=(node,))
    x = torch.tensor([[-1.0, 2.0, -3.0, 4.0]])
    assert torch.equal(build_crypten_graph(graph)(x), x)


def test_both_parties_share_parameters_in_one_order(make_net, tmp_path):
    export_onnx(make_net(), (1, 8, 8), tmp_path / "model.onnx")
    graph = load_onnx(tmp_path / "model.onnx")
    public = parse_public(json.loads(graph.public_json()), origin="test")
    server, client = (
        [(name, tuple(value.size())) for name, value in build_crypten_graph(half).named_parameters()]
        for half in (graph, public)
    )
    assert server == client
    assert all(not value.any() for value in build_crypten_graph(public).parameters())


def test_a_crypten_user_loads_encrypts_and_runs_the_saved_graph(make_net, tmp_path):
    model = make_net(0.3)
    export_onnx(model, (1, 8, 8), tmp_path / "model.onnx")
    save_crypten_graph(load_onnx(tmp_path / "model.onnx"), tmp_path / "model.crypten.pt")
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    np.save(tmp_path / "images.npy", images.numpy())
    script = (
        "import numpy, torch\n"
        "from pi_runtime.crypten.library import import_crypten\n"
        "crypten = import_crypten()\n"
        "crypten.init()\n"
        "model = torch.load('model.crypten.pt', weights_only=False)\n"
        "model.encrypt(src=0)\n"
        "with crypten.no_grad():\n"
        "    logits = model(crypten.cryptensor(torch.from_numpy(numpy.load('images.npy')), src=0))\n"
        "numpy.save('logits.npy', logits.get_plain_text().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() < TOLERANCE


def test_rounding_makes_the_encoder_exact():
    values = torch.tensor([0.1, -0.1, 2.0**-17 * 1.01, -3.99999])
    scaled = round_to_encoder(values).double() * 2**16
    assert torch.equal(scaled, scaled.round())
    assert (scaled / 2**16 - values.double()).abs().max() <= 2.0**-17


def test_importing_crypten_leaves_torch_onnx_as_it_was():
    script = (
        "import importlib.util, sys, torch.onnx\n"
        "name = 'torch.onnx._internal.registration'\n"
        "before = importlib.util.find_spec(name)\n"
        "from pi_runtime.crypten.library import import_crypten\n"
        "assert import_crypten().__version__ == '0.4.1'\n"
        "assert (importlib.util.find_spec(name) is None) == (before is None)\n"
        "assert before is not None or name not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_spent_material_is_refused():
    with pytest.raises(LocalProtocolError, match="no material is left for square"):
        StockedProvider().square(torch.Size([3]))


def test_the_meter_counts_what_a_socket_sends_and_keeps_it_after_the_socket_closed():
    meter = Meter()
    if meter.byte_source != "tcp_info":
        pytest.skip("this kernel does not count bytes")
    before = meter.read()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        with sender, receiver:
            sender.sendall(bytes(100_000))
            received = 0
            while received < 100_000:
                received += len(receiver.recv(65536))
            during = meter.read()
    after = meter.read()
    assert during.sent_bytes - before.sent_bytes == 100_000
    assert during.received_bytes - before.received_bytes == 100_000
    assert after == during


def test_a_control_frame_comes_back_as_it_was_sent():
    ours, theirs = socket.socketpair()
    sender, receiver = Control(ours), Control(theirs)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    sender.send({"command": "infer", "batch": 2}, [array, array.T])
    header, arrays = receiver.receive()
    assert header == {"command": "infer", "batch": 2}
    np.testing.assert_array_equal(arrays[0], array)
    np.testing.assert_array_equal(arrays[1], array.T)
    sender.close()
    with pytest.raises(EOFError):
        receiver.receive()
    receiver.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<I", MAX_HEADER_BYTES + 1), "header must be <="),
        (struct.pack("<I", 2) + b"{]", "header is damaged"),
        (struct.pack("<I", 2) + b"{}", "header is damaged"),
        (struct.pack("<I", 26) + b'{"arrays": [["|O", [1]]]} ', "must have one of the types"),
        (struct.pack("<I", 36) + b'{"arrays": [["<f4", [999999999999]]]}'[:36].ljust(36), "header is damaged"),
        (struct.pack("<I", 37) + b'{"arrays": [["<f4", [999999999999]]]}', "array must be <="),
    ],
)
def test_a_damaged_control_frame_is_refused(data, message):
    ours, theirs = socket.socketpair()
    ours.sendall(data)
    ours.close()
    receiver = Control(theirs)
    with pytest.raises(RemoteProtocolError, match=message):
        receiver.receive()
    receiver.close()
