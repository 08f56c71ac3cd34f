"""Train an image classifier and remove all but a budget of its ReLUs by block coordinate descent on a binary mask."""

from linearize.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from linearize.config import RunConfig, config_keys, dump_config, load_config
from linearize.data import Dataset, load_dataset
from linearize.errors import BudgetError, CheckpointError, ConfigError, DataError, LinearizeError
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import MaskedReLU, get_relu_mask, layer_counts, relu_count, relu_total, set_relu_mask
from linearize.run import LinearizeResult, linearize, train_baseline

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Dataset",
    "LinearizeError",
    "LinearizeResult",
    "MaskedReLU",
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
    "read_metadata",
    "relu_count",
    "relu_total",
    "save_checkpoint",
    "set_relu_mask",
    "train_baseline",
]
