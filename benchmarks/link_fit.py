"""How a link's seconds come into a latency: factors of its rounds and bytes, and what of the work goes on meanwhile.

With W the work that loopback shows, R the rounds' seconds by the link's numbers and B those of the bytes,

    latency = max(w * W, L) + (1 - overlap) * min(w * W, L)    where L = per_round * R + per_byte * B.

per_round is above 1 where a library waits for more round trips than the messages that follow one another (a rendezvous
before a transfer, a congestion window that opens anew); overlap is above 0 where a phase streams: it computes while the
link is busy. Both are the backend's, not the link's, so they are fitted on all links together, and only where two links
that take time were measured, as one alone does not tell rounds from bytes.

w, the work of a link, is the link's own: on the same cores beside the parties runs what shapes it, and its measurement
fell into other minutes than that of loopback, faster or slower ones. It says nothing of a link that was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares  # type: ignore[import-untyped]

_MOST = 10.0
"""No factor is larger."""

_PRIOR = 0.005
"""Weight of a factor's distance from the plain sum, against a relative error: what points leave open stays plain."""

_WORK_PRIOR = 0.05
"""The same of a link's work: what a factor for all links explains as well is not the link's own."""


@dataclass(frozen=True, kw_only=True)
class LinkFactors:
    """per_round, per_byte: on the seconds by the link's numbers. overlap: from 0, one after the other, to 1.

    work: of each link that was fitted, by name, on the work that loopback shows.
    """

    per_round: float
    per_byte: float
    overlap: float
    work: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, network: str, work_s: float, waits_s: float, carries_s: float) -> float:
        """The latency of ``work_s`` of work on loopback, and ``waits_s`` and ``carries_s`` by the numbers of a link."""
        own_s = self.work.get(network, 1.0) * work_s
        link_s = self.per_round * waits_s + self.per_byte * carries_s
        return max(own_s, link_s) + (1 - self.overlap) * min(own_s, link_s)


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
    networks = tuple(dict.fromkeys(point.network for point in linked))
    if len(networks) < 2:
        return PLAIN
    plain = np.array([PLAIN.per_round, PLAIN.per_byte, PLAIN.overlap, *(1.0 for _ in networks)])
    weights = np.array([_PRIOR] * 3 + [_WORK_PRIOR] * len(networks))
    most = np.array([_MOST, _MOST, 1.0, *(_MOST for _ in networks)])

    def errors(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.concatenate([_relative_errors(_factors(values, networks), linked), weights * (values - plain)])

    # The larger of work and link changes sides with the factors: from either end of the overlap.
    fits = []
    for overlap in (0.0, 1.0):
        start = plain.copy()
        start[2] = overlap
        fits.append(least_squares(errors, start, bounds=(0.0, most), xtol=1e-12, ftol=1e-12, gtol=1e-12))
    return _factors(min(fits, key=lambda fit: float(fit.cost)).x, networks)


def _relative_errors(factors: LinkFactors, points: Sequence[LinkedPoint]) -> npt.NDArray[np.float64]:
    return np.array(
        [
            factors.seconds(point.network, point.work_s, point.waits_s, point.carries_s) / point.seconds - 1
            for point in points
        ]
    )


def _factors(values: npt.NDArray[np.float64], networks: Sequence[str]) -> LinkFactors:
    per_round, per_byte, overlap, *work = map(float, values)
    return LinkFactors(
        per_round=per_round, per_byte=per_byte, overlap=overlap, work=dict(zip(networks, work, strict=True))
    )
