"""What ``bench`` measures: each MODEL as a network, its images, and a file for each ReLU budget."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.subjects import SubjectFile
from pi_runtime.budgets import Budget, at_budgets
from pi_runtime.errors import ConfigError
from pi_runtime.export import build_onnx, save_onnx
from pi_runtime.graph import Graph
from pi_runtime.images import find_images, load_images, normalise
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.pipeline import (
    CALIBRATION_IMAGES,
    FULL,
    MODEL,
    SIMULATED_IMAGES,
    calibration_images,
    run_dataset,
)

BUILT_IN = ("resnet18", "wrn22")
MODELS_DIR = "models"
Float = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """The shape of a built-in network: side of its RGB images, classes, and width (None: the paper's)."""

    image_size: int
    classes: int
    width: int | None

    def __post_init__(self) -> None:
        for name, value in (("image-size", self.image_size), ("classes", self.classes), ("width", self.width)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """One MODEL. calibration, images: normalised, apart from one another where there are enough."""

    label: str
    network: Path
    trained: Path | None
    weights: Literal["trained", "random", "given"]
    calibration: Float
    images: Float
    images_kind: Literal["test", "folder", "noise"]
    labels: npt.NDArray[np.int64] | None = None


def subject_files(
    models: Sequence[str],
    *,
    budgets: Sequence[Budget] | None,
    images: int,
    simulated_images: int | None = None,
    budgets_of: Mapping[str, Sequence[Budget]] | None = None,
    data: Path | None,
    built_in: BuiltIn,
    seed: int,
    output: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[SubjectFile, ...]:
    """Every model at every budget, ready to be measured.

    Args:
        models: ONNX files, run directories, or names of built-in networks, which get random weights.
        budgets: of each model; None takes all ReLUs, and the trained mask of a run directory beside them.
        images: to compare logits on.
        budgets_of: the budgets that a backend is measured at, of those named in it; the others are at all.
        simulated_images: to simulate; None takes SIMULATED_IMAGES of a subject that has labels, and none of another.
        data: folder of images for the ONNX files; without it they see standard normal noise.
        seed: of random weights, random masks and noise.
        output: what is made goes into ``output/models``.
        progress: told what is made, how many budgets are ready, and how many there are.

    Raises:
        PiError, LinearizeError: a model, image or budget cannot be used (named).
    """
    found: list[SubjectFile] = []
    labels: set[str] = set()
    full: set[str] = set()
    for model in models:
        directory = output / MODELS_DIR / _label(model)
        source = _source(model, images=images, data=data, built_in=built_in, seed=seed, directory=directory)
        if source.label in labels:
            raise ConfigError(f"two models are called {source.label}; rename one")
        labels.add(source.label)
        default: tuple[Budget, ...] = ("full",) if source.trained is None else ("full", "trained")
        chosen = at_budgets(
            source.network,
            budgets or default,
            images=source.calibration,
            directory=directory,
            seed=seed,
            trained=source.trained,
            progress=progress,
        )
        several = len(models) > 1
        for file in chosen:
            # Runs of one comparison have one baseline: it is measured once.
            if file.mask == "all" and (digest := _digest(file.path)) in full:
                continue
            full |= {digest} if file.mask == "all" else set()
            # Under a random mask the network classifies at random; nobody should read it as an accuracy.
            known = None if file.mask == "random" else source.labels
            default_count = 0 if known is None else SIMULATED_IMAGES
            found.append(
                SubjectFile(
                    name=f"{source.label}/{file.name}" if several else file.name,
                    path=file.path,
                    images=source.images,
                    labels=known,
                    model=source.label if several else _name(load_onnx(source.network), source.label),
                    mask=file.mask,
                    weights=source.weights,
                    images_kind=source.images_kind,
                    accuracy_images=images,
                    simulated_images=default_count if simulated_images is None else simulated_images,
                    left_out=frozenset(name for name, own in (budgets_of or {}).items() if file.budget not in own),
                )
            )
    return tuple(found)


def default_output(models: Sequence[str]) -> Path:
    """``runs/bench-<models>``."""
    return Path("runs") / "-".join(["bench", *(_label(model) for model in models)])


def _source(model: str, *, images: int, data: Path | None, built_in: BuiltIn, seed: int, directory: Path) -> _Source:
    path = Path(model)
    if path.is_dir():
        return _run(path)
    if model in BUILT_IN and not path.exists():
        return _file(_write_built_in(model, built_in, seed, directory), model, images=images, data=data, seed=seed)
    if not path.exists():
        raise ConfigError(
            f"there is no model {model}; give an ONNX file, the directory of a run, or one of {', '.join(BUILT_IN)}"
        )
    return _file(path, _label(model), images=images, data=data, seed=seed)


def _run(run_dir: Path) -> _Source:
    for name in (FULL, MODEL):
        if not (run_dir / name).exists():
            raise ConfigError(f"there is no {run_dir / name}; make it with `pi-pipeline export --run-dir {run_dir}`")
    dataset, graph = run_dataset(run_dir), load_onnx(run_dir / FULL)
    return _Source(
        label=_label(str(run_dir)),
        network=run_dir / FULL,
        trained=run_dir / MODEL,
        weights="trained",
        calibration=normalise(calibration_images(dataset), graph),
        images=normalise(dataset.test.images.numpy(), graph),
        images_kind="test",
        labels=dataset.test.labels.numpy(),
    )


def _file(network: Path, label: str, *, images: int, data: Path | None, seed: int) -> _Source:
    graph = load_onnx(network)
    said = graph.metadata.get("weights")
    if data is None:
        shape = (CALIBRATION_IMAGES + images, *graph.input_shape)
        seen = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    else:
        seen = load_images(find_images([data]), graph)
        if len(seen) < 2:
            raise ConfigError(f"--data needs at least two images, one to calibrate on and one to measure, {data} has 1")
    held = CALIBRATION_IMAGES if data is None else min(CALIBRATION_IMAGES, len(seen) // 2)
    return _Source(
        label=label,
        network=network,
        trained=None,
        weights="random" if said == "random" else "trained" if said == "trained" else "given",
        calibration=seen[:held],
        images=seen[held:],
        images_kind="noise" if data is None else "folder",
    )


def _write_built_in(name: str, built_in: BuiltIn, seed: int, directory: Path) -> Path:
    from linearize.networks import DEFAULT_WIDTH, build_network

    shape = (3, built_in.image_size, built_in.image_size)
    width = DEFAULT_WIDTH[name] if built_in.width is None else built_in.width
    network = build_network(name, width, built_in.classes, shape, seed=seed)
    facts = {"name": f"{name} of width {width}", "network": name, "width": width, "weights": "random"}
    path = directory / "network.onnx"
    save_onnx(build_onnx(network, shape, metadata=facts), path)
    return path


def _digest(network: Path) -> str:
    """SHA-256 of an ONNX file's graph with its weights, without what else the file says of it."""
    return hashlib.sha256(onnx.load(network).graph.SerializeToString(deterministic=True)).hexdigest()


def _name(graph: Graph, label: str) -> str:
    return str(graph.metadata.get("name") or label)


def _label(model: str) -> str:
    """A name that can stand in a path and in a table."""
    path = Path(model).resolve() if Path(model).exists() else Path(model)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem if path.suffix == ".onnx" else path.name) or "model"
