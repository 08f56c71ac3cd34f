"""The sequential test; oracles are all orders of a small population and simulated error rates."""

import itertools
import math

import pytest
import torch

from linearize.bcd_race import Race


@pytest.mark.parametrize("population", [[1, 0, 0, -1, 1, 0], [1, 1, 0, 0, -1, -1], [1, 1, 1, 0, 0, 0]])
def test_capital_is_a_martingale_where_the_drop_is_the_tolerance(population: list[int]) -> None:
    """Over all orders of the images the mean capital stays 1, whatever the moment."""
    orders = sorted(set(itertools.permutations(population)))
    totals: dict[tuple[int, int], float] = dict.fromkeys(itertools.product((1, -1), range(1, len(population))), 0.0)
    for order in orders:
        race = Race(len(population), sum(population) / len(population), 0.05)
        for seen, flip in enumerate(order[:-1], start=1):
            race.add(torch.tensor([flip]))
            for side in (1, -1):
                totals[side, seen] += math.exp(race.log_capital(side))
    for total in totals.values():
        assert total / len(orders) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("parts", [[4, 8, 16, 52], [1] * 80])
def test_looking_in_parts_or_at_once_gives_the_same_capital(parts: list[int]) -> None:
    flips = torch.randint(-1, 2, (80,), generator=torch.Generator().manual_seed(0))
    whole, pieces = Race(100, 0.02, 1e-300), Race(100, 0.02, 1e-300)
    whole.add(flips)
    for part in flips.split(parts):
        pieces.add(part)
    assert pieces.seen == whole.seen == 80
    assert pieces.drop == whole.drop == int(flips.sum()) / 80
    for side in (1, -1):
        assert pieces.log_capital(side) == pytest.approx(whole.log_capital(side), rel=1e-9)


def verdicts(population: torch.Tensor, tolerance: float, error: float, runs: int, batch: int) -> list[tuple]:
    found = []
    for seed in range(runs):
        order = torch.randperm(len(population), generator=torch.Generator().manual_seed(seed))
        race, verdict = Race(len(population), tolerance, error), None
        for part in population[order].split(batch):
            verdict = race.add(part)
            if verdict is not None:
                break
        found.append((verdict, race.seen))
    return found


def made(images: int, lost: int, won: int) -> torch.Tensor:
    population = torch.zeros(images, dtype=torch.int64)
    population[:lost], population[lost : lost + won] = 1, -1
    return population


@pytest.mark.parametrize(("lost", "won"), [(10, 0), (110, 100)])
def test_wrong_early_verdicts_stay_below_the_error(lost: int, won: int) -> None:
    """The drop is one image on either side of the tolerance: where a verdict is hardest, and looked for ten times."""
    error, runs = 0.1, 120
    allowed = error + 3 * math.sqrt(error * (1 - error) / runs)
    population = made(1000, lost, won)
    for tolerance, truth in (((lost - won + 1) / 1000, True), ((lost - won - 1) / 1000, False)):
        results = verdicts(population, tolerance, error, runs, 100)
        assert all(verdict is not None for verdict, _ in results), "all images decide"
        assert sum(verdict is not truth for verdict, _ in results) / runs <= allowed


def test_clear_cases_end_early_and_rightly() -> None:
    bad = verdicts(made(10_000, 1500, 200), 0.003, 0.05, 20, 64)
    assert all(verdict is False for verdict, _ in bad)
    assert sum(seen for _, seen in bad) / 20 < 300
    harmless = verdicts(made(50_000, 0, 0), 0.003, 0.05, 2, 256)
    assert all(verdict is True for verdict, _ in harmless)
    assert max(seen for _, seen in harmless) < 3000


def test_certainty_decides_whatever_the_error() -> None:
    race = Race(10, 0.25, 1e-12)
    assert race.add(torch.tensor([0, 0, 0, 0, 0, 0])) is None
    assert race.add(torch.tensor([-1, 0])) is True
    race = Race(10, 0.25, 1e-12)
    assert race.add(torch.tensor([1, 1, 1, 1, 1, 0])) is None
    assert race.add(torch.tensor([1, 0])) is False
