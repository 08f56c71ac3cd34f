"""Images of the user's, in memory, as the stages of a run want them.

Legend: N images, B batch, C channels, H and W rows and columns, F features.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from linearize.data import Dataset
from linearize.datasets import Split
from linearize.errors import DataError

# A torch.utils.data.Dataset of (image, label), or images [N, ...] and labels [N].
Examples: TypeAlias = torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class UserDataset(Dataset):
    """Images as the network takes them: float [N, C, H, W] or [N, F], or uint8 of which pixel / 255 is taken."""

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(C, H, W) of an image, or (F,)."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device) -> "UserDataset":
        """The same dataset with its images on a device."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))

    def normalise(self, images: Tensor) -> Tensor:
        """Network input: float32 of the same shape; only uint8 is scaled, by 1 / 255."""
        inputs = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        # Row-major strides, for the reason given in `Dataset.normalise`.
        return inputs.clone(memory_format=torch.contiguous_format)

    def with_classes(self, num_classes: int) -> "UserDataset":
        """The same dataset with classes 0 to num_classes - 1. Raises DataError for a label that is none of them."""
        for name, part in (("train", self.train), ("val", self.val)):
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= num_classes:
                raise DataError(
                    f"{name} has labels from {low} to {high}, but the network's {num_classes} logits stand for 0 to "
                    f"{num_classes - 1}; number the classes from 0 or change the network's last layer"
                )
        return replace(self, class_names=tuple(str(label) for label in range(num_classes)))


def user_dataset(train: Examples, val: Examples, *, crop_padding: int = 0, flip: bool = False) -> UserDataset:
    """Both parts in memory, without classes yet; the validation part stands for the test part, which there is none of.

    The name carries a digest of all images and labels.

    Raises DataError: a part is empty, is of another shape than the other, or is no labelled images (what it is, named).
    """
    parts = {"train": _split(train, "train"), "val": _split(val, "val")}
    shapes = {name: tuple(part.images.shape[1:]) for name, part in parts.items()}
    if shapes["train"] != shapes["val"]:
        raise DataError(
            f"train has images of shape {shapes['train']}, val of {shapes['val']}; they must be of one shape"
        )
    images = len(shapes["train"]) == 3
    return UserDataset(
        name=f"own-{_digest(*parts.values())}",
        train=parts["train"],
        val=parts["val"],
        test=parts["val"],
        class_names=(),
        mean=(),
        std=(),
        crop_padding=crop_padding if images else 0,
        flip=flip and images,
    )


def _digest(*parts: Split) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(repr((part.images.dtype, tuple(part.images.shape))).encode())
        found.update(part.images.numpy().data)
        found.update(part.labels.numpy().data)
    return found.hexdigest()[:16]


def _split(source: Any, name: str) -> Split:
    if isinstance(source, DataLoader):
        raise DataError(f"{name} must be a dataset or (images, labels), got a DataLoader; pass its .dataset")
    images, labels = source if _is_pair(source) else _collect(source, name)
    if images.dtype not in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise DataError(f"{name} must have images of uint8 or of floats, got {images.dtype}; convert them")
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(images):
        raise DataError(
            f"{name} must have one integer label an image, got {labels.dtype} {tuple(labels.shape)} for "
            f"{len(images)} images"
        )
    if len(images) == 0:
        raise DataError(f"{name} holds no images; at least one is needed")
    stored = images if images.dtype == torch.uint8 else images.float()
    return Split(stored.detach().cpu().contiguous(), labels.detach().cpu().long())


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple | list) and len(source) == 2 and all(isinstance(part, Tensor) for part in source)


def _collect(source: Any, name: str) -> tuple[Tensor, Tensor]:
    images: list[Tensor] = []
    labels: list[int] = []
    for position, example in enumerate(_examples(source, name)):
        if not isinstance(example, tuple | list) or len(example) != 2 or not isinstance(example[0], Tensor):
            got = type(example[0] if isinstance(example, tuple | list) and example else example).__name__
            raise DataError(
                f"{name}[{position}] must be (image tensor, label), got {got}; transform images to tensors "
                "(torchvision.transforms.ToTensor())"
            )
        if images and example[0].shape != images[0].shape:
            raise DataError(
                f"{name}[{position}] is of shape {tuple(example[0].shape)}, {name}[0] of {tuple(images[0].shape)}; "
                "resize or crop all images to one shape"
            )
        images.append(example[0])
        labels.append(int(example[1]))
    if not images:
        raise DataError(f"{name} holds no images; at least one is needed")
    return torch.stack(images), torch.tensor(labels)


def _examples(source: Any, name: str) -> Iterator[Any]:
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return (source[position] for position in range(len(source)))
    if hasattr(source, "__iter__"):
        return iter(source)
    raise DataError(f"{name} must be a dataset or (images, labels), got {type(source).__name__}")
