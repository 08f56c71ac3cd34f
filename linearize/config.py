"""All settings of a run: read from YAML, overridden by dotted keys, checked once, then immutable."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from linearize.config_sections import (
    AutorepConfig,
    BaselineConfig,
    BcdConfig,
    DataConfig,
    DatasetName,
    DistillConfig,
    GradualConfig,
    LastFinetuneConfig,
    LayerCullingConfig,
    MethodName,
    NetworkConfig,
    NetworkName,
    ReferenceName,
    Schedule,
    Section,
    SensitivityConfig,
    SgdConfig,
    SnlConfig,
    TaylorConfig,
)
from linearize.errors import ConfigError

__all__ = [
    "AutorepConfig",
    "BaselineConfig",
    "BcdConfig",
    "DataConfig",
    "DatasetName",
    "DistillConfig",
    "GradualConfig",
    "LastFinetuneConfig",
    "LayerCullingConfig",
    "MethodName",
    "NetworkConfig",
    "NetworkName",
    "ReferenceName",
    "RunConfig",
    "Schedule",
    "Section",
    "SensitivityConfig",
    "SgdConfig",
    "SnlConfig",
    "TaylorConfig",
    "config_keys",
    "dump_config",
    "flatten",
    "load_config",
    "read_yaml",
]


class RunConfig(Section):
    """Everything that decides the result of a linearization."""

    relu_budget: int = Field(6000, ge=1, description="ReLUs kept in the linearized network")
    method: MethodName = Field(
        "bcd",
        description="what chooses them: bcd, snl, autorep, taylor, gradual, sensitivity, layer_culling or random_mask",
    )
    reference: ReferenceName = Field(
        "snl", description="what makes the network that bcd starts from; none: it starts with all ReLUs"
    )
    replacement: Literal["identity", "affine", "affine_locations"] = Field(
        "identity",
        description="what a removed ReLU becomes: the identity, a trained a*x + b a channel, or (affine_locations) a "
        "location in layers that keep ReLUs, in front of those too (autorep has its own)",
    )
    baseline_from: str | None = Field(
        None, description="checkpoint of the same network and images to take as the baseline; unset: train it"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of initial weights, batches, augmentation and proposals")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto (CUDA where there is one), cpu or cuda")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: PyTorch's own choice")
    amp: Literal["none", "bf16"] = Field(
        "none", description="bf16: gradient steps in mixed precision (slower on CPUs without bfloat16 units)"
    )
    data: DataConfig = Field(DataConfig(), description="images")
    network: NetworkConfig = Field(NetworkConfig(), description="the classifier")
    baseline: BaselineConfig = Field(BaselineConfig(), description="training with all ReLUs")
    snl: SnlConfig = Field(SnlConfig(), description="selective network linearization; the reference network")
    bcd: BcdConfig = Field(BcdConfig(), description="block coordinate descent")
    taylor: TaylorConfig = Field(TaylorConfig(), description="progressive cuts by first-order scores")
    gradual: GradualConfig = Field(GradualConfig(), description="a mask that follows training down to the budget")
    autorep: AutorepConfig = Field(AutorepConfig(), description="trained indicator and polynomials")
    sensitivity: SensitivityConfig = Field(SensitivityConfig(), description="layer budgets from ReLU sensitivity")
    layer_culling: LayerCullingConfig = Field(LayerCullingConfig(), description="whole layers without ReLUs")
    finetune: LastFinetuneConfig = Field(
        LastFinetuneConfig(epochs=3, batch_size=64, lr=0.005), description="training after the search"
    )

    @property
    def reference_budget(self) -> int:
        """ReLUs that the reference network may keep: as set, or 1.5 times relu_budget."""
        return self.snl.reference_budget or self.relu_budget * 3 // 2


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) for every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of a config, e.g. ["relu_budget", ..., "bcd.drc", ...], in order of declaration."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += config_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _closest(key: str) -> str:
    known = config_keys()
    sections = sorted({k.rsplit(".", 1)[0] for k in known if "." in k})
    leaves = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    match = difflib.get_close_matches(key, known + sections, n=1, cutoff=0.5)
    if not match:
        match = [leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1)]
    return f"the closest valid key is {match[0]}" if match else f"valid keys are {', '.join(known)}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty one. Raises ConfigError, naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the config cannot be read ({error}); name a YAML file, see configs/") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path}: broken YAML ({where}); compare with configs/digits.yaml") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of keys, got a {type(tree).__name__}; see configs/digits.yaml"
        )
    return tree


def _insert(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--{key}: {section} is no section of the config; {_closest(key)}")
        tree = child
    tree[leaf] = value


def _explain(error: ValidationError, path: Path | None, overrides: Mapping[str, object]) -> ConfigError:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    key = ".".join(parts)
    source = f"--{key}" if key in overrides else f"{path}: {key}" if path else key
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{source}: unknown key; {_closest(key)}")
    return ConfigError(f"{source}: {first['msg'].lower()}, got {first['input']!r}; see configs/digits.yaml")


def load_config(path: Path | None = None, overrides: Mapping[str, object] | None = None) -> RunConfig:
    """The defaults, overlaid by a YAML file, overlaid by dotted keys such as {"bcd.drc": 100}.

    Raises ConfigError, in one line that names the file or flag and the key: unknown key (with the closest valid one),
    wrong type, value out of range, unreadable file, broken YAML, reference budget below the budget.
    """
    overrides = overrides or {}
    tree = read_yaml(path) if path else {}
    for key, value in overrides.items():
        _insert(tree, key, value)
    try:
        config = RunConfig.model_validate(_over_defaults(tree))
    except ValidationError as error:
        raise _explain(error, path, overrides) from None
    if config.method == "bcd" and config.reference != "none" and config.reference_budget < config.relu_budget:
        raise ConfigError(
            f"snl.reference_budget must be at least relu_budget ({config.relu_budget:,}), "
            f"got {config.reference_budget:,}; raise it or leave it unset"
        )
    if config.network.model is not None and config.network.width is not None:
        raise ConfigError(f"network.width must be unset for network.model, got {config.network.width}; it has its own")
    return config


def _over_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree over RunConfig's defaults: a section that sets one key keeps this project's defaults for the others."""

    def overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(base)
        for key, value in top.items():
            below = base.get(key)
            merged[key] = overlay(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
        return merged

    return overlay(RunConfig().model_dump(), tree)


def dump_config(config: RunConfig) -> str:
    """The config as YAML, every key present; `load_config` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)
