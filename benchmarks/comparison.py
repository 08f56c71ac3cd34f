"""Runs against each other: every figure that the first run and another both have, and what the environments share.

Networks are the same where model, data set, ReLU counts and the way of choosing the mask are; a row of a cost is the
same where backend, network, link, phase and images are. Ratios are of the other run over the first: below 1 the other
is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import units
from benchmarks.bars import MEASURES, Bar, Chart, Measure, Segment
from benchmarks.labels import subject_label
from benchmarks.plots import key_of, text_of
from benchmarks.schema import PHASES, Environment, Phase, Results, Subject
from benchmarks.summary import PhaseCost, known_cost, known_subjects


@dataclass(frozen=True, kw_only=True)
class Run:
    """A results document under the name that the comparison gives it."""

    name: str
    results: Results


@dataclass(frozen=True, kw_only=True)
class Same:
    """One figure in all runs. values: by run, None where a run has none. modelled: by run."""

    backend: str
    subject: Subject
    network: str
    phase: Phase
    measure: Measure
    values: tuple[float | None, ...]
    modelled: tuple[bool, ...]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each value over the first; None where either is absent or the first is nothing."""
        first = self.values[0]
        return tuple(value / first if value is not None and first else None for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of the environments, a text a run."""

    name: str
    texts: tuple[str, ...]
    differs: bool


def same_figures(runs: Sequence[Run]) -> tuple[Same, ...]:
    """Every figure that the first run and at least one other have, in the first's order."""
    first = runs[0].results
    found = []
    for backend in first.backends:
        for network in first.networks:
            for subject in known_subjects(first, backend, network=network):
                for phase in PHASES:
                    costs = [_cost(run.results, backend, subject, phase, network) for run in runs]
                    for measure in MEASURES:
                        values = tuple(None if cost is None else measure.of_phase(cost) for cost in costs)
                        if not values[0] or all(value is None for value in values[1:]):
                            continue
                        found.append(
                            Same(
                                backend=backend,
                                subject=subject,
                                network=network,
                                phase=phase,
                                measure=measure,
                                values=values,
                                modelled=tuple(cost is not None and cost.kind == "modelled" for cost in costs),
                            )
                        )
    return tuple(found)


def ratio_charts(runs: Sequence[Run], figures: Sequence[Same]) -> tuple[Chart, ...]:
    """A chart a backend, link and figure, of online and offline: each run over the first, by network."""
    groups: dict[tuple[str, str, str, str], list[Same]] = {}
    for figure in figures:
        if figure.phase != "setup":
            groups.setdefault((figure.backend, figure.network, figure.phase, figure.measure.name), []).append(figure)
    charts = []
    for (backend, network, phase, measure), group in groups.items():
        bars = tuple(
            Bar(
                label=subject_label(same.subject) if index == 1 or len(runs) == 2 else "",
                segments=(Segment(kind=f"series{(index - 1) % 5}", label=runs[index].name, value=ratio),),
                value=text_of(ratio, "times"),
                note=f"{same.measure.text(same.values[0] or 0.0)} → {same.measure.text(same.values[index] or 0.0)}",
                modelled=same.modelled[0] or same.modelled[index],
            )
            for same in group
            for index, ratio in enumerate(same.ratios)
            if index and ratio is not None
        )
        charts.append(
            Chart(
                key=key_of("ratio", backend, network, phase, measure),
                title=f"{backend} on {network}: {phase} {measure}",
                unit="times",
                bars=bars,
                legend=tuple((f"series{(index - 1) % 5}", run.name) for index, run in enumerate(runs) if index),
            )
        )
    return tuple(charts)


def environment_facts(runs: Sequence[Run]) -> tuple[Fact, ...]:
    """The environments and schedules side by side; a package that a run does not have is empty there."""
    environments = [run.results.environment for run in runs]
    packages = dict.fromkeys(name for environment in environments for name in environment.packages)
    lines: list[tuple[str, list[str]]] = [
        ("Processor", [environment.cpu for environment in environments]),
        ("Cores", [str(environment.cores) for environment in environments]),
        ("Memory", [units.bytes_(environment.memory_bytes) for environment in environments]),
        ("Threads of each party", [str(environment.threads) for environment in environments]),
        ("System", [environment.system for environment in environments]),
        ("Python", [environment.python for environment in environments]),
        *((name, [environment.packages.get(name, "") for environment in environments]) for name in packages),
        ("Commit", [_commit(environment) for environment in environments]),
        ("Runs and sweeps", [f"{r.results.schedule.runs} in {r.results.schedule.sweeps}" for r in runs]),
        ("Links", [", ".join(run.results.networks) for run in runs]),
    ]
    return tuple(
        Fact(name=name, texts=tuple(texts), differs=len(set(texts)) > 1) for name, texts in lines if any(texts)
    )


def warnings(runs: Sequence[Run]) -> tuple[str, ...]:
    """What stands against taking the ratios for those of the programs alone."""
    differing = [fact.name for fact in environment_facts(runs) if fact.differs]
    found = []
    if differing:
        found.append(f"The environments differ in {', '.join(differing)}: ratios of seconds are not of the code alone")
    missing = {run.name for run in runs[1:]} - {
        runs[index].name for same in same_figures(runs) for index, value in enumerate(same.values) if value is not None
    }
    found += [f"{name} shares no figure with {runs[0].name}" for name in sorted(missing)]
    return tuple(found)


def _cost(results: Results, backend: str, subject: Subject, phase: Phase, network: str) -> PhaseCost | None:
    """The cost in a run of the network that ``subject`` is in another."""
    own = next((other for other in results.subjects if _identity(other) == _identity(subject)), None)
    return None if own is None else known_cost(results, backend, own.name, phase, network=network)


def _identity(subject: Subject) -> tuple[object, ...]:
    return subject.model, subject.dataset, subject.relu_total, subject.relu_count, subject.mask


def _commit(environment: Environment) -> str:
    commit = environment.commit or ""
    return commit[:12] + (", with changes" if commit.endswith("+") else "")
