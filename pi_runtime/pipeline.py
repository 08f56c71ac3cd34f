"""The steps of ``pi-pipeline run`` over one run directory; each can be called alone and again.

This is where training, runtime and benchmarks are joined, and they meet at files only::

    train, linearize    ->  baseline.safetensors, linearized.safetensors, bcd.jsonl
    export_run          ->  full.onnx, model.onnx, model.public.json, model.crypten.pt
    bench_run           ->  results.json
    report_run          ->  report.html

Each step returns the document that its verb prints.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pi_runtime.backend import Backend
from pi_runtime.errors import ConfigError
from pi_runtime.images import normalise
from pi_runtime.onnx_graph import load_onnx, read_onnx
from pi_runtime.progress import progress_bars

if TYPE_CHECKING:
    import numpy.typing as npt

    from benchmarks.subjects import SubjectFile
    from linearize.config import RunConfig
    from linearize.data import Dataset

FULL, MODEL = "full.onnx", "model.onnx"
CALIBRATION_IMAGES = 64
SIMULATED_IMAGES = 1000


def default_run_dir(config: RunConfig) -> Path:
    """``runs/<dataset>-<network>-<width>-<budget>-seed<seed>``; the width is left out where it is the paper's."""
    width = [] if config.network.width is None else [f"w{config.network.width}"]
    network = config.network.label.replace(":", "-")
    parts = [config.data.dataset, network, *width, str(config.relu_budget), f"seed{config.seed}"]
    return Path("runs") / "-".join(parts)


def run(
    config: RunConfig,
    run_dir: Path,
    *,
    backends: Sequence[str],
    images: int,
    runs: int,
    threads: int,
    networks: Sequence[str] = ("loopback",),
    simulated_images: int | None = None,
) -> dict[str, Any]:
    """Every step in order; what an earlier call finished is not done again."""
    linearize(config, run_dir)
    export_run(run_dir)
    measured = bench_run(
        run_dir,
        backends=backends,
        images=images,
        runs=runs,
        threads=threads,
        networks=networks,
        simulated_images=simulated_images,
    )
    return {"run_dir": str(run_dir)} | report_run(run_dir) | measured


