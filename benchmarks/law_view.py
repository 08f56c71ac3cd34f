"""What the report shows of the cost law, the floor and published costs: figures in groups, ready for a template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.cost_law import CostLaw, Prediction, cost_laws, predictions
from benchmarks.floor import Floor, LayerFloor, floors, layer_floors
from benchmarks.foresight import Check, foresight
from benchmarks.published import SOURCE, PublishedCost, published_costs
from benchmarks.schema import Results, Subject

GOAL = 0.10
"""A prediction further off than this is marked."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The floors of the layers of one measurement."""

    backend: str
    subject: Subject
    network: str
    rows: tuple[LayerFloor, ...]

    @property
    def plaintext(self) -> bool:
        """Whether any of them was measured in plaintext."""
        return any(row.plaintext_s is not None for row in self.rows)


@dataclass(frozen=True)
class Tally:
    """How many of so many predictions are within :data:`GOAL` of what was measured."""

    within: int
    total: int


@dataclass(frozen=True, kw_only=True)
class LawView:
    """What the laws predict, of counts between the others and beyond them; ``goal`` is :data:`GOAL`.

    foreseen: what rehearsals in turn with the measurement say of it.
    """

    laws: tuple[CostLaw, ...]
    predictions: tuple[Prediction, ...]
    between: Tally
    beyond: Tally
    foreseen: tuple[Check, ...]
    foreseen_tally: Tally
    goal: float
    floors: tuple[Floor, ...]
    layers: tuple[Layers, ...]
    published: tuple[PublishedCost, ...]
    source: str


def law_view(results: Results) -> LawView:
    """Everything of the results that has a law, a floor or a published cost; each part may be empty.

    Layers whose floor is nothing are left out: on loopback all are, where `plaintext` does not tell its layers.
    """
    predicted, foreseen, found = predictions(results), foresight(results), floors(results)
    layers = (
        Layers(
            backend=floor.backend,
            subject=floor.subject,
            network=floor.network,
            rows=tuple(
                row
                for row in layer_floors(results, floor.backend, floor.subject.name, network=floor.network)
                if row.floor_s
            ),
        )
        for floor in found
    )
    return LawView(
        laws=cost_laws(results),
        predictions=predicted,
        between=_tally(entry.error for entry in predicted if not entry.outside),
        beyond=_tally(entry.error for entry in predicted if entry.outside),
        foreseen=foreseen,
        foreseen_tally=_tally(entry.error for entry in foreseen),
        goal=GOAL,
        floors=found,
        layers=tuple(entry for entry in layers if entry.rows),
        published=published_costs(results),
        source=SOURCE,
    )


def _tally(errors: Iterable[float]) -> Tally:
    met = [abs(error) <= GOAL for error in errors]
    return Tally(within=sum(met), total=len(met))
