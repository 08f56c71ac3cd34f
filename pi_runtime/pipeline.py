"""The steps of ``pi-pipeline run`` over one run directory; each can be called alone and again.

This is where training, runtime and benchmarks are joined, and they meet at files only::

    linearize.run       ->  baseline.safetensors, linearized.safetensors, bcd.jsonl
    export_run          ->  full.onnx, model.onnx, model.public.json, model.crypten.pt
    bench_run           ->  results.json
    benchmarks.report   ->  report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linearize.config import RunConfig

FULL, MODEL, PUBLIC, CRYPTEN = "full.onnx", "model.onnx", "model.public.json", "model.crypten.pt"


def default_run_dir(config: RunConfig) -> Path:
    """``runs/<dataset>-<network>-<width>-<budget>-seed<seed>``; the width is left out where it is the paper's."""
    width = [] if config.network.width is None else [f"w{config.network.width}"]
    parts = [config.data.dataset, config.network.name, *width, str(config.relu_budget), f"seed{config.seed}"]
    return Path("runs") / "-".join(parts)


def export_run(run_dir: Path) -> None:
    """Exports the baseline and the linearized network of ``run_dir``; overwrites what an earlier export left.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
    """
    export_checkpoint(run_dir / "baseline.safetensors", run_dir / FULL)
    export_checkpoint(run_dir / "linearized.safetensors", run_dir / MODEL, companions=True)


def export_checkpoint(checkpoint: Path, output: Path, *, companions: bool = False) -> None:
    """Exports one checkpoint to ``output``.

    companions: also write the public graph and the CrypTen graph beside it, under the names of a run directory.
    """
    from linearize.checkpoint import load_checkpoint
    from pi_runtime.export import export_onnx

    model, facts = load_checkpoint(checkpoint)
    export_onnx(model, tuple(facts["input_shape"]), output, metadata=_public_facts(facts))
    if companions:
        from pi_runtime.crypten_graph import save_crypten_graph
        from pi_runtime.onnx_graph import load_onnx

        graph = load_onnx(output)
        graph.save_public(output.with_name(output.stem + ".public.json"))
        save_crypten_graph(graph, output.with_name(output.stem + ".crypten.pt"))


def _public_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What the client may know of a checkpoint; nothing that depends on the weights but its accuracy."""
    known = ("network", "width", "dataset", "class_names", "mean", "std", "relu_budget", "test_accuracy")
    return {key: facts[key] for key in known if facts.get(key) is not None}
