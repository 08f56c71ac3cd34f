"""The search of block coordinate descent (arXiv 2511.11781), apart from networks and training.

A step proposes random blocks of kept ReLUs, scores each by the errors that the network then makes, accepts the first
that costs less than the tolerance, or else the one that costs least. Removed ReLUs never come back.

DRC, delta ReLU count: size of a block. RT, random tries. ADT, accuracy degradation tolerance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """errors: wrong answers found; images: looked at, fewer than all where the score was decided early."""

    errors: int
    images: int


# (kept, stop_at) -> score of a network with that relu mask, bool [relu_total]. Scoring may end as soon as the errors
# reach stop_at (None: never): the search then has no use for the exact number.
Scorer = Callable[[Tensor, int | None], Score]


@dataclass(frozen=True)
class SearchResult:
    """What a step of the search decided.

    kept: bool [relu_total] after removal. errors: of the network with it, exact. accepted: met the tolerance; otherwise
    least bad. tries: the score of every candidate in order. chosen: index into tries.
    """

    kept: Tensor
    errors: int
    accepted: bool
    tries: tuple[Score, ...]
    chosen: int


def propose(kept: Tensor, block: int, rng: torch.Generator) -> Tensor:
    """A copy of kept, bool [relu_total], with a uniformly random `block` of its true entries cleared."""
    active = kept.nonzero().flatten()
    candidate = kept.clone()
    candidate[active[torch.randperm(len(active), generator=rng)[:block]]] = False
    return candidate


def tolerated_errors(reference_errors: int, images: int, adt: float) -> int:
    """The most errors whose drop, 100 * (errors - reference_errors) / images in points, is below adt."""
    errors = reference_errors + int(adt * images / 100) + 1
    while 100 * (errors - reference_errors) / images >= adt:
        errors -= 1
    return errors


def search_step(
    kept: Tensor,
    block: int,
    *,
    rt: int,
    adt: float,
    reference_errors: int,
    images: int,
    scorer: Scorer,
    rng: torch.Generator,
) -> SearchResult:
    """One step: at most rt candidates, each `block` ReLUs fewer than kept, bool [relu_total].

    adt: points of accuracy over `images`. A candidate is scored no further once it can neither be accepted nor beat the
    least bad one so far; the decision is the same as with full scores. Of equal candidates the earliest wins.
    """
    limit = tolerated_errors(reference_errors, images, adt)
    tries: list[Score] = []
    best: tuple[int, int, Tensor] | None = None
    for number in range(rt):
        candidate = propose(kept, block, rng)
        score = scorer(candidate, max(limit + 1, best[0]) if best else None)
        tries.append(score)
        if score.errors <= limit:
            return SearchResult(candidate, score.errors, True, tuple(tries), number)
        if best is None or score.errors < best[0]:
            best = (score.errors, number, candidate)
    assert best is not None, "rt is at least 1"
    return SearchResult(best[2], best[0], False, tuple(tries), best[1])
