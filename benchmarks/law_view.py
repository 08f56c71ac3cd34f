"""What the report shows of the cost law, the floor and published costs: figures in groups, ready for a template."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cost_law import CostLaw, Prediction, cost_laws, predictions
from benchmarks.floor import Floor, LayerFloor, floors, layer_floors
from benchmarks.foresight import Check, foresight
from benchmarks.published import SOURCE, PublishedCost, published_costs
from benchmarks.schema import Results, Subject
from benchmarks.tally import GOAL, BackendTally, Tally, backend_tallies, tally


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


@dataclass(frozen=True, kw_only=True)
class LawView:
    """What the laws predict of ReLU counts held back, and how far from the floor the measurement is.

    tallies: of ``predictions``, by backend. foreseen: what rehearsals in turn with the measurement say of it. goal:
    :data:`benchmarks.tally.GOAL`.
    """

    laws: tuple[CostLaw, ...]
    predictions: tuple[Prediction, ...]
    tallies: tuple[BackendTally, ...]
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
        tallies=backend_tallies(predicted),
        foreseen=foreseen,
        foreseen_tally=tally(entry.error for entry in foreseen),
        goal=GOAL,
        floors=found,
        layers=tuple(entry for entry in layers if entry.rows),
        published=published_costs(results),
        source=SOURCE,
    )
