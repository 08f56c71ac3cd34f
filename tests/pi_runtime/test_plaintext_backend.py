"""The plaintext backend against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pi_runtime.backend import Cost
from pi_runtime.errors import ConfigError, GraphError, LocalProtocolError
from pi_runtime.export import export_onnx
from pi_runtime.plaintext_backend import PlaintextBackend


@pytest.fixture
def exported(make_net, tmp_path):
    model = make_net(0.4)
    path = tmp_path / "model.onnx"
    export_onnx(model, (1, 8, 8), path)
    return model, path


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_equal_pytorch_for_any_batch(exported, threads):
    model, path = exported
    with PlaintextBackend(threads=threads) as backend:
        backend.prepare(path)
        for batch in (1, 5):
            images = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = model(images).numpy()
            logits, cost = backend.infer(images.numpy())
            np.testing.assert_allclose(logits, expected, atol=1e-4)
            assert logits.dtype == np.float32
            assert cost.phases["offline"] == Cost()
            assert cost.phases["setup"].seconds > 0
            assert cost.phases["online"].seconds > 0
            assert sum(phase.total_bytes for phase in cost.phases.values()) == 0


def test_images_of_another_shape_are_refused(exported):
    with PlaintextBackend() as backend:
        backend.prepare(exported[1])
        with pytest.raises(ConfigError, match=r"images must be \[B, 1, 8, 8\], got \(2, 3, 8, 8\)"):
            backend.infer(np.zeros((2, 3, 8, 8), np.float32))


def test_a_truncated_model_is_refused(exported, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported[1].read_bytes()[:200])
    with PlaintextBackend() as backend, pytest.raises(GraphError, match="not a whole ONNX model"):
        backend.prepare(broken)


def test_inference_before_prepare_is_refused():
    with pytest.raises(LocalProtocolError, match="call prepare first"):
        PlaintextBackend().infer(np.zeros((1, 1, 8, 8), np.float32))
