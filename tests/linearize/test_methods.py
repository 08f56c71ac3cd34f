"""Every linearization method on a tiny network, through the one interface."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from linearize.config import RunConfig, load_config
from linearize.data import Dataset, load_dataset
from linearize.errors import BudgetError, ConfigError
from linearize.methods.activations import activation_differences
from linearize.methods.autorep import hysteresis
from linearize.methods.base import Task, check_count, geometric_budgets, sample_images
from linearize.methods.layer_culling import choose_layers, thin
from linearize.methods.registry import find_method, method_names
from linearize.methods.sensitivity import allocate, relu_sensitivities
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import (
    MaskedReLU,
    get_relu_mask,
    keep_largest,
    layer_counts,
    masked_layers,
    relu_count,
    set_relu_mask,
)
from linearize.stage import StageContext
from linearize.train import Teacher

TOTAL = 1920
SHORT = {
    "network.width": 4,
    "data.limit": 100,
    "snl.max_epochs": 2,
    "snl.batch_size": 50,
    "snl.mask_lr": 0.05,
    "autorep.epochs": 2,
    "autorep.batch_size": 50,
    "autorep.images": 60,
    "taylor.cuts": 3,
    "taylor.images": 40,
    "taylor.finetune.batch_size": 50,
    "gradual.finetune.epochs": 2,
    "gradual.finetune.batch_size": 20,
    "gradual.update_every": 1,
    "sensitivity.images": 40,
    "layer_culling.images": 40,
    "bcd.drc": 700,
    "bcd.rt": 2,
    "bcd.finetune.batch_size": 50,
}
FROZEN = ("random_mask", "sensitivity", "layer_culling")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(load_config(None, SHORT).data, Reporter(quiet=True))


def network() -> nn.Module:
    return build_network("resnet18", 4, 10, (1, 8, 8), seed=0)


def task(data: Dataset, root: Path, budget: int, seed: int = 0, **overrides: object) -> Task:
    settings = SHORT | {key.replace("__", "."): value for key, value in overrides.items()}
    config: RunConfig = load_config(None, settings | {"relu_budget": budget})
    context = StageContext(data, torch.device("cpu"), seed, root / "state", Reporter(quiet=True))
    return Task(network(), Teacher(network(), data), budget, config, context, root / "log.jsonl")


@pytest.mark.parametrize("budget", [1, 333, 1919, TOTAL])
@pytest.mark.parametrize("name", method_names())
def test_budget_is_met_exactly_and_weights_stay_where_that_is_said(
    name: str, budget: int, data: Dataset, tmp_path: Path
) -> None:
    given = task(data, tmp_path, budget)
    before = copy.deepcopy(given.model.state_dict())
    find_method(name)(given)
    check_count(given, name)
    assert relu_count(given.model) == budget
    after = given.model.state_dict()
    if name in FROZEN:
        assert set(before) == set(after)
        assert all(torch.equal(before[key], after[key]) for key in before if not key.endswith("relu_mask"))


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"bcd"}))
def test_equal_seeds_give_equal_networks(name: str, data: Dataset, tmp_path: Path) -> None:
    states = []
    for number in range(2):
        given = task(data, tmp_path / str(number), 400)
        find_method(name)(given)
        states.append(given.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["snl", "autorep", "taylor", "gradual"])
def test_an_interrupted_method_ends_like_an_undisturbed_one(
    name: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = task(data, tmp_path / "a", 400, taylor__finetune__epochs=2)
    with undisturbed.context.meter.watching(undisturbed.model):
        find_method(name)(undisturbed)
    cost = undisturbed.context.meter.counts()

    class Killed(Exception):
        pass

    from linearize import stage

    save = stage.save_tensors
    interruptions = 0
    while True:
        again = task(data, tmp_path / "b", 400, taylor__finetune__epochs=2)
        saves = 0

        def save_twice(*args: object, **kwargs: object) -> None:
            nonlocal saves
            saves += 1
            if saves > 1:
                raise Killed
            save(*args, **kwargs)

        monkeypatch.setattr(stage, "save_tensors", save_twice)
        try:
            with again.context.meter.watching(again.model):
                find_method(name)(again)
        except Killed:
            interruptions += 1
            assert interruptions < 30
        else:
            break
    assert interruptions >= 1
    for key, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor), key
    resumed = again.context.meter.counts()
    for activity in ("search", "finetune"):
        for kind in ("forward_images", "backward_images"):
            assert resumed[activity][kind] == cost[activity][kind], "no image is counted twice"


def test_counted_images_are_those_of_the_settings(data: Dataset, tmp_path: Path) -> None:
    """Oracle: arithmetic on the settings: 3 cuts of 40 images, finetunes of 2 epochs of 2 batches of 50 between."""
    given = task(data, tmp_path, 400, taylor__finetune__epochs=2)
    with given.context.meter.watching(given.model):
        find_method("taylor")(given)
    counts = given.context.meter.counts()
    assert (counts["search"]["forward_images"], counts["search"]["backward_images"]) == (120, 120)
    assert (counts["finetune"]["forward_images"], counts["finetune"]["backward_images"]) == (400, 400)
    given = task(data, tmp_path / "culling", 400)
    with given.context.meter.watching(given.model):
        find_method("layer_culling")(given)
    counts = given.context.meter.counts()
    layers = len(masked_layers(given.model))
    assert counts["search"]["forward_images"] == 40 * (layers + 2), "one pass a layer, one with all, one for channels"
    assert counts["search"]["backward_images"] == counts["finetune"]["forward_images"] == 0


def test_random_masks_follow_the_seed(data: Dataset, tmp_path: Path) -> None:
    masks = []
    for seed in (0, 1):
        given = task(data, tmp_path, 960, seed=seed)
        find_method("random_mask")(given)
        masks.append(get_relu_mask(given.model))
    overlap = int((masks[0] & masks[1]).sum())
    # Two independent halves of 1,920 share 480, with a standard deviation of 11.
    assert 420 < overlap < 540


def test_snl_keeps_the_largest_masks_when_its_epochs_end_early(data: Dataset, tmp_path: Path) -> None:
    given = task(data, tmp_path, 400, snl__mask_lr=1e-4)
    report = find_method("snl")(given)
    assert report["mask_epochs"][-1]["relu_count"] == TOTAL, "too short to get there by itself"
    assert relu_count(given.model) == 400


def test_activation_differences_equal_a_plain_loop(data: Dataset) -> None:
    model = network()
    indices = torch.tensor([3, 50, 7])
    inputs: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0][0]))
        for name, layer in masked_layers(model).items()
    ]
    for index in indices:
        model(data.normalise(data.train.images[index][None]))
    for hook in hooks:
        hook.remove()
    expected = torch.cat(
        [torch.stack([(x - torch.relu(x)).abs() for x in xs]).mean(0).flatten() for xs in inputs.values()]
    )
    torch.testing.assert_close(activation_differences(model, data, indices).float(), expected, atol=1e-5, rtol=1e-4)


def test_layers_are_culled_in_order_of_criticality_as_far_as_the_budget_allows() -> None:
    """By hand: of 100 ReLUs 35 stay, so 65 go: c (30) fits, a (40) does not, d (10) and b (20) do; a is thinned."""
    counts = {"a": 40, "b": 20, "c": 30, "d": 10}
    criticality = {"a": 0.2, "b": 0.9, "c": 0.1, "d": 0.5}
    assert choose_layers(counts, criticality, 35) == (["c", "d", "b"], "a")
    assert choose_layers(counts, criticality, 40) == (["c", "d", "b"], None)
    assert choose_layers(counts, criticality, 100) == ([], None)
    assert choose_layers(counts, criticality, 1) == (["c", "a", "d"], "b")


def test_thinning_takes_whole_channels_the_least_active_first() -> None:
    layer = MaskedReLU((3, 2, 2))
    differences = torch.tensor([5.0, 5, 5, 5, 1, 1, 1, 1, 3, 3, 3, 3], dtype=torch.float64)
    thin(layer, differences, 6)
    assert layer.relu_mask.flatten(1).tolist() == [[True] * 4, [False] * 4, [False, False, True, True]]


def test_layer_with_the_smallest_rise_of_the_loss_goes_first(data: Dataset, tmp_path: Path) -> None:
    """Oracle: the loss with each layer linear, one image at a time."""
    given = task(data, tmp_path, 1500)
    chosen = sample_images(given, 40, "layer culling")
    model = network()

    def loss() -> float:
        values = [
            F.cross_entropy(model(data.normalise(data.train.images[i][None])), data.train.labels[i][None])
            for i in chosen
        ]
        return float(torch.stack(values).mean())

    with torch.no_grad():
        base = loss()
        expected = {}
        for name, layer in masked_layers(model).items():
            layer.relu_mask.fill_(False)
            expected[name] = (loss() - base) / layer.relu_mask.numel()
            layer.relu_mask.fill_(True)
    report = find_method("layer_culling")(given)
    assert report["criticality"] == pytest.approx(expected, abs=1e-6)
    for name in report["culled"]:
        assert layer_counts(given.model)[name] == 0


def test_shares_are_proportional_and_never_above_capacity() -> None:
    weights = torch.tensor([0.1, 0.2, 0.7])
    assert allocate(100, weights, [1000, 1000, 1000]) == [10, 20, 70]
    # The third layer takes 40; the other 60 go 1 : 2.
    assert allocate(100, weights, [1000, 1000, 40]) == [20, 40, 40]
    assert allocate(1080, weights, [1000, 40, 40]) == [1000, 40, 40]
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        capacities = torch.randint(0, 50, (7,), generator=rng).tolist()
        budget = int(torch.randint(0, sum(capacities) + 1, (1,), generator=rng))
        shares = allocate(budget, torch.rand(7, generator=rng), capacities)
        assert sum(shares) == budget
        assert all(0 <= share <= capacity for share, capacity in zip(shares, capacities, strict=True))


def test_sensitivities_are_the_pruned_shares_of_the_weights_before_each_relu() -> None:
    """Oracle: the same threshold, with the weights of each ReLU named by hand."""
    model = network()
    weights = {
        name: module.weight.detach().abs().flatten()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    groups = [["conv", "layer1.0.conv1"], ["layer1.0.conv2"], ["layer1.1.conv1"], ["layer1.1.conv2"]]
    for stage in (2, 3, 4):
        groups += [[f"layer{stage}.0.conv1"], [f"layer{stage}.0.conv2", f"layer{stage}.0.shortcut.0"]]
        groups += [[f"layer{stage}.1.conv1"], [f"layer{stage}.1.conv2"]]
    everything = torch.cat([weights[name] for group in groups for name in group])
    threshold = everything.sort(descending=True).values[round(0.1 * len(everything)) - 1]
    expected = [
        1 - float((torch.cat([weights[name] for name in group]) >= threshold).double().mean()) for group in groups
    ]
    assert relu_sensitivities(model, (1, 8, 8), 0.1).tolist() == pytest.approx(expected)


def test_geometric_budgets_fall_by_equal_factors() -> None:
    assert geometric_budgets(1600, 100, 4) == [800, 400, 200, 100]
    assert geometric_budgets(100, 100, 4) == []
    assert geometric_budgets(3, 1, 5) == [2, 1]
    factors = [
        b / a
        for a, b in zip(geometric_budgets(122880, 1500, 12), geometric_budgets(122880, 1500, 12)[1:], strict=False)
    ]
    assert factors == pytest.approx([math.exp(math.log(1500 / 122880) / 12)] * 11, rel=1e-3)


def test_keep_largest_takes_the_first_of_equals() -> None:
    assert keep_largest(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist() == [False, True, True, False]
    assert keep_largest(torch.tensor([1.0, 1.0, 1.0]), 2).tolist() == [True, True, False]


def test_indicator_switches_only_beyond_the_hysteresis() -> None:
    kept = torch.tensor([True, True, True, False, False, False])
    numbers = torch.tensor([0.5, -0.002, -0.004, -1.0, 0.002, 0.004])
    assert hysteresis(kept, numbers, 0.003).tolist() == [True, True, False, False, False, True]


def test_autorep_of_degree_two_gives_every_channel_a_parabola(data: Dataset, tmp_path: Path) -> None:
    given = task(data, tmp_path, 400, autorep__degree=2)
    find_method("autorep")(given)
    for layer in masked_layers(given.model).values():
        assert layer.replacement.shape == (3, layer.relu_mask.shape[0])
        assert layer.soft_mask is None


def test_a_method_that_misses_the_budget_and_an_unknown_one_are_named(data: Dataset, tmp_path: Path) -> None:
    given = task(data, tmp_path, 400)
    set_relu_mask(given.model, keep_largest(torch.rand(TOTAL), 390))
    with pytest.raises(BudgetError, match="method magic must leave 400 ReLUs, but left 390"):
        check_count(given, "magic")
    with pytest.raises(ConfigError, match=r"method must be one of autorep, bcd, .*taylor, got 'magic'"):
        find_method("magic")