def train(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """The baseline: ``baseline.safetensors``."""
    from linearize.checkpoint import read_metadata
    from linearize.run import train_baseline

    checkpoint = train_baseline(config, run_dir)
    facts = read_metadata(checkpoint)
    return {
        "run_dir": str(run_dir),
        "checkpoint": str(checkpoint),
        "relu_total": facts["relu_total"],
        "validation_accuracy": facts["val_accuracy"],
    }


def linearize(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """The linearized network: ``linearized.safetensors``."""
    from linearize.run import run_linearization

    result = run_linearization(config, run_dir)
    return {
        "run_dir": str(run_dir),
        "checkpoint": str(result.checkpoint),
        "relu_total": result.relu_total,
        "relu_count": result.relu_count,
        "baseline_test_accuracy": result.baseline_test_accuracy,
        "linearized_test_accuracy": result.linearized_test_accuracy,
    }


def export_run(run_dir: Path) -> dict[str, Any]:
    """Exports the baseline and the linearized network of a run, with fixed-point numbers chosen on training images.

    Overwrites what an earlier export left. A network that the run had made by a function of the user's is made by it
    again.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        GraphError: no fixed-point numbers serve.
    """
    checkpoints = {
        run_dir / "baseline.safetensors": run_dir / FULL,
        run_dir / "linearized.safetensors": run_dir / MODEL,
    }
    for checkpoint in checkpoints:
        if not checkpoint.exists():
            raise ConfigError(f"there is no {checkpoint}; make it with `pi-pipeline linearize --run-dir {run_dir}`")
    train = calibration_images(run_dataset(run_dir))
    written: dict[str, Any] = {}
    for checkpoint, output in checkpoints.items():
        companions = output.name == MODEL
        written = export_checkpoint(checkpoint, output, calibration=train, companions=companions, run_code=True)
    return {"run_dir": str(run_dir)} | written


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    calibration: npt.NDArray[np.uint8] | None = None,
    companions: bool = False,
    run_code: bool = False,
) -> dict[str, Any]:
    """Exports one checkpoint to ``output``.

    Args:
        calibration: training images, uint8 [N, C, H, W], on which the numbers of the ``preset`` backend are chosen;
            without them it takes its defaults.
        companions: also write the public graph and the CrypTen graph beside it (``.public.json``, ``.crypten.pt``).
        run_code: the function that the checkpoint names as the maker of its network may be called.
    """
    from linearize.checkpoint import load_checkpoint
    from linearize.replacement import plain_layers
    from pi_runtime.export import add_metadata, build_onnx, save_onnx
    from pi_runtime.preset.calibrate import calibrate
    from pi_runtime.preset.plan import KEY, with_plan

    model, facts = load_checkpoint(checkpoint, run_code=run_code)
    proto = build_onnx(plain_layers(model), tuple(facts["input_shape"]), metadata=_public_facts(facts))
    graph = read_onnx(proto, origin=str(output))
    written: dict[str, Any] = {"onnx": str(output), "relu_count": facts["relu_count"]}
    if calibration is not None:
        found = calibrate(graph, normalise(calibration, graph))
        graph = with_plan(graph, found.plan)
        add_metadata(proto, {KEY: found.plan.to_metadata()})
        written["predicted_failure_rate"] = found.failure_rate
    save_onnx(proto, output)
    if companions:
        from pi_runtime.crypten.crypten_graph import save_crypten_graph

        public, crypten = (output.with_suffix(suffix) for suffix in (".public.json", ".crypten.pt"))
        graph.save_public(public)
        save_crypten_graph(graph, crypten)
        written |= {"public": str(public), "crypten": str(crypten)}
    return written


def bench_run(
    run_dir: Path,
    *,
    backends: Sequence[str],
    images: int,
    runs: int,
    threads: int,
    networks: Sequence[str] = ("loopback",),
    simulated_images: int | None = None,
) -> dict[str, Any]:
    """Measures the full and the linearized network of a run, taking turns run by run: ``results.json``.

    images: test images for the secure accuracy; of the full network, which is there to be compared with, a fifth.
    simulated_images: of each network, through the simulator; None: SIMULATED_IMAGES.
    """
    from benchmarks.sole_writer import sole_writer
    from benchmarks.subjects import SubjectFile

    test = run_dataset(run_dir).test
    seen = normalise(test.images.numpy(), load_onnx(run_dir / MODEL))
    common: dict[str, Any] = {
        "images": seen,
        "labels": test.labels.numpy(),
        "weights": "trained",
        "simulated_images": SIMULATED_IMAGES if simulated_images is None else simulated_images,
    }
    subjects = [
        SubjectFile(name="full", path=run_dir / FULL, mask="all", accuracy_images=max(1, images // 5), **common),
        SubjectFile(name="linearized", path=run_dir / MODEL, mask="trained", accuracy_images=images, **common),
    ]
    with sole_writer(run_dir / "results.json"):
        measured = measure(
            subjects,
            run_dir / "results.json",
            backends=backends,
            runs=runs,
            threads=threads,
            networks=networks,
            sweeps=1,
            subjects_at_once=len(subjects),
        )
    full, linearized = measured["subjects"]
    return {
        "run_dir": str(run_dir),
        "model": linearized["model"],
        "dataset": linearized["dataset"],
        "relu_total": linearized["relu_total"],
        "relu_budget": linearized["relu_budget"],
        "relu_count": linearized["relu_count"],
        "baseline_test": full["test_accuracy"],
        "linearized_test": linearized["test_accuracy"],
    } | measured


def measure(
    subjects: Sequence[SubjectFile],
    results_path: Path,
    *,
    backends: Sequence[str],
    runs: int,
    threads: int,
    sweeps: int,
    subjects_at_once: int,
    networks: Sequence[str] = ("loopback",),
    runs_on: Mapping[str, int] | None = None,
    runs_of: Mapping[str, int] | None = None,
    across_networks: Sequence[str] = (),
    rehearse: bool = False,
    no_warmup: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures ``subjects`` on each backend and network, prints the tables and returns the headline figures.

    Arguments as of :func:`benchmarks.harness.run_bench` and :class:`benchmarks.harness.BenchSettings`; what an earlier
    call finished is not measured again.
    """
    from benchmarks.harness import BenchSettings, run_bench
    from benchmarks.headline import headline, problems
    from benchmarks.placement import link_line, link_problem
    from benchmarks.report import print_tables
    from pi_runtime.backends import open_backend

    def opener(name: str, **options: Any) -> Backend:
        return open_backend(name, threads=threads, **options)

    with progress_bars() as progress:
        results = run_bench(
            subjects=subjects,
            backends=backends,
            results_path=results_path,
            settings=BenchSettings(
                runs=runs,
                threads=threads,
                sweeps=sweeps,
                subjects_at_once=subjects_at_once,
                runs_on=runs_on or {},
                runs_of=runs_of or {},
                across_networks=across_networks,
                rehearse=rehearse,
                no_warmup=no_warmup,
            ),
            networks=networks,
            opener=opener,
            progress=progress,
            command=shlex.join(["pi-pipeline", *sys.argv[1:]]),
        )
    print_tables(results)
    spoilt = [problem for link in results.links if (problem := link_problem(link))]
    for line in (*map(link_line, results.links), *(f"problem: {problem}" for problem in spoilt)):
        print(line, file=sys.stderr)
    return (
        {"results": str(results_path)}
        | headline(results)
        | {
            "links": [link.model_dump(mode="json") for link in results.links],
            "problems": [*problems(results), *spoilt],
        }
    )


def report_run(place: Path) -> dict[str, Any]:
    """Writes the report of a run directory or of a results file, beside its results."""
    from benchmarks.report import write_report

    return {"report": str(write_report(place))}


def run_dataset(run_dir: Path) -> Dataset:
    """The images that the run was configured with."""
    from linearize.config import load_config
    from linearize.data import load_dataset

    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} is no run directory (it has no config.yaml); make one with `pi-pipeline run`")
    return load_dataset(load_config(run_dir / "config.yaml").data)


def calibration_images(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """The training images that fixed-point numbers are chosen on, uint8 [N, C, H, W]; drawn from all classes."""
    from pi_runtime.preset.calibrate import calibration_choice

    images: npt.NDArray[np.uint8] = dataset.train.images.numpy()
    return images[calibration_choice(len(images), CALIBRATION_IMAGES)]


def _public_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What the client may know of a checkpoint; nothing that depends on the weights but its accuracy."""
    known = ("network", "width", "dataset", "class_names", "mean", "std", "relu_total", "relu_budget")
    name = facts["network"] if facts["width"] is None else f"{facts['network']} of width {facts['width']}"
    return {"name": name, "weights": "trained"} | {key: facts[key] for key in known if facts.get(key) is not None}
