"""Images as a network wants them: files and arrays to normalised float32 batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".npy"))
Float = npt.NDArray[np.float32]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and for a folder every image below it in the order of its path.

    Raises:
        ConfigError: a path does not exist, is no image by its ending, or a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ConfigError(f"the folder {path} holds no image ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif not path.exists():
            raise ConfigError(f"there is no image {path}")
        elif path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{path} is no image by its ending; known are {', '.join(sorted(SUFFIXES))}")
        else:
            found.append(path)
    return found


def load_images(paths: Sequence[Path], graph: Graph) -> Float:
    """Reads images for ``graph``: float32 [B, C, H, W], normalised with the mean and deviation in its metadata.

    Pictures are converted to the network's channels (1: grey, 3: RGB) and resized to its height and width. An ``.npy``
    of dtype uint8 holds pixels ([H, W], [H, W, C] or [C, H, W]) of the right size; one of a floating type is taken as
    normalised already ([C, H, W]).

    Raises:
        ConfigError: a file is damaged or does not fit the network.
    """
    return np.stack([_load(path, graph) for path in paths])


def normalise(pixels: npt.NDArray[np.uint8], graph: Graph) -> Float:
    """uint8 [..., C, H, W] to float32: (pixel / 255 - mean) / std by channel; without metadata, pixel / 255."""
    channels = graph.input_shape[0]
    mean = np.asarray(graph.metadata.get("mean", [0.0] * channels), dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(graph.metadata.get("std", [1.0] * channels), dtype=np.float32).reshape(-1, 1, 1)
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"the model's metadata has {len(mean)} means and {len(std)} deviations for {channels} channels"
        )
    scaled: Float = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return scaled


def class_names(graph: Graph) -> list[str]:
    """The names of the classes; their numbers where the model has no names."""
    classes = graph.output_shape[-1]
    names = graph.metadata.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return [str(name) for name in names]
    return [str(number) for number in range(classes)]


def _load(path: Path, graph: Graph) -> Float:
    if path.suffix.lower() == ".npy":
        return _load_array(path, graph)
    channels, height, width = graph.input_shape
    if channels not in (1, 3):
        raise ConfigError(f"{path}: the network takes {channels} channels; pictures have 1 or 3, use .npy")
    try:
        with Image.open(path) as picture:
            converted = picture.convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted, dtype=np.uint8).reshape(height, width, channels)
    return normalise(pixels.transpose(2, 0, 1), graph)


def _load_array(path: Path, graph: Graph) -> Float:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as an array: {error}") from error
    channels, height, width = graph.input_shape
    if array.dtype == np.uint8 and array.shape in ((height, width), (height, width, channels)):
        array = array.reshape(height, width, channels).transpose(2, 0, 1)
    if array.shape != graph.input_shape:
        raise ConfigError(f"{path} has shape {array.shape}, the network takes {graph.input_shape}")
    if array.dtype == np.uint8:
        return normalise(array, graph)
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise ConfigError(f"{path} must hold uint8 pixels or finite floating numbers, got {array.dtype}")
    floats: Float = array.astype(np.float32)
    return floats
