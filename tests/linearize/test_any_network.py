import copy
import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from linearize.any_network import mask_relus
from linearize.errors import NetworkError
from linearize.relu_mask import (
    get_relu_mask,
    layer_counts,
    masked_layers,
    relu_count,
    relu_total,
    set_relu_mask,
)

SHAPE = (3, 8, 8)
BLOCK = 4 * 8 * 8


class Shared(nn.Module):
    """Two functional ReLUs and a module called twice, which calls its one ReLU module twice."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.bn(self.conv(x)))
            return self.relu(self.conv(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = self.Body()
        self.dense = nn.Linear(4, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.body(self.body(x)) + x
        x = F.max_pool2d(x, 2)
        x = torch.relu(self.dense(x.mean((2, 3))))
        return self.head(x)


class Small(nn.Module):
    """conv, then what a test says, then a classifier."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.middle = middle
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.conv(x)).mean((2, 3)))


def images(seed: int = 0, batch: int = 4, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def counted_relus(model: nn.Module, shape: tuple[int, ...]) -> int:
    """ReLUs of one input, by counting what every relu function receives."""
    seen = 0

    class Counter(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal seen
            if function in (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_):
                seen += args[0].numel()
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Counter():
        copy.deepcopy(model).eval()(torch.zeros(1, *shape))
    return seen


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shared": (Shared, SHAPE),
    "resnet": (lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), (3, 32, 32)),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 8, 2, drop_rate=0.5, num_classes=5),
        (3, 32, 32),
    ),
    "features": (lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, 3)), (7,)),
    "method": (lambda: Small(lambda self, x: x.relu()), SHAPE),
    "in place method": (lambda: Small(lambda self, x: x.relu_()), SHAPE),
    "in place function": (lambda: Small(lambda self, x: F.relu_(x) * 2 + x), SHAPE),
    "in place by flag": (lambda: Small(lambda self, x: F.relu(x, inplace=True) + x), SHAPE),
    "result dropped": (lambda: Small(lambda self, x: (x.relu_(), x)[1]), SHAPE),
    "in place module": (lambda: Small(lambda self, x: self.act(x) + x, act=nn.ReLU(inplace=True)), SHAPE),
    "dropout by mode": (lambda: Small(lambda self, x: F.dropout(F.relu(x), 0.4, training=self.training)), SHAPE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradients_are_the_networks_own_to_the_bit(name: str) -> None:
    make, shape = NETWORKS[name]
    model = seeded(make)
    masked = mask_relus(model, shape)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model).eval()(images(1, shape=shape)), masked(images(1, shape=shape)))

    def train_step(network: nn.Module) -> dict[str, Tensor]:
        network.train().zero_grad()
        torch.manual_seed(3)
        logits = network(images(2, shape=shape))
        logits.square().sum().backward()
        return {
            "logits": logits.detach(),
            **{key: value.grad for key, value in network.named_parameters()},
            **dict(network.named_buffers()),
        }

    wanted, found = train_step(model), train_step(masked)
    assert wanted.keys() == {key for key in found if not key.endswith("relu_mask")}
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_relu_is_counted(name: str) -> None:
    make, shape = NETWORKS[name]
    model = seeded(make)
    assert relu_total(mask_relus(model, shape)) == counted_relus(model, shape)


def test_a_mask_for_each_call_named_after_its_path() -> None:
    assert layer_counts(mask_relus(seeded(Shared), SHAPE)) == {
        "relu_call1": BLOCK,
        "body.relu_call1": BLOCK,
        "body.relu_call2": BLOCK,
        "body.relu_call3": BLOCK,
        "body.relu_call4": BLOCK,
        "relu_call2": 6,
    }


def test_resnet18_has_two_masks_a_block() -> None:
    counts = layer_counts(mask_relus(torchvision.models.resnet18(num_classes=5), (3, 64, 64)))
    calls = [f"layer{stage}.{block}.relu_call{call}" for stage in (1, 2, 3, 4) for block in (0, 1) for call in (1, 2)]
    sizes = [64 * 16 * 16] * 4 + [128 * 8 * 8] * 4 + [256 * 4 * 4] * 4 + [512 * 2 * 2] * 4
    assert counts == {"relu": 64 * 32 * 32, **dict(zip(calls, sizes, strict=True))}


def test_names_avoid_what_the_network_calls_so() -> None:
    model = seeded(lambda: Small(lambda self, x: F.relu(self.relu(x)), relu=nn.Conv2d(4, 4, 1)))
    assert list(layer_counts(mask_relus(model, SHAPE))) == ["relu_"]


