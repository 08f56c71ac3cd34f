"""One network at several ReLU budgets, each as an ONNX file with fixed-point numbers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from pi_runtime.errors import ConfigError
from pi_runtime.export import add_metadata, save_onnx
from pi_runtime.files import write_text
from pi_runtime.onnx_graph import load_onnx, read_onnx
from pi_runtime.preset.calibrate import calibrate
from pi_runtime.preset.plan import KEY
from pi_runtime.random_mask import with_random_mask
from pi_runtime.source_digest import source_digest

Budget = int | Literal["full", "trained"]
Mask = Literal["all", "trained", "random", "given"]


@dataclass(frozen=True, kw_only=True)
class BudgetFile:
    """A network at one budget.

    budget: as it was asked for. name: ``full``, ``linearized`` for ``trained``, else the budget in digits.
    mask: how the kept ReLUs were chosen; ``given`` where the file came with fewer than all and does not say.
    """

    budget: Budget
    name: str
    path: Path
    mask: Mask


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """``6000,full`` as budgets, in their order, each once.

    Raises:
        ConfigError: an entry is neither a count nor ``full`` or ``trained``, or there is none.
    """
    budgets: list[Budget] = []
    for entry in (part.strip() for part in text.split(",") if part.strip()):
        if entry == "full":
            budgets.append("full")
        elif entry == "trained":
            budgets.append("trained")
        elif entry.isascii() and entry.isdigit():
            budgets.append(int(entry))
        else:
            raise ConfigError(f"a budget must be a count of ReLUs, full or trained, got {entry!r}")
    if not budgets:
        raise ConfigError("--budgets names no budget; give counts of ReLUs, or full")
    return tuple(dict.fromkeys(budgets))


def at_budgets(
    network: Path,
    budgets: Iterable[Budget],
    *,
    images: npt.NDArray[np.float32],
    directory: Path,
    seed: int,
    trained: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[BudgetFile, ...]:
    """Files of ``network`` at each budget, in their order.

    A file that has the count already is taken as it is: ``network``, or ``trained`` with its trained mask. Any other
    budget takes a random mask. Fixed-point numbers are chosen on ``images`` for each file that has none. What is made
    goes into ``directory``; the same arguments make the same bytes, and are taken from there the next time.

    Args:
        network: ONNX file; with all its ReLUs where a budget asks for a random mask.
        images: float32 [N, C, H, W], normalised, to calibrate on; never those that accuracy is measured on.
        seed: of the random masks.
        trained: ONNX file of the same network under a trained mask.
        progress: told what is made, how many budgets are ready, and how many there are.

    Raises:
        ConfigError: ``trained`` is asked for and there is none, or ``directory`` cannot be written.
        ExportError: a budget is above the network's ReLUs, or the network has lost ReLUs already.
        GraphError: a file is damaged, or no fixed-point numbers serve.
    """
    whole = _ready(network)
    known: dict[Budget, _Ready] = {whole.relu_count: whole}
    if trained is not None:
        known["trained"] = _ready(trained, mask="trained")
        known.setdefault(known["trained"].relu_count, known["trained"])
    known["full"] = whole
    files = []
    wanted = tuple(budgets)
    for done, budget in enumerate(wanted):
        if progress is not None:
            progress(f"{network.stem}: budgets", done, len(wanted))
        name = {"trained": "linearized"}.get(str(budget), str(budget))
        if budget == "trained" and budget not in known:
            raise ConfigError(f"{network} comes without a trained mask; give the directory of a run, or a count")
        found = known.get(budget)
        if found is not None and found.calibrated:
            files.append(BudgetFile(budget=budget, name=name, path=found.path, mask=found.mask))
            continue
        proto = onnx.load_model(network if found is None else found.path)
        if found is None:
            assert isinstance(budget, int), f"{budget} is known"
            proto = with_random_mask(proto, budget, seed=seed, origin=str(network))
        path = directory / f"{name}.onnx"
        _save_calibrated(proto, images, path)
        files.append(BudgetFile(budget=budget, name=name, path=path, mask="random" if found is None else found.mask))
    if progress is not None:
        progress(f"{network.stem}: budgets", len(wanted), len(wanted))
    return tuple(files)


def _save_calibrated(proto: onnx.ModelProto, images: npt.NDArray[np.float32], path: Path) -> None:
    """Writes ``proto`` with fixed-point numbers chosen on ``images``, unless ``path`` holds just that already.

    A note beside it names what it was made from. It is no part of the file, whose metadata the public graph shows: a
    digest of the weights would tell something of them.
    """
    made_from = hashlib.sha256(proto.SerializeToString(deterministic=True))
    made_from.update(f"{images.shape}".encode() + images.tobytes() + source_digest("pi_runtime").encode())
    note = path.with_name(f"{path.name}.made_from")
    if path.exists() and note.exists():
        file = hashlib.sha256(path.read_bytes()).hexdigest()
        if note.read_text(encoding="utf-8", errors="replace").split() == [made_from.hexdigest(), file]:
            return
    plan = calibrate(read_onnx(proto, origin=str(path)), images).plan
    add_metadata(proto, {KEY: plan.to_metadata()})
    save_onnx(proto, path)
    write_text(note, f"{made_from.hexdigest()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A file that has its mask already."""

    path: Path
    mask: Mask
    relu_count: int
    calibrated: bool


def _ready(path: Path, mask: Mask | None = None) -> _Ready:
    """What a file tells of itself; ``mask`` where the caller knows better."""
    graph = load_onnx(path)
    total = graph.metadata.get("relu_total")
    whole = all(node.relu_count == prod(node.shape) for node in graph.relu_layers)
    own: Mask = "all" if whole and total in (None, graph.relu_count) else "given"
    if graph.metadata.get("relu_mask") == "random":
        own = "random"
    return _Ready(path=path, mask=mask or own, relu_count=graph.relu_count, calibrated=KEY in graph.metadata)
