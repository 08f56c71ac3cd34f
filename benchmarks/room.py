"""How much memory backends that are open together may take, so that a long measurement is not killed for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

SPARE = 1 / 16
"""Of the memory that is available before anything is open: what stays free, as inferences take more with time.

Eight networks of CrypTen, SPU and plaintext together were seen to grow from 22.9 to 23.8 GB in eleven runs.
"""


def available_memory() -> int | None:
    """Bytes that programs can still take without others being moved out; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


class Room:
    """Judges what fits by the most that one of each backend has taken so far.

    available: bytes that are available now, or None; then everything fits.
    """

    def __init__(self, available: Callable[[], int | None]) -> None:
        self._available = available
        self._last = available()
        self._spare = (self._last or 0) * SPARE
        self._taken: dict[str, int] = {}

    def took(self, backend: str) -> None:
        """Notes that one more of ``backend`` is open."""
        before, self._last = self._last, self._available()
        if before is not None and self._last is not None:
            self._taken[backend] = max(self._taken.get(backend, 0), before - self._last)

    def gave_back(self) -> None:
        """Notes that some may have been closed."""
        self._last = self._available()

    def fits(self, backend: str, count: int) -> bool:
        """Whether ``count`` more of ``backend`` are likely to fit; of one not seen yet, whether one of the largest."""
        available = self._available()
        needed = count * self._taken[backend] if backend in self._taken else max(self._taken.values(), default=0)
        return available is None or available - needed >= self._spare
