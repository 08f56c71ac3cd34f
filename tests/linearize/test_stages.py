"""Training, SNL and BCD on a tiny network; oracles are plain loops and formulas."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from linearize.bcd import bcd, network_scorer
from linearize.config import BcdConfig, DataConfig, DistillConfig, SgdConfig, SnlConfig
from linearize.data import Dataset, load_dataset, training_batches
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import get_relu_mask, relu_count, relu_total, set_relu_mask
from linearize.rng import generator
from linearize.snl import make_reference, select_kept
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy, cross_entropy, distillation_loss, fit, learning_rate_factor

TOTAL = 1920


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=120), Reporter(quiet=True))


@pytest.fixture
def context(data: Dataset, tmp_path: Path) -> StageContext:
    return StageContext(data, torch.device("cpu"), 0, tmp_path / "state", Reporter(quiet=True))


def network(seed: int = 0) -> torch.nn.Module:
    return build_network("resnet18", 4, 10, (1, 8, 8), seed=seed)


def randomly_masked(seed: int, share: float) -> tuple[torch.nn.Module, torch.Tensor]:
    model = network()
    kept = torch.rand(TOTAL, generator=torch.Generator().manual_seed(seed)) < share
    set_relu_mask(model, kept)
    return model, kept


def plain_errors(model: torch.nn.Module, data: Dataset) -> int:
    """One image at a time, normalised by hand."""
    errors = 0
    with torch.no_grad():
        for image, label in zip(data.train.images, data.train.labels, strict=True):
            x = (image.float() / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
            errors += int(model.eval()(x[None])[0].argmax()) != int(label)
    return errors


def test_candidate_scores_equal_a_plain_loop_over_images(data: Dataset) -> None:
    model, _ = randomly_masked(0, 1.0)
    score = network_scorer(model, data, batch_size=50)
    for seed, share in ((1, 0.5), (2, 0.1)):
        other, kept = randomly_masked(seed, share)
        result = score(kept, None)
        assert result.errors == plain_errors(other, data)
        assert result.images == 120


def test_scoring_stops_after_the_batch_that_decides(data: Dataset) -> None:
    model, kept = randomly_masked(1, 0.5)
    score = network_scorer(model, data, batch_size=10)
    full = score(kept, None)
    stopped = score(kept, full.errors // 2)
    assert full.errors // 2 <= stopped.errors < full.errors
    assert stopped.images < full.images
    assert score(kept, full.errors + 1) == full


@pytest.mark.parametrize("policy", ["on_rejection", "always"])
@pytest.mark.parametrize(("start", "budget"), [(1000, 730), (1000, 1000), (900, 1)])
def test_bcd_meets_the_budget_exactly_and_never_gives_a_relu_back(
    policy: str, start: int, budget: int, context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    kept = torch.zeros(TOTAL, dtype=torch.bool)
    kept[torch.randperm(TOTAL, generator=torch.Generator().manual_seed(3))[:start]] = True
    set_relu_mask(model, kept)
    masks = [kept]

    def finetune_nothing(model, *args, **kwargs):
        masks.append(get_relu_mask(model))
        return []

    monkeypatch.setattr("linearize.bcd.finetune", finetune_nothing)
    settings = BcdConfig(drc=100, rt=2, adt=0.5, finetune_policy=policy)
    log_path = tmp_path / "bcd.jsonl"
    report = bcd(model, Teacher(network(), context.data), budget, settings, context, log_path)
    masks.append(get_relu_mask(model))
    assert relu_count(model) == budget
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(masks))
    log = [json.loads(line) for line in log_path.read_text().splitlines()]
    steps = math.ceil((start - budget) / 100)
    assert [record["step"] for record in log] == list(range(steps))
    assert report["steps"] == steps
    assert [record["relu_count"] for record in log] == [max(budget, start - 100 * (i + 1)) for i in range(steps)]
    assert all(sum(record["layer_counts"].values()) == record["relu_count"] for record in log)
    assert all(record["finetuned"] == (policy == "always" or not record["accepted"]) for record in log)
    for before, after in itertools.pairwise(log):
        assert after["reference_accuracy"] == before["train_accuracy"], "the reference is measured anew"


def test_logged_training_accuracy_is_that_of_the_network(context: StageContext, tmp_path: Path) -> None:
    model, kept = randomly_masked(4, 0.5)
    budget = int(kept.sum()) - 50
    settings = BcdConfig(
        drc=50, rt=1, finetune_policy="always", finetune=DistillConfig(epochs=1, batch_size=40, lr=0.05)
    )
    bcd(model, Teacher(network(), context.data), budget, settings, context, tmp_path / "bcd.jsonl")
    record = json.loads((tmp_path / "bcd.jsonl").read_text())
    assert record["train_accuracy"] == pytest.approx(100 * (120 - plain_errors(model, context.data)) / 120)
    assert accuracy(model, context.data, context.data.train) == pytest.approx(record["train_accuracy"])


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
