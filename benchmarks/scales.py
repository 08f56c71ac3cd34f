"""Axes: where a value lies between the ends of a scale, and which values get a tick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

_STEPS = ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Within a decade, from dense to sparse."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From low to high, linear or logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where the value lies: 0 at the low end, 1 at the high end."""
        if self.log:
            return (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return (value - self.low) / (self.high - self.low)


def linear_scale(values: Iterable[float], most: float, *, enclosing: bool = False) -> Scale:
    """A scale over the values with about ``most`` ticks; its ends are ticks where it is ``enclosing``."""
    seen = list(values)
    low, high = min(seen), max(seen)
    ticks = nice_ticks(low, high, most)
    if not enclosing:
        low, high = padded(low, high)
        ticks = [tick for tick in ticks if low <= tick <= high]
    else:
        low, high = ticks[0], ticks[-1]
    return Scale(low=low, high=high, ticks=tuple(ticks))


def log_scale(values: Iterable[float], most: float) -> Scale:
    """A logarithmic scale over values above zero with at most about ``most`` ticks and a margin at both ends."""
    seen = list(values)
    decades = log10(max(seen) / min(seen))
    margin = 10 ** max(0.05 * decades, 0.04)
    low, high = min(seen) / margin, max(seen) * margin
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks: list[float] = []
    for steps in _STEPS:
        ticks = [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]
        if len(ticks) <= most:
            break
    if len(ticks) > most:
        ticks = ticks[:: ceil(len(ticks) / most)]
    if len(ticks) < 2:  # less than a decade, between two ticks
        ticks = [tick for tick in nice_ticks(low, high, most) if low <= tick <= high]
    return Scale(low=low, high=high, ticks=tuple(ticks), log=True)


def nice_ticks(low: float, high: float, most: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]; at least two, about ``most``."""
    span = high - low or max(abs(high), 1.0) * 0.1
    raw = span / max(most, 1.0)
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = floor(low / step), ceil(high / step)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with a margin on both sides."""
    margin = (high - low or max(high, 1.0) * 0.1) * 0.04
    return low - margin, high + margin


def spaced(low: float, high: float, count: int, *, log: bool) -> Sequence[float]:
    """``count`` values from low to high, evenly spaced on the scale."""
    if log:
        ratio = high / low
        return [low * ratio ** (index / (count - 1)) for index in range(count)]
    return [low + (high - low) * index / (count - 1) for index in range(count)]
