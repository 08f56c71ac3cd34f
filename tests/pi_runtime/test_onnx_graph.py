"""Reading ONNX: graphs from elsewhere against onnxruntime-equivalent forms, damage and foreign operators by message."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pi_runtime.errors import GraphError
from pi_runtime.export import export_onnx
from pi_runtime.graph import load_public
from pi_runtime.onnx_graph import load_onnx


def write(path, nodes, constants=(), shape=(2, 4, 4), out=(2, 4, 4)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *out])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_public_graph_survives_its_file_and_has_no_parameter(make_net, tmp_path):
    export_onnx(make_net(0.3), (1, 8, 8), tmp_path / "m.onnx")
    graph = load_onnx(tmp_path / "m.onnx")
    graph.save_public(tmp_path / "m.public.json")
    public = load_public(tmp_path / "m.public.json")
    assert public.is_public
    assert not graph.is_public
    assert public.public_json() == graph.public_json()
    assert public.public_hash == graph.public().public_hash
    for ours, theirs in zip(graph.nodes, public.nodes, strict=True):
        assert (ours.kept is None) == (theirs.kept is None)
        assert ours.kept is None or np.array_equal(ours.kept, theirs.kept)
    weight = graph.nodes[0].params["weight"].reshape(-1)[0]
    assert f"{weight:.4f}" not in graph.public_json()


def test_prelu_of_zeros_and_ones_is_a_masked_relu(tmp_path):
    slope = (np.arange(32).reshape(2, 4, 4) % 3 > 0).astype(np.float32)
    path = write(tmp_path / "m.onnx", [helper.make_node("PRelu", ["x", "s"], ["y"], name="act")], [("s", slope)])
    (node,) = load_onnx(path).nodes
    assert node.op == "relu"
    assert np.array_equal(node.kept, np.flatnonzero(slope == 0))


def test_matmul_and_bias_become_linear_and_affine(tmp_path):
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["y"]),
    ]
    weight, bias = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32), np.ones(3, np.float32)
    graph = load_onnx(write(tmp_path / "m.onnx", nodes, [("w", weight), ("b", bias)], out=(3,)))
    assert [node.op for node in graph.nodes] == ["reshape", "linear", "affine"]
    assert np.array_equal(graph.nodes[1].params["weight"], weight.T)
    assert np.array_equal(graph.nodes[2].params["bias"], bias)


SCATTER = [
    helper.make_node("Flatten", ["x"], ["f"]),
    helper.make_node("Gather", ["f", "i"], ["g"], axis=1),
    helper.make_node("Relu", ["g"], ["r"]),
    helper.make_node("Shape", ["r"], ["s"]),
    helper.make_node("Expand", ["row", "s"], ["rows"]),
    helper.make_node("ScatterElements", ["f", "rows", "r"], ["y"], axis=1),
]


def test_a_scatter_to_other_places_is_refused(tmp_path):
    constants = [("i", np.array([1, 2])), ("row", np.array([[1, 3]]))]
    path = write(tmp_path / "m.onnx", SCATTER, constants, out=(32,))
    with pytest.raises(GraphError, match="not the end of Gather -> Relu -> ScatterElements"):
        load_onnx(path)


def test_indices_in_any_order_are_read_sorted(tmp_path):
    constants = [("i", np.array([9, 2])), ("row", np.array([[9, 2]]))]
    graph = load_onnx(write(tmp_path / "m.onnx", SCATTER, constants, out=(32,)))
    assert graph.nodes[-1].kept.tolist() == [2, 9]


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            [helper.make_node("Sigmoid", ["x"], ["y"], name="gate")],
            [],
            "node 'gate' is a Sigmoid, outside the operator set",
        ),
        ([helper.make_node("PRelu", ["x", "s"], ["y"])], [("s", np.full((2, 1, 1), 0.25, np.float32))], "slopes 0"),
        (
            [helper.make_node("BatchNormalization", ["x", *"abcd"], ["y"])],
            [(name, np.full(2, np.nan, np.float32)) for name in "abcd"],
            "'a' is not finite",
        ),
        ([helper.make_node("Conv", ["x", "x"], ["y"])], [], "weights must be constants|not a whole ONNX model"),
    ],
)
def test_foreign_operations_are_refused_by_name(tmp_path, nodes, constants, message):
    with pytest.raises(GraphError, match=message):
        load_onnx(write(tmp_path / "m.onnx", nodes, constants))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_one_clear_line(make_net, tmp_path, keep):
    export_onnx(make_net(0.3), (1, 8, 8), tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(GraphError, match=r"m\.onnx is not a whole ONNX model .* export it again|must have one input"):
        load_onnx(tmp_path / "m.onnx")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(GraphError, match=r"there is no ONNX file .*pi-pipeline export"):
        load_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "cannot read the public graph"),
        (lambda text: "{}", "is not a public graph of pi-pipeline"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "has schema 9, this version reads 1"),
        (lambda text: text.replace('"op": "conv"', '"op": "gru"'), "unknown operator 'gru'"),
        (lambda text: text.replace('"kept": "', '"kept": "AA'), "is damaged"),
        (
            lambda text: text.replace('"output": "logits"', '"output": "nowhere"').replace("fc.out", "z"),
            "never written",
        ),
    ],
)
def test_a_damaged_public_graph_is_one_clear_line(make_net, tmp_path, change, message):
    export_onnx(make_net(0.3), (1, 8, 8), tmp_path / "m.onnx")
    path = tmp_path / "m.public.json"
    load_onnx(tmp_path / "m.onnx").save_public(path)
    text = path.read_text()
    if "never written" in message:
        text = text.replace('"output": "fc.out",\n "', '"output": "nowhere",\n "')
        path.write_text(text)
    else:
        path.write_text(change(text))
    with pytest.raises(GraphError, match=message):
        load_public(path)
