import itertools

import pytest
import torch
from torch import Tensor

from linearize.bcd_search import Score, SearchResult, propose, search_step, tolerated_errors
from linearize.rng import generator

IMAGES = 1000
TOTAL = 60


def errors_of(kept: Tensor) -> int:
    """A fixed, irregular number of errors for any mask: removed ReLU i costs i % 7 errors."""
    return 20 + int((torch.arange(TOTAL)[~kept] % 7).sum())


def full_scorer(kept: Tensor, stop_at: int | None) -> Score:
    return Score(errors_of(kept), IMAGES)


def impatient_scorer(kept: Tensor, stop_at: int | None) -> Score:
    """Stops as early as it may: an exact score below stop_at, a lower bound from there on."""
    errors = errors_of(kept)
    if stop_at is not None and errors >= stop_at:
        return Score(stop_at, IMAGES // 2)
    return Score(errors, IMAGES)


def plain_reference(kept: Tensor, block: int, rt: int, adt: float, reference_errors: int, seed: int) -> tuple:
    """The paper's loop, written down once more without anything clever."""
    rng = generator(seed, "bcd", 0)
    reference_accuracy = 100 * (IMAGES - reference_errors) / IMAGES
    drops = []
    for _ in range(rt):
        candidate = propose(kept, block, rng)
        drop = reference_accuracy - 100 * (IMAGES - errors_of(candidate)) / IMAGES
        drops.append((drop, candidate))
        if drop < adt - 1e-9:
            return candidate, True
    return min(drops, key=lambda pair: pair[0])[1], False


def step(scorer, seed: int, adt: float, rt: int = 6, block: int = 5, kept: Tensor | None = None) -> SearchResult:
    kept = torch.ones(TOTAL, dtype=torch.bool) if kept is None else kept
    return search_step(
        kept,
        block,
        rt=rt,
        adt=adt,
        reference_errors=errors_of(kept),
        images=IMAGES,
        scorer=scorer,
        rng=generator(seed, "bcd", 0),
    )


@pytest.mark.parametrize("scorer", [full_scorer, impatient_scorer])
def test_accepts_what_the_plain_loop_accepts(scorer) -> None:
    outcomes = set()
    for seed, adt in itertools.product(range(40), (0.3, 0.9, 1.3)):
        kept = torch.ones(TOTAL, dtype=torch.bool)
        result = step(scorer, seed, adt)
        expected, accepted = plain_reference(kept, 5, 6, adt, errors_of(kept), seed)
        assert torch.equal(result.kept, expected)
        assert result.accepted == accepted
        assert result.errors == errors_of(expected)
        assert result.tries[result.chosen].errors == result.errors
        outcomes.add((accepted, result.chosen > 0))
    assert outcomes == {(True, False), (True, True), (False, False), (False, True)}, "all paths were taken"


def test_first_acceptable_wins_over_a_later_better_one() -> None:
    costs = iter([30, 12, 2])
    result = step(lambda kept, stop_at: Score(20 + next(costs), IMAGES), 0, adt=1.5)
    assert (result.accepted, result.chosen, result.errors, len(result.tries)) == (True, 1, 32, 2)


def test_without_an_acceptable_one_the_earliest_least_bad_wins() -> None:
    costs = iter([30, 25, 28, 25])
    result = step(lambda kept, stop_at: Score(20 + next(costs), IMAGES), 0, adt=1.0, rt=4)
    assert (result.accepted, result.chosen, result.errors) == (False, 1, 45)


@pytest.mark.parametrize("images", [7, 128, 1295, 50_000])
@pytest.mark.parametrize("adt", [0.01, 0.3, 0.5, 1.0, 10.0, 100.0])
def test_tolerated_errors_equals_counting_up(images: int, adt: float) -> None:
    limit = max(extra for extra in range(-1, images + 2) if 100 * extra / images < adt)
    assert tolerated_errors(11, images, adt) == 11 + limit


def test_blocks_are_uniform_over_kept_relus() -> None:
    kept = torch.ones(10, dtype=torch.bool)
    kept[[2, 5]] = False
    rng = torch.Generator().manual_seed(0)
    removed = torch.zeros(10)
    for _ in range(1000):
        candidate = propose(kept, 3, rng)
        assert not (candidate & ~kept).any()
        assert int((kept & ~candidate).sum()) == 3
        removed += kept & ~candidate
    # Binomial with p = 3/8: the standard deviation of a share of 1,000 is 0.0153; 5 of them.
    torch.testing.assert_close(removed[kept] / 1000, torch.full((8,), 3 / 8), atol=0.077, rtol=0)
    assert int(removed[~kept].sum()) == 0


def test_a_walk_down_never_gives_a_relu_back() -> None:
    kept = torch.ones(TOTAL, dtype=torch.bool)
    for seed in range(10):
        result = step(impatient_scorer, seed, adt=0.5, kept=kept)
        assert not (result.kept & ~kept).any()
        assert int(kept.sum()) - int(result.kept.sum()) == 5
        kept = result.kept
