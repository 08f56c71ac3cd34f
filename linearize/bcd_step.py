"""The search of one step: exchanges at constant count, moves that empty layers, and the removal of a block."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from linearize.bcd_search import Candidate, Kind, Score, SearchResult, block_size, search
from linearize.config import BcdConfig
from linearize.proposals import exchanges, layer_moves, removals, unit_numbers
from linearize.ranks import SharedContext
from linearize.relu_mask import get_relu_mask, set_relu_mask
from linearize.rng import generator
from linearize.scoring import Reference, Scoring
from linearize.sensitivity import relu_scores


@dataclass
class Layers:
    """What the latency objective remembers of layers: ReLUs that count as the whole, and those being emptied."""

    full_counts: list[int]
    closing: list[int]


@dataclass
class Found:
    """What the search of a step decided; the mask is in the network.

    record: JSON values for the log. reference: of the network with the mask. removed: ReLUs fewer than before.
    accepted: something was. finetune: a loss above the tolerance was taken. last_errors: of the last block tried.
    """

    reference: Reference
    removed: int = 0
    accepted: bool = False
    over_tolerance: bool = False
    changed: bool = False
    last_errors: int | None = None
    uniform_tries: int = 0
    uniform_accepted: int = 0
    record: dict[str, Any] = field(default_factory=dict)


class StepSearch:
    """One step's search. All ranks run it together and end with the same mask.

    reference: of the network as it is. reference_errors: what candidates for removal are held against.
    """

    def __init__(
        self,
        model: nn.Module,
        scoring: Scoring,
        settings: BcdConfig,
        context: SharedContext,
        *,
        step: int,
        excess: int,
        reference: Reference,
        reference_errors: int,
        layers: Layers,
    ) -> None:
        self._model, self._scoring, self._settings, self._context = model, scoring, settings, context
        self._step, self._excess = step, excess
        self._reference, self._reference_errors, self._layers = reference, reference_errors, layers
        self._kept = get_relu_mask(model)
        self._images = self._gradient_images = 0
        self._tries: list[tuple[Kind, Score]] = []
        self._searched_accuracy = reference.accuracy

    def run(self) -> Found:
        """Exchange, then empty a layer or else remove a block; leaves the resulting mask in the network."""
        started = time.monotonic()
        found = Found(self._reference)
        before = self._kept
        exchanged = self._exchange()
        block = block_size(self._excess, self._settings.drc, self._settings.drc_fraction)
        moved = self._empty_a_layer(block)
        if moved is not None:
            found.accepted = True
            found.over_tolerance = moved.drop >= self._settings.adt
        elif block > 0:
            result = self._remove(block)
            found.accepted, found.over_tolerance = result.accepted, not result.accepted
            found.last_errors = result.tries[-1][1].errors
            uniform = [score for kind, score in result.tries if kind == "uniform"]
            found.uniform_tries, found.uniform_accepted = len(uniform), sum(score.accepted for score in uniform)
            found.record |= {"acceptance": sum(s.accepted for _, s in result.tries) / len(result.tries)}
        else:
            found.accepted = exchanged > 0
        set_relu_mask(self._model, self._kept)
        found.reference = self._reference
        found.removed = int(before.sum()) - int(self._kept.sum())
        found.changed = not torch.equal(before, self._kept)
        found.record |= {
            "block": found.removed,
            "accepted": found.accepted,
            "exchanged": exchanged,
            "moved": moved is not None,
            "tries": [
                {"kind": kind, "errors": score.errors, "images": score.images, "drop": round(score.drop, 6)}
                for kind, score in self._tries
            ],
            "searched_accuracy": self._searched_accuracy,
            "search_images": self._images,
            "gradient_images": self._gradient_images,
            "search_s": round(time.monotonic() - started, 3),
        }
        return found

    @cached_property
    def _layer_of(self) -> Tensor:
        return unit_numbers(self._model, "layer")

    def _worth(self, purpose: str) -> Tensor:
        """First-order worth under the present mask, the first rank's on all."""
        settings, data = self._settings, self._context.data
        set_relu_mask(self._model, self._kept)
        images = min(settings.gradient_images, len(data.train))
        self._gradient_images += images
        worth = relu_scores(
            self._model,
            data,
            images,
            statistic=settings.gradient_statistic,
            loss="cross_entropy",
            batch_size=min(settings.eval_batch_size, 128),
            rng=generator(self._context.seed, f"bcd_{purpose}", self._step),
        )
        return self._context.ranks.broadcast(worth)

    def _search(self, candidates: Iterator[Candidate], reference_errors: int, *, fallback: bool) -> SearchResult:
        result = search(
            candidates,
            self._scoring.judge(self._reference, reference_errors),
            self._context.ranks,
            fallback=fallback,
            exact_last=self._settings.rt - 1 if fallback and self._settings.drift else None,
        )
        self._tries += result.tries
        self._images += result.images
        self._context.meter.add_forward(result.images - result.own_images)
        return result

    def _take(self, result: SearchResult) -> None:
        assert result.chosen is not None, "a result is taken when it holds a candidate"
        self._kept = result.chosen[0].kept
        self._reference = self._scoring.follow(self._reference, result, self._context.ranks, self._step)
        self._searched_accuracy = self._reference.accuracy

    def _exchange(self) -> int:
        """Exchange ReLUs if training accuracy does not fall; returns how many came back."""
        settings = self._settings
        if settings.give_back == 0:
            return 0
        receiving = torch.ones_like(self._kept)
        if settings.objective == "latency":
            receiving = self._open_locations()
        # Half an image: no more errors than before.
        tolerance = 50 / self._scoring.images
        candidates = exchanges(self._kept, self._worth("exchange"), settings.give_back, receiving, tolerance)
        result = self._search(candidates, self._reference.errors, fallback=False)
        if not result.accepted:
            return 0
        before = self._kept
        self._take(result)
        self._reference_errors = self._reference.errors
        return int((self._kept & ~before).sum())

    def _open_locations(self) -> Tensor:
        """bool [R]: locations in layers that have ReLUs and are not being emptied."""
        counts = torch.bincount(self._layer_of[self._kept], minlength=len(self._layers.full_counts))
        counts[self._layers.closing] = 0
        return (counts > 0)[self._layer_of]

    def _empty_a_layer(self, block: int) -> Score | None:
        """Take `block` ReLUs, and more to be given elsewhere, from one layer, if that costs less than it is worth."""
        settings = self._settings
        if settings.objective != "latency":
            return None
        targets: list[int] = []

        def candidates() -> Iterator[Candidate]:
            moves = layer_moves(
                self._kept,
                self._worth("layers"),
                self._layer_of,
                block,
                settings,
                self._layers.full_counts,
                self._layers.closing,
            )
            for number, (layer, candidate) in enumerate(moves):
                if number == settings.rt:
                    return
                targets.append(layer)
                yield candidate

        result = self._search(candidates(), self._reference.errors, fallback=False)
        if not result.accepted or result.chosen is None:
            return None
        layer = targets[len(result.tries) - 1]
        if layer not in self._layers.closing:
            self._layers.closing.append(layer)
        self._take(result)
        return result.chosen[1]

    def _remove(self, block: int) -> SearchResult:
        settings = self._settings
        worth = None if settings.proposal == "uniform" else self._worth("gradient")
        candidates = removals(
            self._kept,
            block,
            self._excess,
            settings,
            unit_numbers(self._model, settings.shape),
            worth,
            generator(self._context.seed, "bcd", self._step),
        )
        result = self._search(candidates, self._reference_errors, fallback=True)
        assert result.chosen is not None, "rt is at least 1"
        if settings.scoring == "racing":
            # The next step has a sample of its own, on which the network is measured once it is finetuned.
            self._kept = result.chosen[0].kept
            self._searched_accuracy = self._reference.accuracy - result.chosen[1].drop
        else:
            self._take(result)
        return result
