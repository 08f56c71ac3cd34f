"""`linearize.linearize`: any network of the caller's, with the caller's images."""

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearize.checkpoint import read_metadata
from linearize.config import RunConfig, flatten, load_config
from linearize.errors import ConfigError
from linearize.files import load_tensors
from linearize.progress import Reporter
from linearize.ranks import open_ranks
from linearize.relu_mask import masked_layers
from linearize.replacement import plain_layers
from linearize.run import Session, find_device, open_session
from linearize.source import GivenNetwork
from linearize.user_data import Examples, user_dataset
from linearize.user_models import given_name


@dataclass(frozen=True)
class Record:
    """What a linearization did.

    relu_total, relu_count: ReLUs of one input before and after. layers: the same by layer, in the order of the pass.
    steps: a document a step of the search, as in bcd.jsonl; empty for other methods. val_accuracy_before and
    val_accuracy_after, in percent. seconds: of each stage (reference, search, finetune), over all calls that it took.
    """

    method: str
    relu_total: int
    relu_count: int
    layers: dict[str, dict[str, int]]
    steps: list[dict[str, Any]]
    val_accuracy_before: float
    val_accuracy_after: float
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def linearize(
    model: nn.Module,
    train: Examples,
    val: Examples,
    *,
    budget: int,
    method: str = "bcd",
    settings: RunConfig | Mapping[str, object] | None = None,
    run_dir: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> tuple[nn.Module, Record]:
    """Remove all but `budget` ReLUs of a trained classifier, which is its own teacher and stays as it is.

    model: float32 [B, C, H, W] (or [B, F]) -> logits [B, classes], traceable by torch.fx; see
        `linearize.any_network` for what counts as a ReLU and what the layers are called.
    train, val: a torch Dataset of (image tensor, label), or (images [N, ...], labels [N]); kept in memory. Floats are
        what the network takes, normalised by the caller; of uint8 it gets pixel / 255. Every choice is made on these;
        val is only measured on, and no image is augmented unless settings name data.crop_padding or data.flip.
    method: block coordinate descent (arXiv 2511.11781), or another of `linearize.methods`.
    settings: a RunConfig, or dotted keys such as {"bcd.drc": 100, "finetune.epochs": 30}; the defaults are those of a
        small network. relu_budget, method, seed and device are taken from the arguments.
    run_dir: keeps every stage; the same call goes on where a killed one stopped and ends with the same network. Without
        it nothing is kept.
    device: auto (CUDA where there is one), cpu or cuda.

    Returns the linearized network, in eval mode on the device of `model`: a torch.fx module with a `relu_mask` for
    each call of a ReLU, which pi_runtime's exporter reads; and the record of the run.
    Raises NetworkError (the network), DataError (the images), BudgetError (more ReLUs asked for than there are),
    ConfigError (settings, device, a run directory of another network, other images or settings).
    """
    config = _config(settings, relu_budget=budget, method=method, seed=seed, device=device, model=given_name(model))
    data = user_dataset(train, val, crop_padding=config.data.crop_padding or 0, flip=config.data.flip or False)
    data = replace(data, epoch_images=config.data.epoch_images)
    source = GivenNetwork(model, data.input_shape)
    data = data.with_classes(source.num_classes)
    with ExitStack() as stack:
        ranks = stack.enter_context(open_ranks(find_device(config)))
        if ranks.world > 1 and run_dir is None:
            raise ConfigError("run_dir must be given under torchrun, got None; name a directory that all ranks see")
        root = Path(run_dir) if run_dir is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        quiet = reporter or Reporter() if ranks.first else Reporter(quiet=True)
        session = stack.enter_context(open_session(config, root, quiet, data, source, ranks=ranks))
        session.check_budget()
        _check_same(session)
        session.complete()
        linearized = _exportable(source.load(session.run.linearized))
        record = _record(session)
    places = {parameter.device for parameter in model.parameters()}
    return linearized.to(places.pop() if len(places) == 1 else "cpu").eval(), record


def _config(settings: RunConfig | Mapping[str, object] | None, *, model: str, **arguments: object) -> RunConfig:
    given = dict(flatten(settings.model_dump()) if isinstance(settings, RunConfig) else settings or {})
    network = {"network.model": model, "network.weights": None, "network.width": None}
    return load_config(None, given | arguments | network | {"baseline.epochs": 0, "baseline_from": None})


def _check_same(session: Session) -> None:
    """Raise ConfigError if the run directory was begun with other weights or images."""
    if not session.run.baseline.exists():
        return
    stored, metadata = load_tensors(session.run.baseline)
    present = session.source.build().state_dict()
    differing = [key for key in present if key not in stored or not torch.equal(stored[key], present[key])]
    if metadata.get("dataset") != session.context.data.name:
        differing.append("images")
    if differing:
        raise ConfigError(
            f"run_dir {session.run.root}: was begun with another network or other images ({differing[0]} differs); "
            "name another directory"
        )


def _exportable(model: nn.Module) -> nn.Module:
    """The network without polynomials in its masked ReLUs, unless one is of degree 2 and cannot be written out."""
    replacements = [layer.replacement for layer in masked_layers(model).values()]
    return model if any(part is not None and len(part) > 2 for part in replacements) else plain_layers(model)


def _record(session: Session) -> Record:
    run, config = session.run, session.config
    before, after = read_metadata(run.baseline), read_metadata(run.linearized)
    stages = {"reference": run.reference, "search": run.searched, "finetune": run.linearized}
    log = run.bcd_log.read_text(encoding="utf-8") if config.method == "bcd" and run.bcd_log.exists() else ""
    return Record(
        method=config.method,
        relu_total=after["relu_total"],
        relu_count=after["relu_count"],
        layers={
            name: {"before": count, "after": after["layer_counts"][name]}
            for name, count in before["layer_counts"].items()
        },
        steps=[json.loads(line) for line in log.splitlines()],
        val_accuracy_before=before["val_accuracy"],
        val_accuracy_after=after["val_accuracy"],
        seconds={stage: read_metadata(path)["seconds"] for stage, path in stages.items() if path.exists()},
    )
