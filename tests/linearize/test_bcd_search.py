"""The search logic on made-up scores; the oracle is the paper's loop written down once more."""

import itertools
import threading

import pytest
import torch
from torch import Tensor

from linearize.bcd_search import Candidate, Score, SearchResult, block_size, search, tolerated_errors
from linearize.config import BcdConfig
from linearize.proposals import removals
from linearize.ranks import Ranks
from linearize.rng import generator

IMAGES = 1000
TOTAL = 60


def errors_of(kept: Tensor) -> int:
    """A fixed, irregular number of errors for any mask: removed ReLU i costs i % 7 errors."""
    return 20 + int((torch.arange(TOTAL)[~kept] % 7).sum())


def candidates(seed: int, adt: float, rt: int) -> list[Candidate]:
    kept = torch.ones(TOTAL, dtype=torch.bool)
    settings = BcdConfig(rt=rt, adt=adt)
    return list(removals(kept, 5, 5, settings, torch.arange(TOTAL), None, generator(seed, "bcd", 0)))


def full_judge(candidate: Candidate, best: Score | None, last: bool) -> Score:
    errors = errors_of(candidate.kept)
    return Score(errors, IMAGES, (errors - 20) / 10, errors <= tolerated_errors(20, IMAGES, candidate.tolerance))


def impatient_judge(candidate: Candidate, best: Score | None, last: bool) -> Score:
    """Stops as early as it may: exact unless the candidate is lost, then a lower bound from there on."""
    score = full_judge(candidate, best, last)
    if best is None or last or score.accepted or score.drop < best.drop:
        return score
    lost_at = max(best.drop, 100 * (tolerated_errors(20, IMAGES, candidate.tolerance) + 1 - 20) / IMAGES)
    return Score(20 + round(10 * lost_at), IMAGES // 2, lost_at, False)


def plain_reference(seed: int, adt: float, rt: int) -> tuple[Tensor, bool]:
    """The paper's loop."""
    drops = []
    for candidate in candidates(seed, adt, rt):
        drop = 100 * (errors_of(candidate.kept) - 20) / IMAGES
        drops.append((drop, candidate.kept))
        if drop < adt - 1e-9:
            return candidate.kept, True
    return min(drops, key=lambda pair: pair[0])[1], False


@pytest.mark.parametrize("judge", [full_judge, impatient_judge])
def test_accepts_what_the_plain_loop_accepts(judge) -> None:
    outcomes = set()
    for seed, adt in itertools.product(range(40), (0.3, 0.9, 1.3)):
        result = search(candidates(seed, adt, 6), judge, Ranks(), fallback=True)
        expected, accepted = plain_reference(seed, adt, 6)
        assert result.chosen is not None
        assert torch.equal(result.chosen[0].kept, expected)
        assert result.accepted == accepted
        assert result.chosen[1].errors == errors_of(expected)
        outcomes.add((accepted, len(result.tries) > 1))
    assert outcomes == {(True, False), (True, True), (False, True)}, "all paths were taken"


class Crew:
    """Ranks that are threads: a gather waits for all of them."""

    def __init__(self, world: int) -> None:
        self.world, self.rows = world, [[0.0]] * world
        self.barrier = threading.Barrier(world, timeout=20)

    def member(self, rank: int) -> Ranks:
        crew = self

        class Member(Ranks):
            def gather(self, row):
                crew.rows[rank] = [float(value) for value in row]
                crew.barrier.wait()
                rows = list(crew.rows)
                crew.barrier.wait()
                return rows

        return Member(rank, self.world)


@pytest.mark.parametrize("world", [2, 3, 5, 9])
def test_any_number_of_ranks_finds_what_one_rank_finds(world: int) -> None:
    for seed, adt in itertools.product(range(8), (0.3, 0.9, 1.3)):
        alone = search(candidates(seed, adt, 7), impatient_judge, Ranks(), fallback=True)
        crew = Crew(world)
        results: list[SearchResult | None] = [None] * world

        def work(rank: int, crew=crew, results=results, seed=seed, adt=adt) -> None:
            results[rank] = search(candidates(seed, adt, 7), impatient_judge, crew.member(rank), fallback=True)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            assert result is not None
            assert torch.equal(result.chosen[0].kept, alone.chosen[0].kept)
            assert result.accepted == alone.accepted
            assert result.chosen[1].errors == alone.chosen[1].errors
            assert len(result.tries) == len(alone.tries)


def made_up(costs: list[int], tolerance: float, **kwargs) -> SearchResult:
    kept = torch.ones(TOTAL, dtype=torch.bool)
    source = iter(costs)

    def judge(candidate: Candidate, best: Score | None, last: bool) -> Score:
        cost = next(source)
        return Score(20 + cost, IMAGES, cost / 10, cost / 10 < tolerance)

    return search([Candidate(kept, tolerance, "uniform")] * len(costs), judge, Ranks(), **kwargs)


def test_first_acceptable_wins_over_a_later_better_one() -> None:
    result = made_up([30, 12, 2], 1.5, fallback=True)
    assert (result.accepted, result.chosen[1].errors, len(result.tries)) == (True, 32, 2)


def test_without_an_acceptable_one_the_earliest_least_bad_wins() -> None:
    result = made_up([30, 25, 28, 25], 1.0, fallback=True)
    assert (result.accepted, result.chosen[1].errors, len(result.tries)) == (False, 45, 4)


def test_without_candidates_nothing_is_chosen() -> None:
    result = made_up([], 1.0, fallback=False)
    assert (result.chosen, result.accepted, result.images) == (None, False, 0)


def test_only_the_named_candidate_is_asked_for_exact_errors() -> None:
    asked = []

    def judge(candidate: Candidate, best: Score | None, last: bool) -> Score:
        asked.append(last)
        return Score(50, IMAGES, 3.0, False)

    search(candidates(0, 0.3, 4), judge, Ranks(), fallback=True, exact_last=3)
    assert asked == [False, False, False, True]


@pytest.mark.parametrize("images", [7, 128, 1295, 50_000])
@pytest.mark.parametrize("adt", [0.01, 0.3, 0.5, 1.0, 10.0, 100.0])
def test_tolerated_errors_equals_counting_up(images: int, adt: float) -> None:
    limit = max(extra for extra in range(-1, images + 2) if 100 * extra / images < adt)
    assert tolerated_errors(11, images, adt) == 11 + limit


def test_half_an_image_of_tolerance_allows_no_further_error() -> None:
    for images in (7, 128, 1295, 50_000):
        assert tolerated_errors(11, images, 50 / images) == 11


def test_blocks_are_constant_or_a_fraction_and_meet_the_budget() -> None:
    assert [block_size(excess, 100, 0.0) for excess in (1000, 101, 100, 99, 1)] == [100, 100, 100, 99, 1]
    excess, blocks = 10_000, []
    while excess:
        blocks.append(block_size(excess, 100, 0.2))
        excess -= blocks[-1]
    assert blocks[:3] == [2000, 1600, 1280]
    assert blocks == sorted(blocks, reverse=True)
    assert sum(blocks) == 10_000