def test_without_relus_the_network_is_affine() -> None:
    masked = mask_relus(seeded(lambda: Small(lambda self, x: F.relu(self.act(x) - 1), act=nn.ReLU())), SHAPE).double()
    set_relu_mask(masked, torch.zeros(relu_total(masked), dtype=torch.bool))
    x, y = images(1).double(), images(2).double()
    with torch.no_grad():
        torch.testing.assert_close(masked((x + 3 * y) / 4), (masked(x) + 3 * masked(y)) / 4)


def test_the_masks_of_one_call_leave_the_other_call_alone() -> None:
    model = seeded(
        lambda: Small(lambda self, x: self.act(self.again(self.act(x))), act=nn.ReLU(), again=nn.Conv2d(4, 4, 1))
    )
    masked = mask_relus(model, SHAPE)
    set_relu_mask(masked, torch.arange(2 * BLOCK) < BLOCK)
    x = model.conv(images())
    expected = model.head(model.again(F.relu(x)).mean((2, 3)))
    torch.testing.assert_close(masked(images()), expected, rtol=0, atol=0)


def test_the_network_is_left_alone() -> None:
    model = seeded(Shared).train()
    before = copy.deepcopy(model.state_dict())
    masked = mask_relus(model, SHAPE)
    for parameter in masked.parameters():
        parameter.data.fill_(1)
    assert model.training
    assert type(model) is Shared
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_shared_weights_stay_shared() -> None:
    model = seeded(
        lambda: Small(
            lambda self, x: F.relu(self.twin(F.relu(self.first(x)))), first=nn.Conv2d(4, 4, 1), twin=nn.Conv2d(4, 4, 1)
        )
    )
    model.twin.weight = model.first.weight
    masked = mask_relus(model, SHAPE)
    assert masked.get_submodule("twin").weight is masked.get_submodule("first").weight


def test_masks_of_a_masked_network_stay() -> None:
    once = mask_relus(seeded(Shared), SHAPE)
    kept = torch.arange(relu_total(once)) % 3 == 0
    set_relu_mask(once, kept)
    twice = mask_relus(once, SHAPE)
    assert list(masked_layers(twice)) == list(masked_layers(once))
    assert torch.equal(get_relu_mask(twice), kept)
    assert relu_count(twice) == int(kept.sum())


def test_optional_arguments_keep_their_defaults() -> None:
    class Optional(nn.Linear):
        def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
            x = F.relu(super().forward(x))
            return x if scale is None else x * scale

    model = seeded(lambda: Optional(3, 5))
    assert torch.equal(mask_relus(model, (3,))(images(shape=(3,))), model(images(shape=(3,))))


def branch(self: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return F.relu(x)
    return x


def view(self: nn.Module, x: Tensor) -> Tensor:
    flat = x.flatten(1)
    F.relu_(x)
    return flat.view(x.shape)


def by_mode(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x) if self.training else F.relu(x * 2)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (
            lambda: Small(branch),
            SHAPE,
            r"Small cannot be traced at .*test_any_network\.py, line \d+ \(`if x\.sum\(\) > 0:`\): .*control flow.*; "
            "its forward may branch on shapes known beforehand",
        ),
        (lambda: Small(view), SHAPE, "computes something else when it is traced: it changes a tensor in place"),
        (lambda: Small(by_mode), SHAPE, "something else in train mode than in eval mode, from mul on"),
        (lambda: Small(lambda self, x: self.act(x), act=nn.ReLU6()), SHAPE, "act is a ReLU6, .*put an nn.ReLU"),
        (lambda: Small(lambda self, x: F.relu6(x)), SHAPE, "relu6 is a ReLU6"),
        (lambda: Small(lambda self, x: x), SHAPE, "Small has no ReLU"),
        (lambda: Small(lambda self, x: F.relu(x)), (1, 8, 8), r"does not run on float32 inputs of shape \(1, 8, 8\)"),
        (
            lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)),
            SHAPE,
            r"must return logits \[B, classes\], got a tensor",
        ),
        (
            lambda: Small(lambda self, x: F.relu(x.flatten(0, 1)).view(x.shape)),
            SHAPE,
            "relu sees .* its first dimension must be the batch",
        ),
        (
            lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.ReLU()),
            (3, 4),
            "0: TransformerEncoderLayer computes its ReLUs out of sight",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_by_name(
    make: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        mask_relus(seeded(make), shape)
    assert re.fullmatch(".+", str(caught.value)), "an error is one line"
