"""Accuracy against latency: what each network of the run costs and what it is worth."""

from __future__ import annotations

from benchmarks import units
from benchmarks.labels import place
from benchmarks.palette import backend_colours
from benchmarks.plots import Axis, Mark, Plot, Series, described, key_of
from benchmarks.schema import Results, Subject
from benchmarks.summary import known_cost, known_subjects

_X = Axis(label="online seconds of one image", unit="s", log=True)
_Y = Axis(label="test accuracy, %", unit="percent")


def pareto_plots(results: Results) -> tuple[Plot, ...]:
    """A figure a link: networks with trained weights and a test accuracy; none where fewer than two are such."""
    colours = backend_colours(results.backends)
    found = []
    for network in results.networks:
        series: list[Series] = []
        networks: set[str] = set()
        for backend in results.backends:
            marks: dict[str, list[Mark]] = {}
            for subject in known_subjects(results, backend, network=network):
                cost = known_cost(results, backend, subject.name, "online", network=network)
                if cost is None or subject.weights != "trained" or subject.test_accuracy is None:
                    continue
                networks.add(subject.name)
                mark = Mark(
                    x=cost.latency_s.median,
                    y=100 * subject.test_accuracy,
                    label=_mark_label(subject),
                )
                marks.setdefault(cost.kind, []).append(mark)
            front = frontier([mark for some in marks.values() for mark in some])
            if len(front) > 1:
                series.append(
                    Series(
                        name=f"{backend}: not beaten",
                        kind="fit",
                        marks=front,
                        colour=colours[backend],
                        dot="none",
                        stroke="solid",
                        in_legend=False,
                    )
                )
            for kind, some in marks.items():
                series.append(
                    Series(
                        name=backend if kind == "measured" else f"{backend}, modelled",
                        kind=kind,
                        marks=tuple(sorted(some, key=lambda mark: mark.x)),
                        colour=colours[backend],
                        dot="solid" if kind == "measured" else "hollow",
                        radius=5,
                    )
                )
        if len(networks) > 1:
            found.append(
                Plot(
                    key=key_of("accuracy-latency", network),
                    title=f"Test accuracy against online latency{place(results, network)}",
                    alt=described(series, _X, _Y),
                    x=_X,
                    y=_Y,
                    series=tuple(series),
                )
            )
    return tuple(found)


def _mark_label(subject: Subject) -> str:
    """The count; of several runs the name of the run, which says the method."""
    owner, slash, _ = subject.name.rpartition("/")
    return owner if slash and subject.mask == "trained" else units.count(subject.relu_count)


def frontier(marks: list[Mark]) -> tuple[Mark, ...]:
    """The marks to which no other is at least as accurate and faster, from the fastest to the most accurate."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -mark.y)):
        if not front or mark.y > front[-1].y:
            front.append(mark)
    return tuple(Mark(x=mark.x, y=mark.y) for mark in front)
