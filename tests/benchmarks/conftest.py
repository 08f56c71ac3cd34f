"""Results and run directories to report on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bench import Bench
from safetensors.numpy import save_file

from benchmarks.schema import (
    PHASES,
    Environment,
    LayerRow,
    Phase,
    ReluLayer,
    Results,
    Row,
    Schedule,
    SecureAccuracy,
    SentBytes,
    Subject,
)

LAYERS = ("relu", "layer1.0.relu1", "layer1.0.relu2", "layer1.1.relu1", "layer1.1.relu2", "layer2.0.relu1")
LAYERS += ("layer2.0.relu2", "layer2.1.relu1", "layer2.1.relu2", "layer3.0.relu1", "layer3.0.relu2", "layer3.1.relu1")
LAYERS += ("layer3.1.relu2", "layer4.0.relu1", "layer4.0.relu2", "layer4.1.relu1", "layer4.1.relu2")
ELEMENTS = (4096,) * 5 + (2048,) * 4 + (256,) * 4 + (256,) * 4
KEPT = (1100, 900, 720, 640, 510, 620, 410, 300, 210, 120, 100, 90, 70, 80, 60, 70, 0)


COUNTS = {"full": 30720, "linearized": 6000}
NOTHING = SentBytes(client=0, server=0, dealer=0)


def make_row(backend: str, subject: str, phase: Phase, seconds: float, sent: SentBytes, rounds: int) -> Row:
    """One row of five runs; the spread is 5 % up and down."""
    factors = (1.0,) if phase == "setup" else (1.02, 0.95, 1.0, 1.05, 0.99)
    return Row(
        backend=backend,
        subject=subject,
        network="loopback",
        kind="measured",
        phase=phase,
        sweep=0,
        images=1,
        seconds=tuple(seconds * factor for factor in factors),
        sent_bytes=sent,
        messages=2 * rounds,
        rounds=rounds,
        byte_source="tcp_info" if backend == "crypten" else "",
    )


def make_subject(name: str, relu_count: int, **changes: Any) -> Subject:
    """A trained network of 30,720 ReLUs that keeps so many."""
    facts: dict[str, Any] = {
        "name": name,
        "model": "resnet18 of width 4",
        "dataset": "digits",
        "relu_total": 30720,
        "relu_budget": relu_count,
        "relu_count": relu_count,
        "mask": "all" if relu_count == 30720 else "trained",
        "weights": "trained",
        "images": "test",
        "test_accuracy": 0.9861 if relu_count == 30720 else 0.9806,
        "test_images": 360,
    }
    return Subject(**(facts | changes))


@pytest.fixture
def results() -> Results:
    """A run on two backends with figures of a plausible size."""
    cost: dict[tuple[str, Phase], tuple[float, SentBytes, int]] = {
        ("full", "setup"): (4.21, SentBytes(client=88_000, server=91_000, dealer=0), 4),
        ("full", "offline"): (3.46, SentBytes(client=0, server=41_000, dealer=93_400_000), 1983),
        ("full", "online"): (6.318, SentBytes(client=48_211_008, server=48_302_144, dealer=0), 661),
        ("linearized", "setup"): (4.18, SentBytes(client=88_000, server=91_000, dealer=0), 4),
        ("linearized", "offline"): (1.32, SentBytes(client=0, server=40_000, dealer=20_100_000), 1900),
        ("linearized", "online"): (2.274, SentBytes(client=9_811_200, server=9_902_336, dealer=0), 634),
    }
    rows = [
        make_row("plaintext", subject, phase, {"setup": 0.031, "offline": 0.0, "online": 0.00172}[phase], NOTHING, 0)
        for subject in COUNTS
        for phase in PHASES
    ]
    rows += [make_row("crypten", subject, phase, *cost[subject, phase]) for subject, phase in cost]
    layers = [
        LayerRow(
            backend="crypten",
            subject=subject,
            network="loopback",
            phase="online",
            sweep=0,
            layer=name if op == "relu" else name.replace("relu", "conv"),
            op=op,
            relu_count=kept if op == "relu" else 0,
            seconds=(0.05 + kept / 20_000,) if op == "relu" else (0.06,),
            sent_bytes=SentBytes(client=1560 * kept, server=1570 * kept, dealer=0)
            if op == "relu"
            else SentBytes(client=32_768, server=32_768, dealer=0),
            messages=70,
            rounds=35 if op == "relu" else 1,
        )
        for subject, counts in (("full", ELEMENTS), ("linearized", KEPT))
        for name, kept in zip(LAYERS, counts, strict=True)
        for op in ("conv", "relu")
        if op == "conv" or kept
    ]
    return Results(
        inputs_sha256="0" * 64,
        command="pi-pipeline run --budget 6000",
        subjects=tuple(make_subject(name, count) for name, count in COUNTS.items()),
        schedule=Schedule(runs=5, warmup=1, sweeps=1, subjects_at_once=2, accuracy_batch=50),
        secure=(
            SecureAccuracy(
                backend="crypten",
                subject="full",
                images=100,
                agreement_with_plaintext=1.0,
                max_abs_logit_error=0.0123,
                accuracy=0.99,
            ),
            SecureAccuracy(
                backend="crypten",
                subject="linearized",
                images=100,
                agreement_with_plaintext=1.0,
                max_abs_logit_error=0.0098,
                accuracy=0.98,
            ),
        ),
        rows=tuple(rows),
        layers=tuple(layers),
        relu_layers=tuple(
            ReluLayer(subject=subject, layer=name, elements=elements, relu_count=kept)
            for subject, counts in (("full", ELEMENTS), ("linearized", KEPT))
            for name, elements, kept in zip(LAYERS, ELEMENTS, counts, strict=True)
        ),
        environment=Environment(
            cpu="Some CPU @ 2.10 GHz",
            cores=2,
            memory_bytes=16_700_000_000,
            system="Linux 6.1",
            python="3.12.4",
            packages={"torch": "2.14.1", "onnxruntime": "1.32.0"},
            threads=1,
            commit="0123456789abcdef0123456789abcdef01234567",
        ),
    )


@pytest.fixture
def sweep_results(results: Results) -> Results:
    """Random masks at four budgets and all ReLUs, on `preset` whose cost is linear and `crypten` whose cost is not."""
    counts = (200, 1000, 6000, 15000, 30720)
    subjects = [
        make_subject(
            "full" if count == 30720 else str(count),
            count,
            mask="all" if count == 30720 else "random",
            weights="random",
            images="noise",
            test_accuracy=None,
            test_images=0,
        )
        for count in counts
    ]
    costs: dict[str, Callable[[int], tuple[float, int]]] = {
        "preset": lambda count: (0.04 + 2e-6 * count, 20_000 + 11 * count),
        "crypten": lambda count: (1.2 + 1e-9 * count**2, 180_000_000 + 400 * count),
        "plaintext": lambda count: (0.004, 0),
    }
    rows = [
        make_row(backend, subject.name, phase, seconds, SentBytes(client=sent, server=0, dealer=0), 17)
        for backend, cost in costs.items()
        for subject in subjects
        for phase, (seconds, sent) in (
            ("online", cost(subject.relu_count)),
            ("offline", (0.0, 0) if backend == "plaintext" else cost(2 * subject.relu_count)),
        )
    ]
    return results.model_copy(
        update={"subjects": tuple(subjects), "rows": tuple(rows), "layers": (), "secure": (), "relu_layers": ()}
    )


@pytest.fixture
def run_dir(tmp_path: Path, results: Results) -> Path:
    """A run directory with results, a descent of 12 steps and the headers of its checkpoints."""
    results.save(tmp_path / "results.json")
    steps = [
        {
            "step": step,
            "relu_count": 8300 - 200 * (step + 1) if step < 11 else 6000,
            "train_accuracy": 99.8 - 0.05 * step,
            "val_accuracy": 98.4 - 0.11 * step + (0.3 if step % 4 == 3 else 0.0),
            "finetuned": step % 4 == 3,
        }
        for step in range(12)
    ]
    (tmp_path / "bcd.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    for name, count, accuracy in (("baseline", 30720, 98.9), ("snl", 8300, 98.3), ("linearized", 6000, 98.2)):
        document = json.dumps({"relu_count": count, "val_accuracy": accuracy})
        save_file({"w": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors", {"document": document})
    return tmp_path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A run of the harness on fake backends."""
    return Bench(tmp_path)
