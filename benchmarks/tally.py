"""How many predictions are within the goal of what was measured, and the worst of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.cost_law import Prediction

GOAL = 0.10
"""A prediction further off than this, as a fraction of what was measured, is marked."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """``within`` of ``total`` predictions are within :data:`GOAL`; ``worst`` is the largest error without its sign,
    None where there is no prediction."""

    within: int
    total: int
    worst: float | None


@dataclass(frozen=True, kw_only=True)
class BackendTally:
    """What a backend's laws say of ReLU counts held back: of those between the other counts and those beyond them."""

    backend: str
    between: Tally
    beyond: Tally


def tally(errors: Iterable[float]) -> Tally:
    """Counts errors given as fractions of what was measured."""
    sizes = [abs(error) for error in errors]
    return Tally(within=sum(size <= GOAL for size in sizes), total=len(sizes), worst=max(sizes, default=None))


def backend_tallies(predictions: Sequence[Prediction]) -> tuple[BackendTally, ...]:
    """A tally a backend over all its links and phases, in the order of the predictions."""
    return tuple(
        BackendTally(
            backend=backend,
            between=tally(entry.error for entry in predictions if entry.backend == backend and not entry.outside),
            beyond=tally(entry.error for entry in predictions if entry.backend == backend and entry.outside),
        )
        for backend in dict.fromkeys(entry.backend for entry in predictions)
    )
