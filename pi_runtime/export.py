"""From a torch module with ReLU masks to the pruned ONNX graph and its companions.

The module is traced with torch.fx, BatchNorm is folded into the convolution before it where there is one, and each
operation becomes ONNX. A ReLU layer that kept everything becomes ``Relu``; one that kept nothing leaves no node; one
that kept some becomes ``Reshape -> Gather -> Relu -> ScatterElements -> Reshape`` over the kept indices, so that the
sizes of all ``Relu`` nodes add up to the ReLU count. The batch is the only dimension that stays open.

A module counts as a masked ReLU when it has a tensor ``relu_mask`` of 0 and 1 in the shape of its activation without
the batch. Plain ``nn.ReLU`` and ``relu`` calls keep every element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import helper
from torch import nn

from pi_runtime.files import replacing
from pi_runtime.graph import METADATA_KEY
from pi_runtime.onnx_writer import OnnxWriter
from pi_runtime.tracing import trace


def export_onnx(
    model: nn.Module, input_shape: tuple[int, ...], path: Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Writes the pruned ONNX graph of ``model`` to ``path``, whole or not at all.

    Args:
        model: a classifier from float32 [B, C, H, W] to logits [B, classes]; not changed.
        input_shape: (C, H, W).
        metadata: JSON-able facts about the model that are public (name, dataset, class_names, mean, std, ...);
            ``relu_total`` and ``relu_count`` are added.

    Raises:
        ExportError: the module cannot be traced, or holds an operation outside the operator set (named).
        ConfigError: ``path`` cannot be written.
    """
    writer = OnnxWriter(trace(model, input_shape), input_shape)
    proto = writer.write()
    facts = dict(metadata or {}) | {"relu_total": writer.relu_total, "relu_count": writer.relu_count}
    helper.set_model_props(proto, {METADATA_KEY: json.dumps(facts, sort_keys=True)})
    onnx.checker.check_model(proto, full_check=True)
    with replacing(path) as temporary:
        onnx.save_model(proto, temporary)
