"""Which masks are proposed; oracles are brute force over units, known answers and binomial counts."""

import pytest
import torch

from linearize.config import BcdConfig
from linearize.networks import build_network
from linearize.proposals import exchanges, layer_moves, removals, unit_numbers
from linearize.relu_mask import MaskedReLU, masked_layers, relu_total

GEN = torch.Generator


def proposed(kept, block, *, units=None, worth=None, most=None, seed=0, **settings):
    units = torch.arange(len(kept)) if units is None else units
    most = block if most is None else most
    config = BcdConfig(adt=0.7, **settings)
    return list(removals(kept, block, most, config, units, worth, GEN().manual_seed(seed)))


def test_uniform_blocks_are_uniform_over_kept_relus() -> None:
    kept = torch.ones(10, dtype=torch.bool)
    kept[[2, 5]] = False
    removed = torch.zeros(10)
    for candidate in proposed(kept, 3, rt=1000):
        assert (candidate.kind, candidate.tolerance) == ("uniform", 0.7)
        assert not (candidate.kept & ~kept).any()
        assert int((kept & ~candidate.kept).sum()) == 3
        removed += kept & ~candidate.kept
    # Binomial with p = 3/8: the standard deviation of a share of 1,000 is 0.0153; 5 of them.
    torch.testing.assert_close(removed[kept] / 1000, torch.full((8,), 3 / 8), atol=0.077, rtol=0)
    assert int(removed[~kept].sum()) == 0


def test_uniform_single_relus_are_the_first_of_a_permutation() -> None:
    """The stream of the first program, so that its runs keep their masks."""
    kept = torch.rand(200, generator=GEN().manual_seed(1)) < 0.5
    active, rng = kept.nonzero().flatten(), GEN().manual_seed(3)
    for candidate in proposed(kept, 20, rt=3, seed=3):
        expected = kept.clone()
        expected[active[torch.randperm(len(active), generator=rng)[:20]]] = False
        assert torch.equal(candidate.kept, expected)


def test_the_first_block_by_worth_is_the_cheapest_and_later_ones_differ() -> None:
    worth = torch.rand(100, generator=GEN().manual_seed(0)).double()
    kept = torch.rand(100, generator=GEN().manual_seed(1)) < 0.8
    first, *others = proposed(kept, 15, worth=worth, rt=6, proposal="gradient")
    gone = kept & ~first.kept
    assert worth[gone].max() < worth[first.kept].min()
    assert int(gone.sum()) == 15
    assert len({tuple(candidate.kept.tolist()) for candidate in (first, *others)}) == 6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_in_proportion_to_worth_to_the_power(temperature: float) -> None:
    worth = torch.tensor([1.0, 2.0, 4.0, 0.5]).double()
    kept = torch.tensor([True, True, True, True])
    drawn = torch.zeros(4)
    candidates = proposed(kept, 1, worth=worth, rt=4001, proposal="gradient", gradient_temperature=temperature)
    for candidate in candidates[1:]:
        drawn += ~candidate.kept
    weights = worth ** (-1 / temperature)
    # Binomial over 4,000 draws: a standard deviation of at most 0.008; 5 of them.
    torch.testing.assert_close(drawn / 4000, (weights / weights.sum()).float(), atol=0.04, rtol=0)


def test_mixed_proposals_have_their_share_of_uniform_blocks() -> None:
    kept, worth = torch.ones(50, dtype=torch.bool), torch.rand(50).double()
    kinds = [c.kind for c in proposed(kept, 5, worth=worth, rt=12, proposal="mixed", uniform_share=0.25)]
    assert kinds == ["gradient", "gradient", "gradient", "uniform"] * 3


@pytest.mark.parametrize("name", ["resnet18", "wrn22"])
def test_units_are_those_of_a_loop_over_layers(name: str) -> None:
    model = build_network(name, 2 if name == "resnet18" else 1, 10, (1, 8, 8))
    expected: dict[str, list[tuple]] = {"element": [], "channel": [], "row": [], "layer": []}
    for layer_name, layer in masked_layers(model).items():
        channels, rows, columns = layer.relu_mask.shape
        for c in range(channels):
            for h in range(rows):
                for w in range(columns):
                    expected["element"].append((layer_name, c, h, w))
                    expected["channel"].append((layer_name, c))
                    expected["row"].append((layer_name, h))
                    expected["layer"].append((layer_name,))
    for shape, keys in expected.items():
        numbers = unit_numbers(model, shape).tolist()
        assert len(numbers) == relu_total(model)
        names = {}
        assert all(names.setdefault(number, key) == key for number, key in zip(numbers, keys, strict=True))
        assert len(names) == len(set(keys)), "as many units as there are"


