"""What each step of one inference, or of the making of one bundle, took at the role that computes it."""

from __future__ import annotations

import time

from pi_runtime.preset.program import Step


class StepClock:
    """Seconds of each step by its index as text, from the construction on; of a step without a tick its successor's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def tick(self, step: Step) -> None:
        """Says that ``step`` is done."""
        now = time.perf_counter()
        self.seconds[str(step.index)] = now - self._last
        self._last = now
