"""The known datasets as two labelled parts, training and test, before anything is held out.

Legend: N images, C channels, H and W rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linearize.config import DataConfig
from linearize.errors import ConfigError, DataError
from linearize.image_files import ImageList, class_folders, decode_images, default_cache_dir, images_in, subdirectories
from linearize.progress import Reporter


@dataclass(frozen=True)
class Split:
    """Labelled images: uint8 [N, C, H, W] and int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Split":
        """The images at some indices, int64 [M]."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """The same images on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class RawDataset:
    """What a reader returns. `test` is None where the dataset has no division of its own."""

    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    mirrors: bool  # a mirrored image is still of its class


def _read_digits(config: DataConfig, reporter: Reporter) -> RawDataset:
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels, as they come with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    split = Split(torch.from_numpy(grey)[:, None], torch.from_numpy(digits.target.astype(np.int64)))
    return RawDataset(split, None, tuple(str(digit) for digit in range(10)), mirrors=False)


def _read_cifar(config: DataConfig, reporter: Reporter) -> RawDataset:
    """CIFAR-10 or CIFAR-100 through torchvision, in its directory layout."""
    from torchvision import datasets

    directory = _data_dir(config)
    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.dataset]
    splits = []
    for train in (True, False):
        try:
            part = make(str(directory), train=train, download=config.download)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{directory}: {config.dataset} not found or damaged ({error}); "
                "name the directory in torchvision's layout, or set data.download to fetch it"
            ) from None
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        splits.append(Split(images, torch.tensor(part.targets, dtype=torch.int64)))
    return RawDataset(splits[0], splits[1], tuple(part.classes), mirrors=True)


def _read_folder(config: DataConfig, reporter: Reporter) -> RawDataset:
    """train/<class>/* and test/<class>/* (or val/<class>/*) of any image files."""
    directory = _data_dir(config)
    train = class_folders(directory / "train")
    test_dir = directory / "test"
    test = class_folders(test_dir if test_dir.is_dir() else directory / "val")
    return _decode_both(train, test, config, 32, reporter)


def _read_tinyimagenet(config: DataConfig, reporter: Reporter) -> RawDataset:
    """train/<wnid>/images/*; val with val_annotations.txt or as class folders. The val part serves as test part."""
    directory = _data_dir(config)
    folders = subdirectories(directory / "train")
    names = tuple(folder.name for folder in folders)
    label_of = {name: label for label, name in enumerate(names)}
    val = directory / "val"
    subdirectories(val)
    train_files = [(path, label_of[folder.name]) for folder in folders for path in _nested_images(folder)]
    annotations = val / "val_annotations.txt"
    if annotations.is_file():
        rows = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines() if line.strip()]
        unknown = next((row for row in rows if len(row) < 2 or row[1] not in label_of), None)
        if unknown is not None:
            raise DataError(f"{annotations}: no class of the training part in the line {' '.join(unknown)!r}")
        test_files = [(val / "images" / row[0], label_of[row[1]]) for row in rows]
        missing = next((path for path, _ in test_files if not path.is_file()), None)
        if missing is not None:
            raise DataError(f"{missing}: named in val_annotations.txt but missing; unpack the archive again")
    else:
        test_files = [
            (path, label_of[folder.name])
            for folder in subdirectories(val)
            if folder.name in label_of
            for path in _nested_images(folder)
        ]
    for part, files in (("train", train_files), ("val", test_files)):
        if not files:
            raise DataError(f"{directory / part}: holds no images; name the directory of the unpacked archive")
    train, test = (
        ImageList(tuple(path for path, _ in files), tuple(label for _, label in files), names)
        for files in (train_files, test_files)
    )
    return _decode_both(train, test, config, 64, reporter)


def _nested_images(folder: Path) -> list[Path]:
    inner = folder / "images"
    return images_in(inner if inner.is_dir() else folder)


def _decode_both(
    train: ImageList, test: ImageList, config: DataConfig, default_size: int, reporter: Reporter
) -> RawDataset:
    odd = sorted(set(train.class_names) ^ set(test.class_names))
    if odd:
        present = "training" if odd[0] in train.class_names else "test"
        raise DataError(f"class {odd[0]!r} is in the {present} part only; both parts need a folder for every class")
    size = config.image_size or default_size
    cache_dir = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    splits = [
        Split(decode_images(part.paths, size, cache_dir, reporter), torch.tensor(part.labels, dtype=torch.int64))
        for part in (train, test)
    ]
    return RawDataset(splits[0], splits[1], train.class_names, mirrors=True)


def _data_dir(config: DataConfig) -> Path:
    if config.data_dir is None:
        raise DataError(f"data.data_dir must name the directory of {config.dataset}, got nothing")
    directory = Path(config.data_dir)
    if not directory.is_dir() and not config.download:
        raise DataError(f"{directory}: no such directory; data.data_dir must name the directory of {config.dataset}")
    return directory


_READERS: dict[str, Callable[[DataConfig, Reporter], RawDataset]] = {
    "digits": _read_digits,
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "tinyimagenet": _read_tinyimagenet,
    "folder": _read_folder,
}


def read_dataset(config: DataConfig, reporter: Reporter) -> RawDataset:
    """Read a dataset by name. Raises DataError (missing, empty, corrupt) or ConfigError (image_size where fixed)."""
    if config.image_size is not None and config.dataset not in ("folder", "tinyimagenet"):
        raise ConfigError(f"data.image_size must be unset for {config.dataset}, whose images have a fixed size")
    return _READERS[config.dataset](config, reporter)