def test_units_of_a_flat_mask() -> None:
    layer = MaskedReLU((5,))
    assert unit_numbers(layer, "channel").tolist() == unit_numbers(layer, "row").tolist() == [0, 1, 2, 3, 4]
    assert unit_numbers(layer, "layer").tolist() == [0] * 5


@pytest.mark.parametrize("proposal", ["uniform", "gradient"])
def test_shaped_blocks_are_whole_units_but_where_the_budget_cuts_one(proposal: str) -> None:
    units = torch.arange(12).repeat_interleave(5)
    worth = torch.rand(60, generator=GEN().manual_seed(4)).double()
    kept = torch.rand(60, generator=GEN().manual_seed(5)) < 0.7
    for candidate in proposed(kept, 8, units=units, worth=worth, most=40, rt=5, proposal=proposal, shape="channel"):
        gone = kept & ~candidate.kept
        assert int(gone.sum()) >= 8
        for unit in range(12):
            member = units == unit
            assert gone[member].sum() in (0, kept[member].sum())
    for candidate in proposed(kept, 8, units=units, worth=worth, most=8, rt=5, proposal=proposal, shape="channel"):
        gone = kept & ~candidate.kept
        assert int(gone.sum()) == 8
        cut = [u for u in range(12) if 0 < gone[units == u].sum() < kept[units == u].sum()]
        assert len(cut) <= 1
        for unit in cut if proposal == "gradient" else []:
            member = units == unit
            assert worth[gone & member].max() < worth[candidate.kept & member].min(), "the dearest stay"


def test_cheapest_channel_goes_first_whatever_its_size() -> None:
    units = torch.tensor([0, 0, 0, 1, 2, 2])
    worth = torch.tensor([0.1, 0.1, 0.1, 0.25, 0.5, 0.6]).double()
    (first,) = proposed(torch.ones(6, dtype=torch.bool), 1, units=units, worth=worth, most=6, rt=1, proposal="gradient")
    assert first.kept.tolist() == [False, False, False, True, True, True]


def test_exchanges_pair_the_best_removed_with_the_worst_kept_and_halve() -> None:
    worth = torch.tensor([5.0, 1.0, 3.0, 4.0, 0.5, 2.0]).double()
    kept = torch.tensor([False, True, True, False, True, False])
    # Removed 0 (5), 3 (4), 5 (2); kept 4 (.5), 1 (1), 2 (3): the third pair, 2 for 3, gains nothing.
    masks = [c.kept.tolist() for c in exchanges(kept, worth, 3, torch.ones(6, dtype=torch.bool), 0.1)]
    assert masks == [[True, False, True, True, False, False], [True, True, True, False, False, False]]
    only = torch.tensor([False, False, False, True, False, False])
    assert [c.kept.tolist() for c in exchanges(kept, worth, 3, only, 0.1)] == [[False, True, True, True, False, False]]
    assert list(exchanges(torch.ones(6, dtype=torch.bool), worth, 3, ~kept, 0.1)) == []


def test_layer_moves_take_from_the_cheapest_layer_and_keep_the_count() -> None:
    layers = torch.arange(4).repeat_interleave(10)
    worth = torch.rand(40, generator=GEN().manual_seed(6)).double() + layers.double()
    kept = torch.zeros(40, dtype=torch.bool)
    kept[:4], kept[10:16], kept[20:27] = True, True, True  # 4, 6, 7 and none
    settings = BcdConfig(drc=3, adt=0.3, round_worth=2.0)
    for block in (0, 2, 5):
        moves = list(layer_moves(kept, worth, layers, block, settings, [4, 6, 14, 9], closing=[1]))
        assert [layer for layer, _ in moves] == [0, 1, 2]
        for layer, candidate in moves:
            before, after = (torch.bincount(layers[mask], minlength=4) for mask in (kept, candidate.kept))
            taken = min(int(before[layer]), block + 3)
            assert int(candidate.kept.sum()) == int(kept.sum()) - block
            assert int(before[layer] - after[layer]) == taken
            assert after[3] == 0, "an empty layer stays empty"
            assert layer == 1 or after[1] <= before[1], "a layer that is being emptied gets nothing"
            whole = [4, 6, 14, 9][layer]
            assert candidate.tolerance == pytest.approx(2.0 * taken / whole + (0.3 if block else 0))


def test_the_last_layer_is_not_emptied() -> None:
    layers, kept = torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, False])
    assert list(layer_moves(kept, torch.ones(4).double(), layers, 1, BcdConfig(), [2, 0], [])) == []
