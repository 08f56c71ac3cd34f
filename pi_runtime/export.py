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

    Arguments and errors as of :func:`build_onnx`.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    save_onnx(build_onnx(model, input_shape, metadata=metadata), path)


def build_onnx(
    model: nn.Module, input_shape: tuple[int, ...], *, metadata: Mapping[str, object] | None = None
) -> onnx.ModelProto:
    """The pruned ONNX graph of ``model``.

    Args:
        model: a classifier from float32 [B, C, H, W] to logits [B, classes]; not changed.
        input_shape: (C, H, W).
        metadata: JSON-able facts about the model that are public (name, dataset, class_names, mean, std, ...);
            ``relu_total`` and ``relu_count`` are added.

    Raises:
        ExportError: the module cannot be traced, or holds an operation outside the operator set (named).
    """
    writer = OnnxWriter(trace(model, input_shape), input_shape)
    proto = writer.write()
    add_metadata(proto, dict(metadata or {}) | {"relu_total": writer.relu_total, "relu_count": writer.relu_count})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def add_metadata(proto: onnx.ModelProto, facts: Mapping[str, object]) -> None:
    """Adds public facts to those that ``proto`` carries; a fact that is None is taken out."""
    known = {prop.key: prop.value for prop in proto.metadata_props}
    merged = json.loads(known.get(METADATA_KEY, "{}")) | dict(facts)
    kept = {key: value for key, value in merged.items() if value is not None}
    helper.set_model_props(proto, known | {METADATA_KEY: json.dumps(kept, sort_keys=True)})


def save_onnx(proto: onnx.ModelProto, path: Path) -> None:
    """Writes ``proto``, whole or not at all; raises ConfigError where ``path`` cannot be written."""
    with replacing(path) as temporary:
        onnx.save_model(proto, temporary)
