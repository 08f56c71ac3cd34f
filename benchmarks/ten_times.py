"""Ten times fewer ReLUs: by what factor each backend's cost fell with them, and what the layers say of why.

One entry a backend, network and link: the network with most ReLUs against the same with about a tenth of them. Every
number is computed from the rows; the sentences hold no others.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import units
from benchmarks.bars import LATENCY, MEASURES, TRAFFIC, Chart, Measure
from benchmarks.labels import place
from benchmarks.layer_views import KIND_NAMES, RELU, sums_by_kind
from benchmarks.plots import key_of
from benchmarks.schema import Phase, Results, Subject
from benchmarks.summary import known_cost, known_subjects, layer_costs
from benchmarks.tiles import secure_backends
from benchmarks.views import kind_bar, kind_legend

TARGET = 50_000
"""The budget that the question is asked for, where a network has more than twice as many."""

LINEAR = KIND_NAMES[1]


@dataclass(frozen=True, kw_only=True)
class Fall:
    """One figure with many ReLUs and with few. factor: the first over the second; None where either is nothing."""

    phase: Phase
    measure: Measure
    before: float
    after: float

    @property
    def factor(self) -> float | None:
        """How many times less it became."""
        return self.before / self.after if self.before > 0 and self.after > 0 else None

    @property
    def text(self) -> str:
        """Both figures."""
        return f"{self.measure.text(self.before)} → {self.measure.text(self.after)}"


@dataclass(frozen=True, kw_only=True)
class TenTimes:
    """What fewer ReLUs did for one backend on one link.

    modelled: some figure was not measured. left: online seconds of the linear layers with few ReLUs, and their part of
    all layers' seconds; None where no layer was timed.
    """

    backend: str
    model: str
    network: str
    many: Subject
    few: Subject
    falls: tuple[Fall, ...]
    modelled: bool
    left: tuple[float, float] | None
    why: tuple[str, ...]
    chart: Chart | None

    @property
    def relus(self) -> float:
        """The factor of the ReLU count."""
        return self.many.relu_count / self.few.relu_count

    def fall(self, phase: Phase, measure: Measure) -> Fall | None:
        """The fall of one figure."""
        return next((f for f in self.falls if f.phase == phase and f.measure is measure), None)


def ten_times(results: Results) -> tuple[TenTimes, ...]:
    """Every secure backend, network and link on which both ends of a network's ReLU counts were measured."""
    found = []
    for model in dict.fromkeys(subject.model for subject in results.subjects):
        for network in results.networks:
            for backend in secure_backends(results):
                subjects = [s for s in known_subjects(results, backend, network=network) if s.model == model]
                pair = _pair(subjects)
                entry = None if pair is None else _entry(results, backend, model, network, *pair)
                if entry is not None:
                    found.append(entry)
    return tuple(found)


def _pair(subjects: list[Subject]) -> tuple[Subject, Subject] | None:
    """The subject with most ReLUs, and the one nearest the target; the one with fewest where those are few anyway."""
    many = max(subjects, key=lambda subject: subject.relu_count, default=None)
    fewer = [s for s in subjects if many is not None and 0 < s.relu_count < many.relu_count]
    if many is None or not fewer:
        return None
    if many.relu_count > 2 * TARGET:
        return many, min(fewer, key=lambda subject: abs(subject.relu_count - TARGET))
    return many, min(fewer, key=lambda subject: subject.relu_count)


def _entry(results: Results, backend: str, model: str, network: str, many: Subject, few: Subject) -> TenTimes | None:
    falls = []
    modelled = False
    phases: tuple[Phase, ...] = ("online", "offline")
    for phase in phases:
        before = known_cost(results, backend, many.name, phase, network=network)
        after = known_cost(results, backend, few.name, phase, network=network)
        if before is None or after is None:
            continue
        modelled = modelled or "modelled" in (before.kind, after.kind)
        falls += [
            Fall(phase=phase, measure=measure, before=measure.of_phase(before), after=measure.of_phase(after))
            for measure in MEASURES
        ]
    if not falls:
        return None
    seconds = sums_by_kind(results, backend, LATENCY.of_layer, network=network)
    sent = sums_by_kind(results, backend, TRAFFIC.of_layer, network=network)
    prepared = sums_by_kind(results, backend, TRAFFIC.of_layer, network=network, phase="offline")
    known = many.name in seconds and few.name in seconds
    total = sum(seconds[few.name].values()) if known else 0.0
    pair = (many, few)
    why: tuple[str, ...] = ()
    if not known and not modelled:
        why = tuple(line for fall in falls if fall.phase == "online" for line in _fixed_part(fall, pair))
    if known:
        why = (
            *_ceiling("online", TRAFFIC, sent[many.name], falls, pair),
            *_ceiling("online", LATENCY, seconds[many.name], falls, pair),
            *_ceiling("offline", TRAFFIC, prepared.get(many.name, {}), falls, pair),
            *_own_time(results, backend, network, pair, seconds),
            *_rest(seconds[few.name]),
        )
    return TenTimes(
        backend=backend,
        model=model,
        network=network,
        many=many,
        few=few,
        falls=tuple(falls),
        modelled=modelled,
        left=(seconds[few.name][LINEAR], seconds[few.name][LINEAR] / total) if total else None,
        why=why,
        chart=_chart(results, backend, network, many, few, seconds) if total else None,
    )


