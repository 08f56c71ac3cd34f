"""A network with its weights, its ReLU masks and what is known about it, in one safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from linearize.any_network import mask_relus
from linearize.errors import CheckpointError, ConfigError, NetworkError
from linearize.files import load_tensors, save_tensors
from linearize.networks import build_network
from linearize.relu_mask import layer_counts, relu_count, relu_total
from linearize.replacement import allocate_parts
from linearize.user_models import runs_code

# What is needed to build the network again.
_REQUIRED = ("network", "width", "num_classes", "input_shape")


def save_checkpoint(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a network's state (masks are bool buffers named *.relu_mask) and metadata, atomically.

    metadata: JSON values; must hold network, width, num_classes and input_shape ([C, H, W]), from which the network is
    built again. relu_total, relu_count and layer_counts are added from the masks.
    """
    missing = [key for key in _REQUIRED if key not in metadata]
    assert not missing, f"metadata lacks {missing}"
    counts = {"relu_total": relu_total(model), "relu_count": relu_count(model), "layer_counts": layer_counts(model)}
    save_tensors(path, model.state_dict(), {**metadata, **counts})


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint. Raises CheckpointError as `load_checkpoint` does."""
    return load_tensors(path)[1]


def load_checkpoint(
    path: Path, *, run_code: bool = False, model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a checkpoint and fill it in: (module in eval mode on the CPU, metadata).

    run_code: a checkpoint of a network made by `package.module:function` may have that function imported and called;
    a file of unknown origin must not decide what runs. model: the network itself, not touched, in place of the one
    that the checkpoint names; for networks that were given to `linearize.linearize`.
    Raises CheckpointError if the file is missing, truncated, of another program, or does not fit its own metadata.
    """
    metadata = read_metadata(path)
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        raise CheckpointError(
            f"{path}: not a network checkpoint, its header lacks {', '.join(missing)}; name another file"
        )
    if model is None and runs_code(metadata["network"]) and not run_code:
        raise CheckpointError(
            f"{path}: its network is made by {metadata['network']}, which would be called; if you trust it, "
            "export its run directory, or load it in Python with load_checkpoint(path, run_code=True)"
        )
    shape = tuple(metadata["input_shape"])
    try:
        if model is None:
            network = build_network(metadata["network"], metadata["width"], metadata["num_classes"], shape)
        else:
            network = mask_relus(model, shape)
    except (ConfigError, NetworkError) as error:
        raise _does_not_fit(path, error) from None
    load_into(network, path)
    return network, metadata


def load_into(network: nn.Module, path: Path) -> None:
    """Fill a network whose ReLUs are masked, in place, with the weights and masks of a checkpoint.

    Raises CheckpointError as `load_checkpoint`.
    """
    tensors, _ = load_tensors(path)
    allocate_parts(network, {name: tensor.shape for name, tensor in tensors.items()})
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise _does_not_fit(path, error) from None


def _does_not_fit(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path}: the tensors do not fit the network of the header ({reason})")
