"""Averages of weights, BatchNorm statistics measured again, best epochs; oracles are plain loops."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from linearize.averaging import BestEpoch, MovingAverage, average_weights, reestimate_batch_norm
from linearize.config import DataConfig, LastFinetuneConfig
from linearize.data import Dataset, load_dataset, training_batches
from linearize.finetune import last_finetune
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.rng import generator
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=90), Reporter(quiet=True))


def context(data: Dataset, root: Path) -> StageContext:
    return StageContext(data, torch.device("cpu"), 0, root, Reporter(quiet=True))


def network(seed: int = 0) -> nn.Module:
    return build_network("resnet18", 4, 10, (1, 8, 8), seed=seed)


def test_moving_average_equals_its_recursion() -> None:
    model = nn.Linear(2, 1)
    average = MovingAverage(0.75)
    expected = None
    for step in range(4):
        with torch.no_grad():
            model.weight.fill_(float(step**2))
        average.after_step(model)
        expected = float(step**2) if expected is None else 0.75 * expected + 0.25 * step**2
    average.write_to(model)
    assert model.weight.tolist() == [[pytest.approx(expected)] * 2]


def test_averaged_weights_are_the_mean_and_buffers_stay() -> None:
    model = network()
    members = [network(seed).state_dict() for seed in (1, 2, 3)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    average_weights(model, members)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), (members[0][name] + members[1][name] + members[2][name]) / 3)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_batch_norm_statistics_are_the_mean_over_batches(data: Dataset) -> None:
    """Oracle: the first BatchNorm sees the convolution of the input, so its statistics can be computed apart."""
    model = network()
    batches = list(training_batches(data, 30, False, generator(0, "x")))
    with torch.no_grad():
        maps = [model.conv(batch.inputs).transpose(0, 1).flatten(1) for batch in batches]
    reestimate_batch_norm(model, batches)
    torch.testing.assert_close(model.bn.running_mean, torch.stack([x.mean(1) for x in maps]).mean(0))
    torch.testing.assert_close(model.bn.running_var, torch.stack([x.var(1) for x in maps]).mean(0))
    assert model.bn.momentum == 0.1
    assert not model.training


def test_best_epoch_is_the_first_of_the_highest_validation_accuracy(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestEpoch(data, 4)
    model = nn.Linear(1, 1, bias=False)
    history = []
    for epoch, value in enumerate([10.0, 30.0, 30.0, 20.0]):
        monkeypatch.setattr("linearize.averaging.accuracy", lambda *args, value=value: value)
        nn.init.constant_(model.weight, epoch)
        record = {"epoch": epoch}
        best.after_epoch(model, record)
        history.append(record)
    assert [record["val_accuracy"] for record in history] == [10, 30, 30, 20]
    resumed = BestEpoch(data, 4)
    resumed.restore(best.tensors(), history)
    for follower in (best, resumed):
        assert (follower.epoch, follower.val_accuracy) == (1, 30.0)
        nn.init.constant_(model.weight, 9)
        follower.write_to(model)
        assert model.weight.item() == 1


def test_validation_of_every_third_epoch_counts_back_from_the_last(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linearize.averaging.accuracy", lambda *args: 50.0)
    best, model = BestEpoch(data, 5, every=3), nn.Linear(1, 1)
    history = [{"epoch": epoch} for epoch in range(5)]
    for number, record in enumerate(history):
        best.after_epoch(model, record)
        resumed = BestEpoch(data, 5, every=3)
        resumed.restore(best.tensors(), history[: number + 1])
        assert (resumed.epoch, resumed.val_accuracy) == (best.epoch, best.val_accuracy)
    assert [record["epoch"] for record in history if "val_accuracy" in record] == [1, 4]


@pytest.mark.parametrize("extras", [{}, {"ema": 0.5}, {"soup": 2}, {"soup": 2, "ema": 0.5}])
def test_a_killed_last_finetune_ends_like_an_undisturbed_one(
    extras: dict[str, float], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LastFinetuneConfig(epochs=2, batch_size=45, lr=0.05, **extras)
    model = network()
    done = last_finetune(model, Teacher(network(), data), settings, context(data, tmp_path / "a"))
    from linearize import stage

    save, kills = stage.save_tensors, 0
    while True:
        saves = 0

        def save_once(*args: object) -> None:
            nonlocal saves
            saves += 1
            if saves > 1:
                raise InterruptedError
            save(*args)

        monkeypatch.setattr(stage, "save_tensors", save_once)
        again = network()
        try:
            resumed = last_finetune(again, Teacher(network(), data), settings, context(data, tmp_path / "b"))
        except InterruptedError:
            kills += 1
        else:
            break
    assert kills == settings.soup * 2 - 1
    assert resumed.records == done.records
    assert (resumed.best.epoch, resumed.best.val_accuracy) == (done.best.epoch, done.best.val_accuracy)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    for finished, last in ((done, model), (resumed, again)):
        best = copy.deepcopy(last)
        finished.best.write_to(best)
        assert accuracy(best, data, data.val) == finished.best.val_accuracy


def test_a_soup_of_one_is_a_plain_finetune_and_members_differ(data: Dataset, tmp_path: Path) -> None:
    ends = {}
    for soup in (1, 2):
        model = network()
        settings = LastFinetuneConfig(epochs=1, batch_size=45, lr=0.05, soup=soup)
        done = last_finetune(model, Teacher(network(), data), settings, context(data, tmp_path / str(soup)))
        assert [record["member"] for record in done.records] == list(range(soup))
        ends[soup] = model.linear.weight.detach()
    assert not torch.equal(ends[1], ends[2])


def test_bfloat16_steps_stay_near_float32_ones(data: Dataset, tmp_path: Path) -> None:
    weights = []
    for amp in (False, True):
        model = network()
        given = StageContext(data, torch.device("cpu"), 0, tmp_path / str(amp), Reporter(quiet=True), amp)
        settings = LastFinetuneConfig(epochs=1, batch_size=45, lr=0.01)
        last_finetune(model, Teacher(network(), data), settings, given)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in network().parameters()])
    moved, apart = (weights[0] - start).norm(), (weights[0] - weights[1]).norm()
    assert 0 < apart < 0.5 * moved
