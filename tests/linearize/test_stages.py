"""Training and SNL on a tiny network; oracles are plain loops and formulas."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from linearize.config import DataConfig, DistillConfig, SgdConfig, SnlConfig
from linearize.data import Dataset, load_dataset, training_batches
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import relu_count, relu_total
from linearize.rng import generator
from linearize.snl import make_reference, select_kept
from linearize.stage import StageContext
from linearize.train import Teacher, cross_entropy, distillation_loss, fit, learning_rate_factor

TOTAL = 1920


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=120), Reporter(quiet=True))


@pytest.fixture
def context(data: Dataset, tmp_path: Path) -> StageContext:
    return StageContext(data, torch.device("cpu"), 0, tmp_path / "state", Reporter(quiet=True))


def network(seed: int = 0) -> torch.nn.Module:
    return build_network("resnet18", 4, 10, (1, 8, 8), seed=seed)


def test_select_kept_takes_those_above_the_threshold_or_the_largest() -> None:
    soft = torch.tensor([0.5, 0.009, -1.0, 0.02, 0.3])
    assert select_kept(soft, 0.01, 2).tolist() == [True, False, False, True, True]
    assert select_kept(soft, 0.01, 4).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(("mask_lr", "reference_budget"), [(0.2, 800), (1.5, 800), (1e-4, 800), (0.2, TOTAL)])
def test_snl_never_undershoots_and_stops_at_the_first_count_within_budget(
    mask_lr: float, reference_budget: int, context: StageContext
) -> None:
    model = network()
    settings = SnlConfig(
        mask_lr=mask_lr,
        l1_weight=0.01,
        max_epochs=4 if mask_lr < 0.1 else 30,
        batch_size=40,
        finetune=DistillConfig(epochs=1, batch_size=40),
    )
    report = make_reference(model, Teacher(network(), context.data), reference_budget, settings, context)
    assert relu_count(model) == report["relu_count"] >= reference_budget
    counts = [record["relu_count"] for record in report["mask_epochs"]]
    if mask_lr == 1e-4:
        assert relu_count(model) == TOTAL, "a mask phase too short keeps more, for BCD to remove"
    elif counts:
        assert relu_count(model) == reference_budget
        assert counts[-1] <= reference_budget
        assert all(count > reference_budget for count in counts[:-1])
    assert not any(name.endswith("soft_mask") for name in model.state_dict())
    assert relu_total(model) == TOTAL


def test_distillation_loss_equals_its_formula() -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = F.softmax(teacher / 4, 1), F.softmax(student / 4, 1)
    expected = (p * (p.log() - q.log())).sum(1).mean() * 16
    torch.testing.assert_close(distillation_loss(student, teacher, 4.0), expected)
    torch.testing.assert_close(distillation_loss(teacher, teacher, 4.0), torch.zeros((), dtype=torch.float64))


def test_teachers_cached_logits_equal_its_forward_pass(context: StageContext) -> None:
    model = network(5)
    teacher = Teacher(model, context.data)
    for batch in training_batches(context.data, 30, False, generator(0, "x")):
        torch.testing.assert_close(teacher.logits(batch), model(batch.inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step"])
def test_schedules_follow_their_curves(schedule: str) -> None:
    points = {
        "one_cycle": {0: 0.1, 0.125: 0.55, 0.25: 1, 0.625: 0.5, 1: 0},
        "cosine": {0: 1, 0.5: 0.5, 1: 0},
        "step": {0: 1, 0.49: 1, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01},
    }
    for progress, factor in points[schedule].items():
        assert learning_rate_factor(schedule, progress) == pytest.approx(factor, abs=1e-12)


def test_fit_equals_a_plain_sgd_loop(context: StageContext) -> None:
    """Oracle: the update written out, one epoch after the other, no optimizer class."""
    settings = SgdConfig(epochs=2, batch_size=40, lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine")
    ours, plain = network(6), network(6)
    fit(ours, settings, context, stage="s", loss=cross_entropy, augmented=False, state=context.state("s"))
    plain.train()
    velocity = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    step = 0
    for epoch in range(2):
        for batch in training_batches(context.data, 40, False, generator(0, "s", epoch)):
            plain.zero_grad()
            F.cross_entropy(plain(batch.inputs), batch.labels).backward()
            lr = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 6))
            with torch.no_grad():
                for parameter, speed in zip(plain.parameters(), velocity, strict=True):
                    speed.mul_(0.9).add_(parameter.grad + 0.01 * parameter)
                    parameter.sub_(lr * speed)
            step += 1
    assert step == 6
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
