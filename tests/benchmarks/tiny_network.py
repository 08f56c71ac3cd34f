"""A network small enough to measure in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_network(
    path: Path, kept: list[int], *, classes: int = 3, relu_name: str = "relu1", **metadata: object
) -> Path:
    """A network on [1, 2, 2] images, Flatten -> Gemm -> ReLU of four elements of which ``kept`` stay -> Gemm."""
    rng = np.random.default_rng(7)
    weights = {
        "w1": rng.normal(size=(4, 4)).astype(np.float32),
        "b1": rng.normal(size=4).astype(np.float32),
        "w2": rng.normal(size=(classes, 4)).astype(np.float32),
        "b2": rng.normal(size=classes).astype(np.float32),
        "slope": np.array([0.0 if index in kept else 1.0 for index in range(4)], dtype=np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], name="fc1", transB=1),
        helper.make_node("PRelu", ["hidden", "slope"], ["active"], name=relu_name),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], name="fc2", transB=1),
    ]
    used = {wire for node in nodes for wire in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"pi_pipeline": json.dumps(metadata)})
    onnx.save_model(model, path)
    return path
