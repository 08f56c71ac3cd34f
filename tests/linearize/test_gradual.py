"""The gradual descent: its schedule, its scores against `relu_scores`, and what comes back; SNL's shared mask phase."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from linearize.config import GradualConfig, load_config
from linearize.data import Dataset, load_dataset
from linearize.errors import ConfigError
from linearize.methods.base import Task
from linearize.methods.gradual import MaskFollower, count_at
from linearize.methods.registry import find_method
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import get_relu_mask, keep_largest, layer_counts, relu_count, set_relu_mask
from linearize.rng import generator
from linearize.sensitivity import relu_scores
from linearize.stage import StageContext
from linearize.train import Teacher

SETTINGS = {"network.width": 4, "data.limit": 100, "data.augment": False, "snl.batch_size": 50, "snl.mask_lr": 0.1}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(load_config(None, SETTINGS).data, Reporter(quiet=True))


def network() -> nn.Module:
    return build_network("resnet18", 4, 10, (1, 8, 8), seed=0)


@pytest.mark.parametrize("curve", [0.5, 1.0, 3.0])
def test_the_count_falls_from_all_to_the_budget(curve: float) -> None:
    counts = [count_at(1920, 60, step / 50, curve) for step in range(60)]
    assert counts[0] == 1920
    assert counts == sorted(counts, reverse=True)
    assert set(counts[50:]) == {60}


def test_the_curve_1_divides_by_equal_factors() -> None:
    assert [count_at(1600, 100, step / 4, 1.0) for step in range(5)] == [1600, 800, 400, 200, 100]


def test_the_first_scores_rank_as_those_of_a_separate_backward_pass(data: Dataset) -> None:
    """One batch of all images; statistics of BatchNorm frozen, so that training and evaluation see the same network."""
    model = network()
    set_relu_mask(model, torch.rand(1920, generator=torch.Generator().manual_seed(1)) < 0.5)
    expected = relu_scores(
        model, data, len(data.train), statistic="rms", loss="cross_entropy", rng=generator(0, "test")
    )
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    settings = GradualConfig(memory=0.5, score_every=1)
    with MaskFollower(model, 100, settings, steps=10) as follower:
        inputs = data.normalise(data.train.images)
        torch.autograd.backward(F.cross_entropy(model(inputs), data.train.labels))
        worth = torch.cat([tensor.flatten() for name, tensor in follower.tensors().items() if name.isdigit()])
    torch.testing.assert_close((worth / 0.5).sqrt().double(), expected, rtol=1e-3, atol=1e-6)


def follower_at(model: nn.Module, return_factor: float) -> MaskFollower:
    """At a step whose update keeps half of the network, with scores by position: the last locations are worth most."""
    settings = GradualConfig(return_factor=return_factor, share=1.0, update_every=1)
    follower = MaskFollower(model, relu_count(model), settings, steps=2)
    worth, start = follower.tensors(), 1
    for name, tensor in worth.items():
        if name.isdigit():
            worth[name] = torch.arange(start, start + tensor.numel()).view(tensor.shape).float()
            start += tensor.numel()
    follower.restore(worth | {"step": torch.tensor(0)}, [{}])
    return follower


def test_removed_relus_of_higher_worth_come_back() -> None:
    model = network()
    first_half = keep_largest(-torch.arange(1920.0), 960)
    set_relu_mask(model, first_half)
    follower = follower_at(model, 1.0)
    follower.after_step(model)
    assert torch.equal(get_relu_mask(model), ~first_half)
    record: dict[str, int] = {}
    follower.after_epoch(model, record)
    assert record == {"relu_count": 960, "given_back": 960}


@pytest.mark.parametrize("dead", [False, True])
def test_without_return_none_comes_back(dead: bool) -> None:
    """Also where all kept ReLUs are worth nothing, and removed ones come first among equals."""
    model = network()
    kept = keep_largest(torch.arange(1920.0) if dead else -torch.arange(1920.0), 960)
    set_relu_mask(model, kept)
    follower = follower_at(model, 0.0)
    if dead:
        tensors = follower.tensors()
        follower.restore({name: tensor * 0 if name.isdigit() else tensor for name, tensor in tensors.items()}, [{}])
    follower.after_step(model)
    assert torch.equal(get_relu_mask(model), kept)


def test_a_training_of_no_epochs_is_refused(data: Dataset, tmp_path: Path) -> None:
    task = snl_task(data, tmp_path, 300, None)
    config = load_config(None, SETTINGS | {"relu_budget": 300, "gradual.finetune.epochs": 0})
    with pytest.raises(ConfigError, match=r"gradual\.finetune\.epochs must be at least 1"):
        find_method("gradual")(replace(task, config=config))


def snl_task(data: Dataset, root: Path, budget: int, shared_dir: Path | None) -> Task:
    config = load_config(None, SETTINGS | {"relu_budget": budget, "snl.max_epochs": 12, "snl.l1_weight": 0.01})
    context = StageContext(data, torch.device("cpu"), 0, root, Reporter(quiet=True), shared_dir=shared_dir)
    return Task(network(), Teacher(network(), data), budget, config, context, root / "log.jsonl")


@pytest.mark.parametrize("budgets", [(1500, 900, 300), (300, 1500, 900)])
def test_a_shared_mask_phase_ends_as_one_alone_and_is_charged_in_full(
    budgets: tuple[int, ...], data: Dataset, tmp_path: Path
) -> None:
    epochs = []
    for budget in budgets:
        ends = []
        for shared_dir in (None, tmp_path / "shared"):
            task = snl_task(data, tmp_path / f"{budget}-{shared_dir is None}", budget, shared_dir)
            with task.context.meter.watching(task.model):
                report = find_method("snl")(task)
            cost = {name: part["forward_images"] for name, part in task.context.meter.counts().items()}
            ends.append((task.model.state_dict(), report, cost))
        (alone, report, cost), (shared, shared_report, shared_cost) = ends
        assert all(torch.equal(alone[name], shared[name]) for name in alone)
        assert report == shared_report
        assert cost == shared_cost
        epochs.append(len(report["mask_epochs"]))
    # Otherwise nothing was shared.
    assert max(epochs) > min(epochs) > 1


@pytest.mark.parametrize(("most", "budget"), [(1, 60), (3, 200), (3, 620)])
def test_no_more_layers_keep_relus_than_asked_for(most: int, budget: int, data: Dataset, tmp_path: Path) -> None:
    """620 of 1,920: the three largest layers have 768, the three of highest worth need not."""
    settings = SETTINGS | {
        "relu_budget": budget,
        "gradual.most_layers": most,
        "gradual.update_every": 1,
        "gradual.finetune.batch_size": 10,
        "gradual.finetune.epochs": 2,
    }
    config = load_config(None, settings)
    context = StageContext(data, torch.device("cpu"), 0, tmp_path, Reporter(quiet=True))
    model = network()
    find_method("gradual")(Task(model, Teacher(network(), data), budget, config, context, tmp_path / "log"))
    assert relu_count(model) == budget
    assert 1 <= sum(count > 0 for count in layer_counts(model).values()) <= most


def test_layers_are_closed_one_after_the_other_from_that_of_least_worth() -> None:
    """Four locations of each layer carry its worth, and the budget holds four a layer."""
    model = network()
    layers = len(layer_counts(model))
    order = torch.randperm(layers, generator=torch.Generator().manual_seed(2)).tolist()
    settings = GradualConfig(share=1.0, update_every=1, most_layers=3)
    follower = MaskFollower(model, 4 * layers, settings, steps=100)
    state = follower.tensors()
    for rank, number in enumerate(order):
        state[str(number)].flatten()[:4] = rank + 1
    follower.restore(state, [])
    nonempty = []
    for _ in range(100):
        follower.after_step(model)
        nonempty.append([number for number, count in enumerate(layer_counts(model).values()) if count])
    closed = [len(open_layers) for open_layers in nonempty]
    assert closed == sorted(closed, reverse=True)
    assert set(closed) == set(range(3, layers + 1)), "never two at once"
    assert set(closed[49:]) == {3}
    assert all(open_layers == sorted(order[-len(open_layers) :]) for open_layers in nonempty)
    assert relu_count(model) == 4 * layers


def test_layers_too_few_for_the_budget_are_refused_before_any_training(data: Dataset, tmp_path: Path) -> None:
    config = load_config(None, SETTINGS | {"relu_budget": 1000, "gradual.most_layers": 2})
    context = StageContext(data, torch.device("cpu"), 0, tmp_path, Reporter(quiet=True))
    model = network()
    with pytest.raises(ConfigError, match="largest 2 layers have 512 ReLUs"):
        find_method("gradual")(Task(model, Teacher(network(), data), 1000, config, context, tmp_path / "log"))
    assert relu_count(model) == 1920
    for name, tensor in network().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
