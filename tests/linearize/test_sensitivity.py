"""First-order scores of ReLUs; oracles are finite differences and a loop over images with autograd on real masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from linearize.config import DataConfig
from linearize.data import Dataset, load_dataset
from linearize.networks import allocate_masks, build_network
from linearize.progress import Reporter
from linearize.relu_mask import MaskedReLU, get_relu_mask, harden, masked_layers, relax, relu_total, set_relu_mask
from linearize.replacement import use_affine_locations
from linearize.rng import generator
from linearize.sensitivity import relu_scores
from linearize.train import Teacher, distillation_loss

IMAGES = 24


class Double(nn.Module):
    """A network in float64 behind float32 images, so that differences are not lost in rounding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.double())


class Twice(nn.Module):
    """One masked layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 10)
        self.relu = MaskedReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.relu(self.second(self.relu(self.first(x.flatten(1))))))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(limit=IMAGES), Reporter(quiet=True))


def network(name: str, seed: int = 0) -> nn.Module:
    if name == "twice":
        torch.manual_seed(seed)
        model: nn.Module = Twice()
        allocate_masks(model, (1, 8, 8))
    else:
        model = build_network(name, {"resnet18": 2, "wrn22": 1}[name], 10, (1, 8, 8), seed=seed)
    model = Double(model).eval()
    set_relu_mask(model, torch.rand(relu_total(model), generator=torch.Generator().manual_seed(7)) < 0.6)
    return model


def image_losses(model: nn.Module, data: Dataset, teacher: nn.Module | None) -> torch.Tensor:
    inputs = data.normalise(data.train.images)
    if teacher is None:
        return F.cross_entropy(model(inputs), data.train.labels, reduction="none")
    own, other = model(inputs), teacher(inputs)
    return torch.stack([distillation_loss(a[None], b[None], 4.0) for a, b in zip(own, other, strict=True)])


def real_masks(model: nn.Module) -> list[nn.Parameter]:
    """Real-valued masks in float64 in place of the binary ones."""
    relax(model)
    model.double()
    return [layer.soft_mask for layer in masked_layers(model).values()]


def scores_by_autograd(model: nn.Module, data: Dataset, statistic: str, teacher: nn.Module | None) -> torch.Tensor:
    """A backward pass an image, by the derivative of its loss with respect to real-valued masks."""
    kept = get_relu_mask(model)
    masks = real_masks(model)
    worth = [
        -torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, masks, retain_graph=True)])
        for loss in image_losses(model, data, teacher)
    ]
    harden(model, kept)
    each = torch.stack(worth)
    return {"rms": each.square().mean(0).sqrt(), "absolute": each.abs().mean(0), "signed": each.mean(0)}[statistic]


@pytest.mark.parametrize(
    ("name", "statistic", "distilled", "beside"),
    [
        ("resnet18", "rms", False, ""),
        ("resnet18", "absolute", True, ""),
        ("wrn22", "rms", False, ""),
        ("wrn22", "signed", False, ""),
        ("twice", "rms", False, ""),
        ("twice", "absolute", False, ""),
        ("twice", "signed", True, "polynomials"),
        ("twice", "rms", False, "fronts"),
        ("resnet18", "signed", False, "fronts"),
    ],
)
def test_scores_equal_a_loop_over_images(
    name: str, statistic: str, distilled: bool, beside: str, data: Dataset
) -> None:
    torch.manual_seed(0)
    model = network(name)
    for layer in masked_layers(model).values():
        if beside == "polynomials":
            layer.replacement = nn.Parameter(torch.randn(3, layer.relu_mask.shape[0], dtype=torch.float64))
        elif beside == "fronts":
            use_affine_locations(layer)
            layer.front_affine.data = layer.front_affine + 0.2 * torch.randn(layer.front_affine.shape).double()
            layer.front_locations.data = torch.randn(layer.front_locations.shape, dtype=torch.float64) / 16
    other = network(name, seed=1) if distilled else None
    got = relu_scores(
        model,
        data,
        IMAGES,
        statistic=statistic,
        loss="distill" if distilled else "cross_entropy",
        teacher=Teacher(other, data) if other else None,
        batch_size=10,
        rng=generator(0, "x"),
    )
    expected = scores_by_autograd(model, data, statistic, other)
    assert got.shape == (relu_total(model),)
    # Untrained networks have loss changes of very different sizes, some of them differences of large numbers.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    assert (got != 0).double().mean() > 0.5


def test_signed_score_is_the_slope_of_the_loss_between_relu_and_identity(data: Dataset) -> None:
    """Kept ReLUs move from 1 towards the identity, removed ones from 0 towards the ReLU, one at a time."""
    model = network("resnet18")
    kept = get_relu_mask(model)
    score = relu_scores(model, data, IMAGES, statistic="signed", loss="cross_entropy", rng=generator(0, "x"))
    masks = real_masks(model)
    step = 1e-6
    with torch.no_grad():
        before = image_losses(model, data, None).mean()
        for index in torch.randperm(len(kept), generator=torch.Generator().manual_seed(1))[:60].tolist():
            mask, offset = _locate(masks, index)
            towards = -step if kept[index] else step
            mask.view(-1)[offset] += towards
            change = image_losses(model, data, None).mean() - before
            mask.view(-1)[offset] -= towards
            torch.testing.assert_close(change / -towards, score[index], rtol=1e-3, atol=1e-8)


def _locate(masks: list[nn.Parameter], index: int) -> tuple[nn.Parameter, int]:
    for mask in masks:
        if index < mask.numel():
            return mask, index
        index -= mask.numel()
    raise AssertionError("index beyond the masks")


def test_only_the_drawn_images_count(data: Dataset) -> None:
    model = network("resnet18")
    drawn = torch.randperm(IMAGES, generator=generator(3, "y"))[:9]
    part = Dataset(**(data.__dict__ | {"train": data.train.select(drawn)}))
    got = relu_scores(model, data, 9, statistic="rms", loss="cross_entropy", rng=generator(3, "y"))
    torch.testing.assert_close(got, scores_by_autograd(model, part, "rms", None), rtol=1e-6, atol=1e-12)


def test_the_network_is_left_as_it_was(data: Dataset) -> None:
    model = network("wrn22")
    model.train()
    model.model.bn.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    frozen = next(model.parameters()).requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    relu_scores(model, data, IMAGES, statistic="rms", loss="cross_entropy", rng=generator(0, "x"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert not frozen.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_trainable_weights_has_scores_too(data: Dataset) -> None:
    model = network("resnet18").requires_grad_(False)
    score = relu_scores(model, data, 4, statistic="rms", loss="cross_entropy", rng=generator(0, "x"))
    assert (score > 0).any()


@pytest.mark.parametrize(("loss", "given"), [("distill", False), ("cross_entropy", True)])
def test_a_teacher_goes_with_distillation_only(loss: str, given: bool, data: Dataset) -> None:
    teacher = Teacher(network("resnet18"), data) if given else None
    with pytest.raises(ValueError, match="teacher must be given with loss 'distill' and only then"):
        relu_scores(network("resnet18"), data, 4, statistic="rms", loss=loss, teacher=teacher, rng=generator(0, "x"))
