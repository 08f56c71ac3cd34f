"""Remove all but a budget of an image classifier's ReLUs: any network, or one that is trained here from a config."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linearize.any_network import mask_relus
    from linearize.api import Record, linearize
    from linearize.checkpoint import load_checkpoint, read_metadata, save_checkpoint
    from linearize.config import RunConfig, config_keys, dump_config, load_config
    from linearize.data import Dataset, load_dataset
    from linearize.errors import BudgetError, CheckpointError, ConfigError, DataError, LinearizeError, NetworkError
    from linearize.networks import build_network
    from linearize.progress import Reporter
    from linearize.relu_mask import MaskedReLU, get_relu_mask, layer_counts, relu_count, relu_total, set_relu_mask
    from linearize.run import LinearizeResult, run_linearization, train_baseline

# Loaded on first use: the settings alone, which the command line needs for its help, must not wait for torch.
_HOMES = {
    "BudgetError": "linearize.errors",
    "CheckpointError": "linearize.errors",
    "ConfigError": "linearize.errors",
    "DataError": "linearize.errors",
    "Dataset": "linearize.data",
    "LinearizeError": "linearize.errors",
    "LinearizeResult": "linearize.run",
    "MaskedReLU": "linearize.relu_mask",
    "NetworkError": "linearize.errors",
    "Record": "linearize.api",
    "Reporter": "linearize.progress",
    "RunConfig": "linearize.config",
    "build_network": "linearize.networks",
    "config_keys": "linearize.config",
    "dump_config": "linearize.config",
    "get_relu_mask": "linearize.relu_mask",
    "layer_counts": "linearize.relu_mask",
    "linearize": "linearize.api",
    "load_checkpoint": "linearize.checkpoint",
    "load_config": "linearize.config",
    "load_dataset": "linearize.data",
    "mask_relus": "linearize.any_network",
    "read_metadata": "linearize.checkpoint",
    "relu_count": "linearize.relu_mask",
    "relu_total": "linearize.relu_mask",
    "run_linearization": "linearize.run",
    "save_checkpoint": "linearize.checkpoint",
    "set_relu_mask": "linearize.relu_mask",
    "train_baseline": "linearize.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Dataset",
    "LinearizeError",
    "LinearizeResult",
    "MaskedReLU",
    "NetworkError",
    "Record",
    "Reporter",
    "RunConfig",
    "build_network",
    "config_keys",
    "dump_config",
    "get_relu_mask",
    "layer_counts",
    "linearize",
    "load_checkpoint",
    "load_config",
    "load_dataset",
    "mask_relus",
    "read_metadata",
    "relu_count",
    "relu_total",
    "run_linearization",
    "save_checkpoint",
    "set_relu_mask",
    "train_baseline",
]
