"""The search of block coordinate descent (arXiv 2511.11781), apart from networks and training.

A step proposes candidate masks, scores each by the accuracy that the network then has, and takes the first that costs
less than the tolerance, or else the one that costs least.

DRC, delta ReLU count: size of a block. RT, random tries. ADT, accuracy degradation tolerance.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from torch import Tensor

from linearize.ranks import Ranks

Kind = Literal["uniform", "gradient", "exchange", "layer"]


@dataclass(frozen=True)
class Candidate:
    """kept: bool [relu_total], the mask proposed. tolerance: points of accuracy it must cost less than. kind: whose."""

    kept: Tensor
    tolerance: float
    kind: Kind


@dataclass(frozen=True)
class Score:
    """What scoring a candidate found.

    errors: wrong answers among the images looked at. drop: points of accuracy lost against the reference, at least so
    many where scoring ended early. accepted: the drop is below the tolerance. margins: float [images] where all were
    looked at (see `linearize.scoring`).
    """

    errors: int
    images: int
    drop: float
    accepted: bool
    margins: Tensor | None = field(default=None, repr=False, compare=False)


_NOTHING = Score(errors=0, images=0, drop=0.0, accepted=False)

# (candidate, best, last) -> score. Scoring may end early once the candidate can neither be accepted nor cost less than
# `best`, the least bad score so far (None: this one may become it); with `last` its errors must be exact.
Judge = Callable[[Candidate, Score | None, bool], Score]


@dataclass(frozen=True)
class SearchResult:
    """What a search decided.

    chosen: the candidate and its score: the first acceptable or else the least bad one; None without candidates.
    owner: the rank that scored it. tries: candidates' kinds and scores in order, to the accepted one. images: looked at
    on all ranks, also for candidates behind the accepted one. own_images: of these, on this rank.
    """

    chosen: tuple[Candidate, Score] | None
    owner: int
    tries: tuple[tuple[Kind, Score], ...]
    images: int
    own_images: int

    @property
    def accepted(self) -> bool:
        return self.chosen is not None and self.chosen[1].accepted


def tolerated_errors(reference_errors: int, images: int, tolerance: float) -> int:
    """The most errors whose drop, 100 * (errors - reference_errors) / images in points, is below the tolerance."""
    errors = reference_errors + int(tolerance * images / 100) + 1
    while 100 * (errors - reference_errors) / images >= tolerance:
        errors -= 1
    return errors


def block_size(excess: int, drc: int, drc_fraction: float) -> int:
    """ReLUs to remove in the next step, of `excess` above the budget: drc, or a fraction of the excess if that is more.

    With a fraction blocks shrink geometrically, from large ones where most are harmless to small ones at the end. The
    last block is shortened so that the budget is met exactly.
    """
    return min(max(drc, int(drc_fraction * excess)), excess)


def search(
    candidates: Iterable[Candidate],
    judge: Judge,
    ranks: Ranks,
    *,
    fallback: bool,
    exact_last: int | None = None,
) -> SearchResult:
    """Score candidates until one is accepted. Of equal least bad ones the earliest wins.

    Candidates are the same on every rank, and scored by the ranks in turn; the outcome is that of one rank alone, if
    a candidate's score does not depend on `best` where it matters. fallback: a least bad candidate is of use (else each
    may be dropped as soon as it cannot be accepted). exact_last: number of the candidate whose errors must be exact.
    """
    source = enumerate(candidates)
    tries: list[tuple[Kind, Score]] = []
    best: tuple[int, Candidate, Score] | None = None
    images = own_images = 0
    while wave := list(islice(source, ranks.world)):
        own: Score | None = None
        if ranks.rank < len(wave):
            number, candidate = wave[ranks.rank]
            beaten_by = (best[2] if best else None) if fallback else _NOTHING
            own = judge(candidate, beaten_by, number == exact_last)
        scores = _gather(own, ranks)[: len(wave)]
        images += sum(score.images for score in scores)
        own_images += own.images if own is not None else 0
        for owner, ((_, candidate), score) in enumerate(zip(wave, scores, strict=True)):
            tries.append((candidate.kind, replace(score, margins=None)))
            if score.accepted:
                return SearchResult((candidate, score), owner, tuple(tries), images, own_images)
            if best is None or score.drop < best[2].drop:
                best = (owner, candidate, score)
    if best is None:
        return SearchResult(None, 0, (), 0, 0)
    return SearchResult(best[1:], best[0], tuple(tries), images, own_images)


def _gather(own: Score | None, ranks: Ranks) -> list[Score]:
    """The scores of all ranks in order; margins stay where they were found."""
    mine = own or _NOTHING
    rows = ranks.gather((mine.errors, mine.images, mine.drop, mine.accepted))
    scores = [Score(int(errors), int(images), drop, bool(accepted)) for errors, images, drop, accepted in rows]
    scores[ranks.rank] = mine
    return scores
