"""The order of a measurement: sweeps over the subjects, and within them every backend in turn, run by run.

A machine drifts. Two figures can be compared when they were taken in the same seconds: all backends of one subject are
open together, each repetition runs every one of them once, and the order turns around at each repetition, so that none
always runs on another's warm caches. A backend of fewer runs sits out repetitions, evenly over their time; one of a
single run takes no turns and is open alone. Subjects are too many to be open together; so that drift hits them alike,
they are all visited in each of several sweeps, every other one in reverse order, and the runs are divided among the
sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

import numpy as np

from benchmarks.errors import MeasureError
from benchmarks.reference import Images, Logits, accuracy
from benchmarks.schema import LOOPBACK, Schedule, SecureAccuracy
from benchmarks.subjects import SubjectFile, Subjects, spread
from pi_runtime.backend import Backend, RunCost

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done, and how many there are."""

Pair = tuple[str, SubjectFile]
"""A backend by name, and a subject."""


@dataclass(frozen=True, kw_only=True)
class Station:
    """One stop of a sweep: the subjects that are open together."""

    sweep: int
    subjects: tuple[SubjectFile, ...]


def stations(subjects: Sequence[SubjectFile], schedule: Schedule) -> Iterator[Station]:
    """Every stop in order: all subjects in each sweep, forwards and backwards in turn."""
    for sweep in range(schedule.sweeps):
        order = iter(subjects if sweep % 2 == 0 else tuple(reversed(subjects)))
        while together := tuple(islice(order, schedule.subjects_at_once)):
            yield Station(sweep=sweep, subjects=together)


class Bay:
    """The backends that are open at one station, on one network."""

    def __init__(
        self, opener: Callable[[str], Backend], progress: Progress, subjects: Subjects, *, network: str = LOOPBACK
    ) -> None:
        self._opener = opener
        self._where = "" if network == LOOPBACK else f" on {network}"
        self._progress = progress
        self._subjects = subjects
        self._stack = ExitStack()
        self._open: dict[tuple[str, str], Backend] = {}

    def __enter__(self) -> Bay:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()
        self._stack.close()

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Opens each pair's backend and loads its subject."""
        for name, file in pairs:
            label = f"{name}: set-up ({file.name}){self._where}"
            self._progress(label, 0, 1)
            backend = self._stack.enter_context(self._opener(name))
            backend.prepare(file.path)
            self._open[name, file.name] = backend
            self._progress(label, 1, 1)

    def byte_source(self, pair: Pair) -> str:
        """Where the pair's backend counts its bytes; empty where it does not say."""
        return str(getattr(self._open[pair[0], pair[1].name], "byte_source", None) or "")

    def time(self, runs: Mapping[Pair, range], station: Station, warmup: int) -> dict[Pair, list[RunCost]]:
        """The cost of every timed run of one image, by pair; the pairs take turns, in alternating order.

        runs: their numbers among all of a pair's on this network, which choose the images; at least one.
        """
        costs: dict[Pair, list[RunCost]] = {pair: [] for pair in runs}
        most = max(len(own) for own in runs.values())
        steps = warmup + most
        taking_part = {
            pair: {*range(warmup), *(warmup + turn for turn in spread(most, len(own)))} for pair, own in runs.items()
        }
        label = (
            f"{', '.join(file.name for file in station.subjects)}: timed runs, sweep {station.sweep + 1}{self._where}"
        )
        for step in range(steps):
            self._progress(label, step, steps)
            order = [pair for pair in runs if step in taking_part[pair]]
            for pair in order if step % 2 == 0 else reversed(order):
                images = pair[1].images
                done = step if step < warmup else warmup + len(costs[pair])
                picture = (runs[pair].start + done) % len(images)
                cost = self._infer(pair, images[picture : picture + 1])[1]
                if step >= warmup:
                    costs[pair].append(cost)
        self._progress(label, steps, steps)
        return costs

    def compare(self, pair: Pair, plain: Logits, batch: int) -> SecureAccuracy:
        """Runs the pair over its subject's chosen images, ``batch`` at a time, beside their plaintext logits."""
        name, file = pair
        chosen = file.chosen
        label = f"{name}: test images ({file.name})"
        parts: list[Logits] = []
        for start in range(0, len(chosen), batch):
            self._progress(label, start, len(chosen))
            parts.append(self._infer(pair, file.images[chosen[start : start + batch]])[0])
        self._progress(label, len(chosen), len(chosen))
        logits = np.concatenate(parts)
        return SecureAccuracy(
            backend=name,
            subject=file.name,
            images=len(chosen),
            agreement_with_plaintext=float(np.mean(logits.argmax(axis=1) == plain.argmax(axis=1))),
            max_abs_logit_error=float(np.abs(logits.astype(np.float64) - plain).max()),
            accuracy=None if file.labels is None else accuracy(logits, file.labels[chosen]),
        )

    def _infer(self, pair: Pair, images: Images) -> tuple[Logits, RunCost]:
        name, file = pair
        logits, cost = self._open[name, file.name].infer(images)
        expected = (len(images), *self._subjects.graphs[file.name].output_shape)
        if logits.shape != expected:
            raise MeasureError(
                f"backend {name!r} gave logits of shape {logits.shape} for {file.name}, expected {expected}"
            )
        if not np.isfinite(logits).all():
            raise MeasureError(
                f"backend {name!r} gave logits that are not finite for {file.name}; nothing was recorded"
            )
        return logits, cost
