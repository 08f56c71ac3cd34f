"""How a link's seconds come into a latency: factors of its rounds and bytes, and what of the work goes on meanwhile.

With W the work that loopback shows, R the rounds' seconds by the link's numbers and B those of the bytes,

    latency = max(W, L) + (1 - overlap) * min(W, L)    where L = per_round * R + per_byte * B.

per_round is above 1 where a library waits for more round trips than the messages that follow one another (a rendezvous
before a transfer, a congestion window that opens anew); overlap is above 0 where a phase streams: it computes while the
link is busy. Both are the backend's, not the link's, so they are fitted on all links together, and only where two links
that take time were measured, as one alone does not tell rounds from bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares  # type: ignore[import-untyped]

_MOST = 10.0
"""No factor is larger."""

_PRIOR = 0.02
"""Weight of a factor's distance from the plain sum, against a relative error: what points leave open stays plain."""


@dataclass(frozen=True, kw_only=True)
class LinkFactors:
    """per_round, per_byte: on the seconds by the link's numbers. overlap: from 0, one after the other, to 1."""

    per_round: float
    per_byte: float
    overlap: float

    def seconds(self, work_s: float, waits_s: float, carries_s: float) -> float:
        """The latency of ``work_s`` of work, rounds of ``waits_s`` and bytes of ``carries_s`` by the link's numbers."""
        link_s = self.per_round * waits_s + self.per_byte * carries_s
        return max(work_s, link_s) + (1 - self.overlap) * min(work_s, link_s)


PLAIN = LinkFactors(per_round=1.0, per_byte=1.0, overlap=0.0)
"""The plain sum."""


@dataclass(frozen=True, kw_only=True)
class LinkedPoint:
    """A measured latency on a link that takes time, beside its parts."""

    network: str
    work_s: float
    waits_s: float
    carries_s: float
    seconds: float


def fit_factors(points: Iterable[LinkedPoint]) -> LinkFactors:
    """Least squares of the relative errors; :data:`PLAIN` where fewer than two networks have points."""
    linked = list(points)
    if len({point.network for point in linked}) < 2:
        return PLAIN
    plain = np.array([PLAIN.per_round, PLAIN.per_byte, PLAIN.overlap])

    def errors(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.concatenate([_relative_errors(_factors(values), linked), _PRIOR * (values - plain)])

    # The larger of work and link changes sides with the factors: from either end of the overlap.
    fits = [
        least_squares(errors, start, bounds=([0.0, 0.0, 0.0], [_MOST, _MOST, 1.0]), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        for start in ([1.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    ]
    return _factors(min(fits, key=lambda fit: float(fit.cost)).x)


def _relative_errors(factors: LinkFactors, points: Sequence[LinkedPoint]) -> npt.NDArray[np.float64]:
    return np.array(
        [factors.seconds(point.work_s, point.waits_s, point.carries_s) / point.seconds - 1 for point in points]
    )


def _factors(values: npt.NDArray[np.float64]) -> LinkFactors:
    per_round, per_byte, overlap = map(float, values)
    return LinkFactors(per_round=per_round, per_byte=per_byte, overlap=overlap)
