"""SPU's Python, where there is one, and networks to run."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from pi_runtime.errors import BackendError
from pi_runtime.export import export_onnx
from pi_runtime.plaintext_backend import PlaintextBackend
from pi_runtime.spu.interpreter import VARIABLE, spu_interpreter


@pytest.fixture
def spu_python():
    """The interpreter; skips where there is none."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no Python with SPU")
    try:
        return spu_interpreter()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture
def export(tmp_path):
    """``export(network, input_shape)``: the path of its ONNX file."""

    def write(network, input_shape):
        path = tmp_path / "model.onnx"
        export_onnx(network, input_shape, path)
        return path

    return write


@pytest.fixture
def operators_net():
    """The network of all the other operators, in eval mode."""
    from operators_net import OperatorsNet

    torch.manual_seed(1)
    network = OperatorsNet().eval()
    torch.nn.init.uniform_(network.norm.weight, 0.5, 1.5)
    network.norm.running_var.uniform_(0.5, 2.0)
    network.norm.running_mean.normal_(0, 0.3)
    return network


@pytest.fixture
def plaintext():
    """``plaintext(model, images)``: the logits of onnxruntime."""

    def logits(model, images):
        with PlaintextBackend() as backend:
            backend.prepare(model)
            return backend.infer(images)[0]

    return logits


@pytest.fixture
def images():
    """``images(batch, shape, seed=0)``: standard normal, float32."""

    def draw(batch, shape, seed=0):
        return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)

    return draw
