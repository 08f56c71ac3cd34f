"""The cost law: latency = a + b * ReLUs + rounds * RTT + bytes / bandwidth, for each backend; and how well it predicts.

Rounds and bytes are counted, RTT and bandwidth measured of the link. a and b are fitted by least squares on the
loopback rows where those have two ReLU counts, else on what the link leaves of the rows of all networks. What a ReLU
counts for is :mod:`benchmarks.relu_work`'s to say; b is 0 where no ReLU costs a byte, as in a library that compares a
whole layer whatever its mask keeps. A phase that sends nothing has no law.

Where two links that take time were measured, the law's last terms get a factor each, the work one for each link, and
what of it goes on while the link is busy is fitted too (:mod:`benchmarks.link_fit`): a library may wait for two round
trips where it counts one, what shapes a link takes its share of the cores, and a phase that streams hides its work
behind its bytes. Elsewhere the plain sum stands.

A law is worth what it says of points that it has not seen. :func:`predictions` holds ReLU counts back, each in turn or
those that are named, fits the law on the others and predicts the latency on every network that was measured: no time
that was taken at a held-back count goes in. Bytes and rounds of `preset` are facts of the public graph, which
`estimate` has before anything runs: what was counted equals them. Those of other backends are predicted as well, on the
line through the two nearest counts.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.errors import MeasureError
from benchmarks.fit import MIN_POINTS, fit_line
from benchmarks.link_fit import PLAIN, LinkedPoint, LinkFactors, fit_factors
from benchmarks.links import Link, link_in, link_seconds, serial_bytes, serial_rounds
from benchmarks.relu_work import relu_work
from benchmarks.schema import LOOPBACK, Phase, Results, Subject
from benchmarks.summary import PhaseCost, measured_subjects, phase_cost

PHASES: tuple[Phase, ...] = ("online", "offline")

_DECLARED = frozenset(("preset",))
"""Backends whose bytes and rounds follow from the public graph, to the byte."""

_SAME = 1e-4
"""Bytes that differ by less than this part are the same: names and numbers in a message are not of equal length."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured median: ``seconds`` of one image at ``relu_count`` on ``network``.

    relu_work: what the ReLUs count for (:mod:`benchmarks.relu_work`).
    rounds, transferred: round trips and bytes that follow one another (:mod:`benchmarks.links`).
    """

    network: str
    link: Link
    relu_count: int
    relu_work: float
    seconds: float
    rounds: float
    transferred: float

    @property
    def waits_s(self) -> float:
        """Seconds of the round trips by the link's numbers."""
        return link_seconds(self.link, self.rounds, 0)

    @property
    def carries_s(self) -> float:
        """Seconds of the bytes by the link's numbers."""
        return link_seconds(self.link, 0, self.transferred)


@dataclass(frozen=True, kw_only=True)
class Law:
    """``fixed_s + relu_s * relu_work`` beside what the link takes.

    factors: how the link's seconds come in. fitted_on: the networks whose points a and b were fitted on. low, high: the
    ReLU counts between which they were.
    """

    fixed_s: float
    relu_s: float
    factors: LinkFactors
    fitted_on: tuple[str, ...]
    low: int
    high: int

    def seconds(self, point: Point) -> float:
        """The latency that the law gives for the ReLUs, rounds and bytes of a point on its network."""
        work_s = self.fixed_s + self.relu_s * point.relu_work
        return self.factors.seconds(point.network, work_s, point.waits_s, point.carries_s)


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A point of a law, and ``fitted_s``: what the law gives for it."""

    point: Point
    fitted_s: float

    @property
    def residual_s(self) -> float:
        """Measured minus fitted."""
        return self.point.seconds - self.fitted_s

    @property
    def size(self) -> float:
        """The residual against what was measured, as a fraction without a sign."""
        return abs(self.residual_s) / self.point.seconds

    @property
    def error(self) -> float:
        """Fitted against measured, as a fraction; above 0 where the law gives too much."""
        return self.fitted_s / self.point.seconds - 1


@dataclass(frozen=True, kw_only=True)
class CostLaw:
    """The law of one backend on one network in one phase, and how it fits every measured point."""

    backend: str
    model: str
    phase: Phase
    law: Law
    residuals: tuple[Residual, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a law that never saw ``relu_count`` says of it, beside what was measured there.

    outside: whether the count is below or above all that the law was fitted on.
    """

    backend: str
    model: str
    phase: Phase
    network: str
    relu_count: int
    predicted_s: float
    measured_s: float
    outside: bool

    @property
    def error(self) -> float:
        """Predicted against measured, as a fraction; above 0 where too much was predicted."""
        return self.predicted_s / self.measured_s - 1


def fit_law(points: Sequence[Point]) -> Law:
    """a, b and the link's factors by least squares; the points must have two ReLU counts at least."""
    bare = [point for point in points if point.network == LOOPBACK]
    chosen = bare if len({point.relu_count for point in bare}) > 1 else points
    counts = [point.relu_count for point in chosen]
    fixed_s, relu_s = _line(chosen)
    factors = PLAIN
    if chosen is bare:
        factors = fit_factors(
            LinkedPoint(
                network=point.network,
                work_s=fixed_s + relu_s * point.relu_work,
                waits_s=point.waits_s,
                carries_s=point.carries_s,
                seconds=point.seconds,
            )
            for point in points
            if point.waits_s or point.carries_s
        )
    return Law(
        fixed_s=fixed_s,
        relu_s=relu_s,
        factors=factors,
        fitted_on=tuple(dict.fromkeys(point.network for point in chosen)),
        low=min(counts),
        high=max(counts),
    )


