"""Image files on disk -> uint8 tensors, decoded once and cached by what the files are.

Legend: N images, C channels, H and W rows and columns.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from linearize.errors import CheckpointError, DataError
from linearize.files import load_tensors, save_tensors
from linearize.progress import Reporter

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageList:
    """Image files with their class indices; `class_names[i]` names class i."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def images_in(directory: Path) -> list[Path]:
    """Image files directly in a directory, sorted by name."""
    return sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())


def subdirectories(directory: Path) -> list[Path]:
    """Visible directories in a directory, sorted by name. Raises DataError if it is missing."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; data.data_dir must name the directory that holds it")
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_folders(directory: Path) -> ImageList:
    """List <directory>/<class>/*; classes in alphabetical order. Raises DataError if there is nothing in one."""
    folders = subdirectories(directory)
    if not folders:
        raise DataError(f"{directory}: empty, must hold one folder of images for each class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = images_in(folder)
        if not found:
            raise DataError(f"{folder}: holds no images ({', '.join(sorted(_SUFFIXES))}); fill it or remove it")
        paths += found
        labels += [label] * len(found)
    return ImageList(tuple(paths), tuple(labels), tuple(folder.name for folder in folders))


def _decode(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: corrupt or not an image ({error}); replace or remove it") from None
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def _cache_key(paths: Sequence[Path], size: int) -> str:
    facts = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path in paths for stat in (path.stat(),)]
    return hashlib.sha256(json.dumps([1, size, facts]).encode()).hexdigest()[:32]


def default_cache_dir() -> Path:
    """$PI_PIPELINE_CACHE, or ~/.cache/pi-pipeline."""
    named = os.environ.get("PI_PIPELINE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "pi-pipeline"


def decode_images(paths: Sequence[Path], size: int, cache_dir: Path, reporter: Reporter) -> Tensor:
    """Decode to RGB, resize to size x size where needed: uint8 [N, 3, size, size].

    The result is cached under a key of all paths, file sizes, modification times and `size`; a broken cache file is
    made anew. Raises DataError naming the first corrupt image.
    """
    cached = cache_dir / f"images-{_cache_key(paths, size)}.safetensors"
    if cached.exists():
        try:
            return load_tensors(cached)[0]["images"]
        except (CheckpointError, KeyError):
            reporter.log(f"{cached}: broken cache file, decoding again")
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool, reporter.task("decode images", len(paths)) as task:
        for index, array in enumerate(pool.map(lambda path: _decode(path, size), paths)):
            images[index] = torch.from_numpy(array.copy())
            task.advance()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        save_tensors(cached, {"images": images}, {})
    except OSError as error:
        reporter.log(f"{cache_dir}: decoded images not cached ({error})")
    return images