def _fixed_part(fall: Fall, pair: tuple[Subject, Subject]) -> tuple[str, ...]:
    """Where no layer tells: what two ReLU counts say of a ReLU, and of all that is not ReLUs."""
    many, few = pair
    if fall.factor is None or fall.factor <= 1:
        return ()
    each = (fall.before - fall.after) / (many.relu_count - few.relu_count)
    rest = fall.before - each * many.relu_count
    if rest <= 0:
        return ()
    return (
        f"The backend does not tell its layers. By the line through the two counts {units.count(1000)} ReLUs take"
        f" {fall.measure.text(1000 * each)} online, and all that is no ReLU {fall.measure.text(rest)}"
        f" ({units.percent(rest / fall.before, 0)} with {units.count(many.relu_count)} ReLUs), which does not fall.",
    )


def _ceiling(
    phase: Phase, measure: Measure, kinds: dict[str, float], falls: list[Fall], pair: tuple[Subject, Subject]
) -> tuple[str, ...]:
    """How far the whole can fall when only the ReLU layers' part falls, and how far it did."""
    total = sum(kinds.values())
    fall = next((f for f in falls if f.phase == phase and f.measure is measure), None)
    if not total or fall is None or fall.factor is None:
        return ()
    many, few = pair
    share, relus = kinds[RELU] / total, many.relu_count / few.relu_count
    best = 1 / (1 - share * (1 - 1 / relus))
    what = f"{phase} bytes" if measure is TRAFFIC else f"layers' {phase} seconds"
    return (
        f"With {units.count(many.relu_count)} ReLUs, the ReLU layers are {units.percent(share)} of the {what}:"
        f" if just their part fell with the count, the whole would fall {units.significant(best)}×;"
        f" it {_fell(fall.factor)}.",
    )


def _fell(factor: float) -> str:
    """``fell 9.13×``, or ``rose 1.13×``: the runs of one are never quite those of the other."""
    return f"fell {units.significant(factor)}×" if factor >= 1 else f"rose {units.significant(1 / factor)}×"


def _own_time(
    results: Results,
    backend: str,
    network: str,
    pair: tuple[Subject, Subject],
    seconds: dict[str, dict[str, float]],
) -> tuple[str, ...]:
    """What became of the ReLU layers' own time, and whether their rounds fell with it."""
    before, after = (seconds[subject.name][RELU] for subject in pair)
    if not before or not after:
        return ()
    rounds = []
    for subject in pair:
        layers = layer_costs(results, backend, subject.name, "online", network=network)
        rounds.append(sum(layer.rounds for layer in layers if layer.op == "relu"))
    alike = f", in the same {units.count(rounds[0])} rounds" if rounds[0] and rounds[0] == rounds[1] else ""
    return (
        f"The ReLU layers' own time went from {units.seconds(before)} to {units.seconds(after)},"
        f" {units.change(before, after)}{alike}.",
    )


def _rest(kinds: dict[str, float]) -> tuple[str, ...]:
    """What the time with few ReLUs is spent on."""
    total = sum(kinds.values())
    if not total:
        return ()
    parts = ", ".join(
        f"{kind} {units.seconds(kinds[kind])} ({units.percent(kinds[kind] / total, 0)})" for kind in (LINEAR, RELU)
    )
    return (f"What is left of the layers' time, {units.seconds(total)}: {parts}.",)


def _chart(
    results: Results, backend: str, network: str, many: Subject, few: Subject, seconds: dict[str, dict[str, float]]
) -> Chart:
    several = len({subject.model for subject in results.subjects}) > 1
    owner = f"{backend}, {many.model}" if several else backend
    return Chart(
        key=key_of("ten-times", backend, *((many.model,) if several else ()), network),
        title=f"{owner}: online seconds by kind of layer{place(results, network)}",
        unit="s",
        bars=tuple(kind_bar(subject, seconds[subject.name], LATENCY) for subject in (many, few)),
        legend=kind_legend(seconds[subject.name] for subject in (many, few)),
    )
