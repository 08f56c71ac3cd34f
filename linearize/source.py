"""Where the network of a run comes from: the config, or the caller's own module."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from linearize.any_network import mask_relus
from linearize.checkpoint import load_checkpoint, load_into
from linearize.config import RunConfig
from linearize.data import Dataset
from linearize.errors import ConfigError
from linearize.networks import DEFAULT_WIDTH, build_network
from linearize.user_models import given_name


class NetworkSource(Protocol):
    """What a run asks of it."""

    @property
    def facts(self) -> dict[str, Any]:
        """`network` and `width`, as checkpoints name them."""

    def build(self) -> nn.Module:
        """The network that training starts from, with all its ReLUs, on the CPU."""

    def load(self, path: Path) -> nn.Module:
        """The network of a checkpoint, on the CPU. Raises CheckpointError as `load_checkpoint`."""


class ConfiguredNetwork:
    """The network that a config names, for a dataset."""

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        self._config, self._data = config.network, data
        self._seed = config.seed
        if config.baseline.epochs == 0 and config.network.weights is None:
            raise ConfigError(
                "baseline.epochs must be at least 1, got 0; only weights given by network.weights need none"
            )

    @property
    def facts(self) -> dict[str, Any]:
        network = self._config
        width = network.width if network.model else network.width or DEFAULT_WIDTH[network.name]
        return {"network": network.label, "width": width}

    def build(self) -> nn.Module:
        network, data = self._config, self._data
        weights = Path(network.weights) if network.weights else None
        return build_network(
            network.label, network.width, data.num_classes, data.input_shape, seed=self._seed, weights=weights
        )

    def load(self, path: Path) -> nn.Module:
        # The config names the function, if there is one, so it may run.
        return load_checkpoint(path, run_code=True)[0]


class GivenNetwork:
    """A module of the caller's, with its weights; it is not touched. num_classes: the logits that it returns."""

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self._name = given_name(model)
        self._masked = mask_relus(model, input_shape)
        with torch.no_grad():
            self.num_classes = int(self._masked(torch.zeros(1, *input_shape)).shape[1])

    @property
    def facts(self) -> dict[str, Any]:
        return {"network": self._name, "width": None}

    def build(self) -> nn.Module:
        return deepcopy(self._masked)

    def load(self, path: Path) -> nn.Module:
        network = self.build()
        load_into(network, path)
        return network
