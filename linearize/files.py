"""Atomic files and tensor files whose header carries a JSON document. Nothing is unpickled."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from linearize.errors import CheckpointError

_FORMAT = "pi-pipeline.tensors.1"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that after a crash at any moment it has the old content or all of the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of a path left beside it."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document to one safetensors file, atomically."""
    stored: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, as tied weights do.
        stored[name] = plain.clone() if place in places else plain
        places.add(place)
    header = {"format": _FORMAT, "document": json.dumps(document)}
    write_atomic(path, safetensors.torch.save(stored, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises CheckpointError if it is missing, truncated or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; run the stage that writes it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file ({error}); delete it and run again"
        ) from None
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not written by this program; name another file")
    return tensors, json.loads(header["document"])
