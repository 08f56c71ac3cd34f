import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import linearize
from linearize.config import load_config
from linearize.errors import BudgetError, ConfigError, DataError
from linearize.progress import Reporter
from linearize.relu_mask import layer_counts, masked_layers, relu_total
from linearize.user_data import user_dataset

QUIET = Reporter(quiet=True)
QUICK: dict[str, object] = {
    "bcd.drc": 40,
    "bcd.rt": 2,
    "bcd.finetune.batch_size": 16,
    "finetune.epochs": 1,
    "finetune.batch_size": 16,
    "snl.max_epochs": 1,
    "snl.batch_size": 16,
    "snl.finetune.batch_size": 16,
}
BUDGET = 150


class Net(nn.Module):
    """One ReLU module called twice in a block that is called twice, and a functional ReLU of flat features."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.bn = nn.BatchNorm2d(2)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.conv(self.relu(self.bn(self.conv(x)))))

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()
        self.dense = nn.Linear(2 * 36, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.block(x))
        return self.head(F.relu(self.dense(x.flatten(1))))


def examples(seed: int, count: int = 48) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn(count, 2, 6, 6, generator=rng) + labels[:, None, None, None], labels


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = Net()
    images, labels = examples(0)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def test_budget_is_met_and_the_record_says_what_happened(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    module, record = linearize.linearize(
        model, examples(0), examples(1), budget=BUDGET, settings=QUICK, reporter=QUIET, device="cpu"
    )
    assert sum(layer_counts(module).values()) == BUDGET == record.relu_count
    # By hand: four calls of 2 x 6 x 6 and one of 10 features.
    assert {name: layer["before"] for name, layer in record.layers.items()} == {
        "block.relu_call1": 72,
        "block.relu_call2": 72,
        "block.relu_call3": 72,
        "block.relu_call4": 72,
        "relu": 10,
    }
    assert record.relu_total == 298
    assert {name: layer["after"] for name, layer in record.layers.items()} == layer_counts(module)
    assert record.steps[-1]["relu_count"] == BUDGET
    assert set(record.seconds) == {"reference", "search", "finetune"}
    images, labels = examples(1)
    with torch.no_grad():
        for network, accuracy in ((model, record.val_accuracy_before), (module, record.val_accuracy_after)):
            assert 100 * float((network(images).argmax(1) == labels).float().mean()) == pytest.approx(accuracy)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not module.training


def test_a_torch_dataset_and_a_pair_of_tensors_give_the_same_network(model: nn.Module) -> None:
    settings = {**QUICK, "finetune.epochs": 0}
    pairs = [examples(0), examples(1)]
    results = [
        linearize.linearize(
            model, *parts, budget=100, method="random_mask", settings=given, seed=3, reporter=QUIET, device="cpu"
        )
        for parts, given in (
            (pairs, settings),
            ([TensorDataset(*pair) for pair in pairs], load_config(None, settings)),
        )
    ]
    (first, record), (second, again) = results
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    assert dataclasses.replace(record, seconds={}) == dataclasses.replace(again, seconds={})
    assert record.method == "random_mask"
    assert record.steps == []


def test_pixels_are_divided_by_255_and_floats_taken_as_they_are() -> None:
    pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 1, 0])
    data = user_dataset((pixels, labels), (pixels, labels))
    assert torch.equal(data.normalise(pixels), pixels.float() / 255)
    assert torch.equal(data.normalise(pixels.double() / 7), (pixels.double() / 7).float())


def test_flat_features_linearize() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))
    features, labels = torch.randn(40, 5), torch.arange(40) % 2
    module, record = linearize.linearize(
        network, (features, labels), (features, labels), budget=30, settings=QUICK, reporter=QUIET, device="cpu"
    )
    assert (record.relu_total, record.relu_count) == (80, 30)
    assert [tuple(layer.relu_mask.shape) for layer in masked_layers(module).values()] == [(40,), (40,)]


def test_affine_replacements_are_written_out_in_the_returned_module(model: nn.Module) -> None:
    settings = {**QUICK, "replacement": "affine"}
    module, _ = linearize.linearize(
        model,
        examples(0),
        examples(1),
        budget=100,
        method="random_mask",
        settings=settings,
        reporter=QUIET,
        device="cpu",
    )
    assert all(layer.replacement is None for layer in masked_layers(module).values())
    assert sum(layer_counts(module).values()) == 100


class Stop(Exception):
    pass


class StoppingReporter(Reporter):
    """Stands in for a kill: raises when the stage of a name begins."""

    def __init__(self, stage: str) -> None:
        super().__init__(quiet=True)
        self.stage = stage

    def task(self, name, total):
        if name == self.stage:
            raise Stop
        return super().task(name, total)


@pytest.mark.parametrize("stage", ["bcd", "finetune"])
def test_a_stopped_run_goes_on_and_ends_like_an_undisturbed_one(model: nn.Module, tmp_path: Path, stage: str) -> None:
    def run(root: Path, reporter: Reporter) -> tuple[nn.Module, linearize.Record]:
        return linearize.linearize(
            model,
            examples(0),
            examples(1),
            budget=BUDGET,
            settings=QUICK,
            run_dir=root,
            reporter=reporter,
            device="cpu",
        )

    whole, record = run(tmp_path / "whole", QUIET)
    with pytest.raises(Stop):
        run(tmp_path / "stopped", StoppingReporter(stage))
    resumed, again = run(tmp_path / "stopped", QUIET)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert (record.layers, record.val_accuracy_after) == (again.layers, again.val_accuracy_after)
    loaded, _ = linearize.load_checkpoint(tmp_path / "stopped" / "linearized.safetensors", model=model)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_run_directory_holds_one_network_and_one_set_of_images(model: nn.Module, tmp_path: Path) -> None:
    def run(network: nn.Module, train: tuple[Tensor, Tensor]) -> None:
        linearize.linearize(
            network,
            train,
            examples(1),
            budget=100,
            method="random_mask",
            settings=QUICK,
            run_dir=tmp_path,
            reporter=QUIET,
            device="cpu",
        )

    run(model, examples(0))
    other = copy.deepcopy(model)
    other.head.bias.data[0] += 1
    with pytest.raises(ConfigError, match=r"begun with another network or other images \(head.bias differs\)"):
        run(other, examples(0))
    with pytest.raises(ConfigError, match=r"\(images differs\)"):
        run(model, examples(2))


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (DataLoader(TensorDataset(*examples(0))), DataError, r"got a DataLoader; pass its \.dataset"),
        (
            (examples(0)[0], examples(0)[1] + 1),
            DataError,
            r"labels from 1 to 3, but the network's 3 logits stand for 0 to 2",
        ),
        ((examples(0)[0], examples(0)[1].float()), DataError, "one integer label an image, got torch.float32"),
        ((examples(0)[0][:5], examples(0)[1]), DataError, r"got torch.int64 \(48,\) for 5 images"),
        ((examples(0)[0].long(), examples(0)[1]), DataError, "uint8 or of floats, got torch.int64"),
        ((examples(0)[0][:0], examples(0)[1][:0]), DataError, "train holds no images"),
        ((examples(0)[0][:, :, 1:], examples(0)[1]), DataError, r"shape \(2, 5, 6\), val of \(2, 6, 6\)"),
        ([("a.png", 1)], DataError, r"train\[0\] must be \(image tensor, label\), got str"),
        ([(torch.zeros(2, 6, 6), 1), (torch.zeros(2, 6, 5), 1)], DataError, r"train\[1\] is of shape \(2, 6, 5\)"),
    ],
)
def test_images_that_do_not_serve_are_named(
    model: nn.Module, train: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        linearize.linearize(model, train, examples(1), budget=10, reporter=QUIET, device="cpu")
    assert re.fullmatch(".+", str(caught.value)), "an error is one line"


def test_budgets_and_methods_out_of_range_are_named(model: nn.Module) -> None:
    total = relu_total(linearize.mask_relus(model, (2, 6, 6)))
    with pytest.raises(BudgetError, match=rf"at most {total} \(all of given:Net on 2x6x6 images\), got {total + 1}"):
        linearize.linearize(model, examples(0), examples(1), budget=total + 1, reporter=QUIET, device="cpu")
    with pytest.raises(ConfigError, match="method"):
        linearize.linearize(model, examples(0), examples(1), budget=10, method="magic", reporter=QUIET)
