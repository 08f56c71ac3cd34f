"""bcd.jsonl, and how often random blocks are accepted.

If a random block is acceptable with probability p, one of RT tries is with 1 - (1 - p)^RT: that is the paper's trade of
block size against tries. Each line of the log has the measured p beside what it predicts.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linearize.files import write_atomic

# p changes with the count of ReLUs, so that older steps count less: their weight halves in about seven steps.
_MEMORY = 0.9


class StepLog:
    """One JSON object a line, one line a finished step. Only a process that is to `write` does anything."""

    def __init__(self, path: Path, *, write: bool) -> None:
        self._path, self._write = path, write

    def keep_first(self, steps: int) -> None:
        """Drop what an interrupted run wrote after its last saved step: further lines, a torn line."""
        if self._write:
            lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
            write_atomic(self._path, b"".join(lines[:steps]))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line and flush it."""
        if self._write:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


@dataclass(frozen=True)
class Acceptance:
    """Tries of uniformly random blocks and how many were accepted, older steps weighted less."""

    tries: float = 0.0
    accepted: float = 0.0

    def after(self, tries: int, accepted: int) -> "Acceptance":
        """With one more step, in which so many uniform blocks were tried and accepted."""
        if tries == 0:
            return self
        return Acceptance(_MEMORY * self.tries + tries, _MEMORY * self.accepted + accepted)

    @property
    def probability(self) -> float | None:
        """The estimate of p, accepted over tries; None before the first try."""
        return self.accepted / self.tries if self.tries else None

    def success(self, rt: int) -> float | None:
        """1 - (1 - p)^rt: how likely one of rt random blocks is accepted."""
        return None if self.probability is None else 1 - (1 - self.probability) ** rt

    def document(self) -> dict[str, float]:
        """As JSON values; Acceptance(**document) reads it back."""
        return asdict(self)
