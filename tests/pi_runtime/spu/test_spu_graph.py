"""The graph as a jax function, in the clear. Oracle: onnxruntime on the same file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import pi_runtime
from pi_runtime.onnx_graph import load_onnx

PACKAGE = Path(pi_runtime.__file__).parent
# Float32 sums in another order.
TOLERANCE = 1e-4


@pytest.fixture
def jax_logits(spu_python, tmp_path):
    """``jax_logits(model, images)``: what the function gives under SPU's Python."""

    def run(model, images):
        graph = load_onnx(model)
        graph.save_public(tmp_path / "public.json")
        np.save(tmp_path / "images.npy", images)
        for position, node in enumerate(graph.nodes):
            for name, value in node.params.items():
                np.save(tmp_path / f"{position}.{name}.npy", value)
        script = Path(__file__).with_name("jax_logits.py")
        command = [spu_python, "-I", str(script), str(PACKAGE), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return np.load(tmp_path / "logits.npy")

    return run


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_a_masked_residual_network_gives_the_logits_of_onnxruntime(
    make_net, export, images, plaintext, jax_logits, fraction
):
    model, pictures = export(make_net(fraction), (1, 8, 8)), images(3, (1, 8, 8))
    assert np.abs(jax_logits(model, pictures) - plaintext(model, pictures)).max() < TOLERANCE


def test_every_other_operator_gives_the_logits_of_onnxruntime(operators_net, export, images, plaintext, jax_logits):
    model, pictures = export(operators_net, (2, 9, 9)), images(2, (2, 9, 9))
    operators = {node.op for node in load_onnx(model).nodes}
    assert operators >= {
        "conv",
        "affine",
        "relu",
        "max_pool",
        "avg_pool",
        "concat",
        "pad",
        "slice",
        "reshape",
        "linear",
    }
    assert np.abs(jax_logits(model, pictures) - plaintext(model, pictures)).max() < TOLERANCE
