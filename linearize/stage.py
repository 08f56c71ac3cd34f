"""What every stage of a run is given, and the state that lets a killed one go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearize.data import Dataset
from linearize.errors import CheckpointError
from linearize.files import load_tensors, save_tensors
from linearize.progress import Reporter


@dataclass(frozen=True)
class StageContext:
    """data: images on `device`. state_dir: where unfinished stages keep their state. seed: of the run."""

    data: Dataset
    device: torch.device
    seed: int
    state_dir: Path
    reporter: Reporter

    def state(self, name: str) -> "SavedState":
        """The saved state of one stage."""
        return SavedState(self.state_dir / f"{name}.safetensors")


class SavedState:
    """Tensors and a JSON document of an unfinished stage, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Replace the state."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path, tensors, document)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state last saved; None if there is none or it cannot be read (the stage then starts over)."""
        if not self._path.exists():
            return None
        try:
            return load_tensors(self._path)
        except CheckpointError:
            return None

    def clear(self) -> None:
        """Remove the state: its stage is finished."""
        self._path.unlink(missing_ok=True)
