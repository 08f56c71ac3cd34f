"""Datasets in memory: training, validation and test images apart, and the batches made of them.

The validation part is held out of the training images by a division that no setting but its size moves, so that runs of
different seeds choose on the same images. The test part is for the final report only.

Legend: B batch, N images, C channels, H and W rows and columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from linearize.augment import augment
from linearize.config import DataConfig
from linearize.datasets import Split, read_dataset
from linearize.errors import DataError
from linearize.progress import Reporter
from linearize.rng import generator

# Any constant: it only has to be the same for every run.
_SPLIT_SEED = 2511_11781
_DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits with what a network needs to read them.

    mean, std: of the training pixels / 255, one per channel. crop_padding in pixels; 0 and flip False: no augmentation.
    epoch_images: training images of an epoch, drawn anew for each; None: all.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    epoch_images: int | None = None

    @property
    def images_per_epoch(self) -> int:
        """Training images of an epoch."""
        return min(len(self.train), self.epoch_images or len(self.train))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        """The same dataset with its images on a device."""
        fields = self.__dict__ | {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return Dataset(**fields)

    def normalise(self, images: Tensor) -> Tensor:
        """Network input: uint8 [B, C, H, W] -> float32 [B, C, H, W], (images / 255 - mean) / std."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        scale = torch.tensor(self.std, device=images.device).view(shape).reciprocal()
        inputs = (images.float() / 255 - mean) * scale
        # Row-major strides even where a size of 1 leaves them open: one channel laid out as channels last spreads
        # through the network, and there oneDNN's backward pass of a strided 1x1 convolution of few channels writes out
        # of bounds (seen with torch 2.14.1).
        return inputs.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Batch:
    """inputs: normalised float32 [B, C, H, W]; labels: int64 [B]; indices: int64 [B] into the training images."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    augmented: bool


def training_batches(data: Dataset, batch_size: int, augmented: bool, rng: torch.Generator) -> Iterator[Batch]:
    """One epoch of training images in random order; what does not fill a last batch is left out.

    rng: CPU generator; it decides order and augmentation. A split smaller than a batch makes one batch.
    """
    split = data.train
    order = torch.randperm(len(split), generator=rng).to(split.labels.device)
    augmented = augmented and (data.crop_padding > 0 or data.flip)
    for number in range(batches_per_epoch(data, batch_size)):
        indices = order[number * batch_size : (number + 1) * batch_size]
        images = split.images[indices]
        if augmented:
            images = augment(images, padding=data.crop_padding, flip=data.flip, rng=rng)
        yield Batch(data.normalise(images), split.labels[indices], indices, augmented)


def batches_per_epoch(data: Dataset, batch_size: int) -> int:
    """Gradient steps of one epoch."""
    return max(1, data.images_per_epoch // batch_size)


def ordered_batches(data: Dataset, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) of a whole split in its order, without augmentation."""
    for start in range(0, len(split), batch_size):
        images = split.images[start : start + batch_size]
        yield data.normalise(images), split.labels[start : start + batch_size]


def hold_out(labels: Tensor, fraction: float, class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Divide images, the same way every time and evenly over classes: (kept, held out), sorted int64 indices.

    labels: int64 [N]. Of each class round(fraction * n) images, at least 1, are held out and at least 1 is kept.
    Raises DataError for a class of fewer than 2 images.
    """
    rng = generator(_SPLIT_SEED, "hold out")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(class_names):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(f"class {name!r} has {len(members)} training images; at least 2 are needed to hold one out")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=rng)[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _limit(split: Split, limit: int | None) -> Split:
    """The first images of each class in turn, at most `limit` altogether."""
    if limit is None or limit >= len(split):
        return split
    rank = torch.zeros_like(split.labels)
    for label in range(int(split.labels.max()) + 1):
        members = split.labels == label
        rank[members] = torch.arange(int(members.sum()))
    return split.select(rank.argsort(stable=True)[:limit].sort().values)


def load_dataset(config: DataConfig, reporter: Reporter | None = None) -> Dataset:
    """Read, divide and measure a dataset; images stay uint8 on the CPU.

    Raises DataError for a missing directory, an empty folder, a corrupt image (named), a class missing from one part.
    """
    raw = read_dataset(config, reporter or Reporter())
    train, test = raw.train, raw.test
    if test is None:
        kept, tested = hold_out(train.labels, _DIGITS_TEST_FRACTION, raw.class_names)
        train, test = train.select(kept), train.select(tested)
    kept, validated = hold_out(train.labels, config.validation_fraction, raw.class_names)
    train, val, test = (_limit(split, config.limit) for split in (train.select(kept), train.select(validated), test))
    mean, std = _pixel_statistics(train.images)
    size = train.images.shape[-1]
    padding = config.crop_padding if config.crop_padding is not None else (4 if size >= 32 else 0)
    flip = config.flip if config.flip is not None else raw.mirrors
    return Dataset(
        name=config.dataset,
        train=train,
        val=val,
        test=test,
        class_names=raw.class_names,
        mean=mean,
        std=std,
        crop_padding=padding if config.augment else 0,
        flip=flip and config.augment,
        epoch_images=config.epoch_images,
    )


def _pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255 for each channel, to 6 places, to survive any text format."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        weights = torch.bincount(images[:, channel].reshape(-1).long(), minlength=256).double()
        weights /= weights.sum()
        mean = (weights * levels).sum()
        variance = (weights * (levels - mean) ** 2).sum()
        means.append(round(float(mean), 6))
        # A constant channel has nothing to scale.
        stds.append(round(float(variance.sqrt()), 6) or 1.0)
    return tuple(means), tuple(stds)
