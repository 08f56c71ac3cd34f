"""Accuracies that others published at ReLU budgets, confirmed in a stored source; for figures, never for choices.

ReLU counts are those of the sources. The SNL curves join two networks, ResNet18 at small budgets and WRN-22-8 at large
ones. All pick the epoch on test images, so they sit a little high beside numbers that do not.
"""

from dataclasses import dataclass
from typing import Literal

PublishedDataset = Literal["cifar10", "cifar100", "tinyimagenet"]

_PROTOTYPE = "plot scripts in ajevnisek/selective_network_linearization, 8b3c93d (2024-02-05)"
_AUTOREP = "comments in the scripts of harveyp123/AutoReP, 3c577a3 (2023-02-14)"
_AUTOREP_ABSTRACT = "abstract of AutoReP (ICCV 2023)"


@dataclass(frozen=True)
class Published:
    """points: (thousands of ReLUs, test accuracy in percent). source: where they were read."""

    dataset: PublishedDataset
    name: str
    source: str
    points: tuple[tuple[float, float], ...]


PUBLISHED = (
    Published("cifar10", "BCD, authors' prototype", _PROTOTYPE, ((6, 85.65), (9, 87.49), (14.5, 89.65))),
    Published(
        "cifar10",
        "SNL",
        _PROTOTYPE,
        (
            *((12.9, 88.23), (14.9, 88.43), (25.0, 90.88), (29.8, 90.92), (40.0, 91.68), (49.4, 92.27), (60.0, 92.63)),
            *((69.8, 93.02), (79.1, 93.16), (99.9, 93.50), (150, 94.26), (180, 94.78), (300, 95.06), (400, 95.07)),
            (500, 95.21),
        ),
    ),
    Published(
        "cifar10",
        "DeepReDuce",
        _PROTOTYPE,
        ((36, 88.5), (70, 90.0), (80, 90.5), (114, 92.7), (147, 93.16), (221.48, 94.07)),
    ),
    Published("cifar10", "CryptoNAS", _PROTOTYPE, ((50, 90.0), (86, 91.5), (100, 92.2), (334, 94.0), (500, 94.8))),
    Published("cifar10", "AutoReP, degree 2", _AUTOREP_ABSTRACT, ((12.9, 94.31),)),
    Published("cifar100", "BCD, authors' prototype", _PROTOTYPE, ((15.8, 67.94),)),
    Published(
        "cifar100",
        "SNL",
        _PROTOTYPE,
        (
            *((12.9, 66.53), (14.9, 67.17), (25.0, 70.05), (29.8, 70.18), (40.0, 72.35), (49.4, 73.75), (60.0, 74.85)),
            *((69.8, 75.29), (79.1, 75.72), (99.9, 75.94), (120, 76.35), (150, 77.35), (180, 77.65), (248.4, 77.70)),
        ),
    ),
    Published(
        "cifar100",
        "DeepReDuce",
        _PROTOTYPE,
        ((12.3, 64.97), (28.7, 68.68), (49.2, 69.50), (57.34, 72.68), (114, 74.72), (197, 75.51), (229.38, 76.22)),
    ),
    Published(
        "cifar100",
        "Sphynx",
        _PROTOTYPE,
        ((25.6, 66.13), (30.2, 67.37), (41.0, 68.23), (51.2, 69.57), (71.7, 71.06), (102.4, 72.90), (230, 74.93)),
    ),
    Published("cifar100", "CryptoNAS", _PROTOTYPE, ((50, 63.5), (86, 66), (100, 68.5), (334, 76), (500, 77))),
    Published(
        "cifar100",
        "SNIP-style mask",
        _PROTOTYPE,
        (
            *((12.9, 56.83), (14.9, 56.92), (25.0, 60.88), (29.8, 62.20), (40.0, 61.98), (49.4, 63.69), (60.0, 64.89)),
            *((69.8, 64.98), (79.1, 65.50), (99.9, 66.50)),
        ),
    ),
    Published("cifar100", "AutoReP, degree 1", _AUTOREP, ((12.9, 67.75), (15, 68.4), (25, 71.10), (50, 73.86))),
    Published("cifar100", "AutoReP, degree 2", _AUTOREP_ABSTRACT, ((12.9, 74.92),)),
    Published("tinyimagenet", "BCD, authors' prototype", _PROTOTYPE, ((59.1, 56.6),)),
    Published(
        "tinyimagenet",
        "SNL",
        _PROTOTYPE,
        ((59.1, 54.24), (99.6, 58.94), (200, 63.39), (300, 64.04), (400, 63.83), (500, 64.42)),
    ),
    Published(
        "tinyimagenet",
        "DeepReDuce",
        _PROTOTYPE,
        (
            *((12.9, 41.95), (24.6, 47.01), (28.67, 47.55), (49.16, 49.00), (57.35, 53.75), (98.3, 55.67)),
            *((114.69, 56.18), (200, 57.51), (230, 59.18), (400, 61.65), (459, 62.26), (917, 64.66)),
        ),
    ),
    Published(
        "tinyimagenet",
        "Sphynx",
        _PROTOTYPE,
        ((102.4, 48.44), (204.8, 53.51), (286.7, 56.72), (491.5, 59.12), (614.4, 60.76)),
    ),
    Published("tinyimagenet", "AutoReP, degree 2", _AUTOREP_ABSTRACT, ((55, 63.69),)),
)


def published(dataset: PublishedDataset) -> tuple[Published, ...]:
    """The curves of one dataset."""
    return tuple(curve for curve in PUBLISHED if curve.dataset == dataset)