def _line(points: Sequence[Point]) -> tuple[float, float]:
    """Seconds beside the link's at no ReLU, and for each; where the ReLUs cost no byte, the mean and none."""
    seconds = [point.seconds - point.waits_s - point.carries_s for point in points]
    work = [point.relu_work for point in points]
    sent = [point.transferred for point in points]
    if min(work) == max(work) or max(sent) - min(sent) <= _SAME * max(sent):
        return fmean(seconds), 0.0
    line = fit_line(work, seconds)
    return line.intercept, line.slope


def cost_laws(results: Results) -> tuple[CostLaw, ...]:
    """A law a backend, model and phase, where at least three ReLU counts were measured."""
    return tuple(
        CostLaw(
            backend=backend,
            model=model,
            phase=phase,
            law=(law := fit_law(points)),
            residuals=tuple(Residual(point=point, fitted_s=law.seconds(point)) for point in points),
        )
        for backend, model, phase, points in _series(results)
    )


def predictions(results: Results, hold_back: Collection[int] | None = None) -> tuple[Prediction, ...]:
    """Every held-back point as predicted and as measured.

    Args:
        hold_back: ReLU counts that no law is fitted on; None holds each count back in turn, fitting on all others.

    Raises:
        MeasureError: ``hold_back`` names a count that nothing was measured at, or leaves fewer than two.
    """
    found = []
    measured: set[int] = set()
    for backend, model, phase, points in _series(results):
        counts = sorted({point.relu_count for point in points})
        measured.update(counts)
        held_back = [{count} for count in counts] if hold_back is None else [set(hold_back)]
        for held in held_back:
            left = [point for point in points if point.relu_count not in held]
            if len({point.relu_count for point in left}) < MIN_POINTS - 1:
                raise MeasureError(
                    f"a law needs two ReLU counts to be fitted on, --hold-back leaves fewer of"
                    f" {', '.join(f'{count:,}' for count in counts)} ({backend}); hold back fewer"
                )
            found += [
                _predict(left, point, backend=backend, model=model, phase=phase)
                for point in points
                if point.relu_count in held
            ]
    for count in hold_back or ():
        if count not in measured:
            raise MeasureError(
                f"--hold-back must name measured ReLU counts"
                f" ({', '.join(f'{known:,}' for known in sorted(measured)) or 'there are too few for a law'}),"
                f" got {count:,}"
            )
    return tuple(found)


def _predict(seen: Sequence[Point], point: Point, *, backend: str, model: str, phase: Phase) -> Prediction:
    law = fit_law(seen)
    count = point.relu_count
    known = point
    if backend not in _DECLARED:
        known = replace(
            point,
            rounds=_between({other.relu_count: other.rounds for other in seen}, count),
            transferred=_between({other.relu_count: other.transferred for other in seen}, count),
        )
    return Prediction(
        backend=backend,
        model=model,
        phase=phase,
        network=point.network,
        relu_count=count,
        predicted_s=law.seconds(known),
        measured_s=point.seconds,
        outside=not law.low <= count <= law.high,
    )


def _between(known: Mapping[int, float], count: int) -> float:
    """The value at a count, on the straight line through the two counts around it, or the two nearest beyond all."""
    counts = sorted(known)
    upper = min(max(bisect(counts, count), 1), len(counts) - 1)
    low, high = counts[upper - 1], counts[upper]
    return max(known[low] + (known[high] - known[low]) * (count - low) / (high - low), 0.0)


def _series(results: Results) -> list[tuple[str, str, Phase, list[Point]]]:
    """The points of each law, in the order of measurement: of phases that send anything, at three counts or more."""
    found = []
    for backend in results.backends:
        for model in dict.fromkeys(subject.model for subject in results.subjects):
            for phase in PHASES:
                points = _points(results, backend, model, phase)
                counts = {point.relu_count for point in points}
                if len(counts) >= MIN_POINTS and any(point.transferred for point in points):
                    found.append((backend, model, phase, points))
    return found


def _points(results: Results, backend: str, model: str, phase: Phase) -> list[Point]:
    found: list[tuple[str, Link, Subject, PhaseCost]] = []
    for network in results.networks:
        link = link_in(results, network)
        if link is None:
            continue
        for subject in measured_subjects(results, backend, network=network):
            cost = phase_cost(results, backend, subject.name, phase, network=network)
            if subject.model == model and cost is not None and cost.latency_s.median > 0:
                found.append((network, link, subject, cost))
    work = relu_work(results, backend, phase, [subject for _, _, subject, _ in found])
    return [
        Point(
            network=network,
            link=link,
            relu_count=subject.relu_count,
            relu_work=work[subject.name],
            seconds=cost.latency_s.median,
            rounds=serial_rounds(backend, cost.rounds),
            transferred=serial_bytes(backend, phase, cost.sent_bytes),
        )
        for network, link, subject, cost in found
    ]
