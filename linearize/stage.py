"""What every stage of a run is given, and the state that lets a killed one go on."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearize.data import Dataset
from linearize.errors import CheckpointError
from linearize.files import load_tensors, save_tensors
from linearize.meter import Meter
from linearize.progress import Reporter


@dataclass(frozen=True)
class StageContext:
    """data: images on `device`. state_dir: where an unfinished stage keeps its state. seed: of the run.

    amp: gradient steps run in bfloat16 where PyTorch holds that to be safe. meter: counts what the stage costs.
    shared_dir: where runs that differ in their budget alone leave each other states; None: nowhere.
    """

    data: Dataset
    device: torch.device
    seed: int
    state_dir: Path
    reporter: Reporter
    amp: bool = False
    meter: Meter = field(default_factory=Meter)
    shared_dir: Path | None = None

    def state(self, name: str) -> "SavedState":
        """A saved state of the stage; a stage may keep several."""
        return SavedState(self.state_dir / f"{name}.safetensors", self.meter)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for the forward pass and the loss of a gradient step, where the run asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)


class SavedState:
    """Tensors, a JSON document and the counts so far of an unfinished stage, replaced atomically."""

    def __init__(self, path: Path, meter: Meter) -> None:
        self._path, self._meter = path, meter

    def save(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Replace the state."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path, tensors, {"document": document, "cost": self._meter.counts()})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state last saved; None if there is none or it cannot be read (the stage then starts over)."""
        if not self._path.exists():
            return None
        try:
            tensors, stored = load_tensors(self._path)
        except CheckpointError:
            return None
        self._meter.at_least(stored["cost"])
        return tensors, stored["document"]

    def clear(self) -> None:
        """Remove the state: its stage is finished."""
        self._path.unlink(missing_ok=True)
