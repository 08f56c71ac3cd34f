"""Which masks a step of block coordinate descent proposes; all from a generator, none from a network.

Worth of a ReLU: its first-order score, see `linearize.sensitivity`. Unit: what is removed as a whole, a single ReLU or
a shaped block. Legend: R relu_total, u units that hold kept ReLUs.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from linearize.bcd_search import Candidate
from linearize.config import BcdConfig
from linearize.relu_mask import masked_layers

# Below it a worth counts as nothing: dead ReLUs go first.
_LEAST_WORTH = 1e-30


def unit_numbers(model: nn.Module, shape: str) -> Tensor:
    """The unit of each ReLU location, int64 [R], counted through the network.

    shape: element; channel (first axis of a layer's mask [C, H, W]); row (all channels and columns of one H; the single
    locations of a mask without rows); layer.
    """
    parts, count = [], 0
    for layer in masked_layers(model).values():
        mask = layer.get_buffer("relu_mask")
        axis = {"channel": 0, "row": mask.dim() - 2}.get(shape, 0)
        if shape == "layer":
            numbers = torch.zeros(mask.shape, dtype=torch.int64)
        elif shape == "element" or axis < 0:
            numbers = torch.arange(mask.numel())
        else:
            view = [-1 if dimension == axis else 1 for dimension in range(mask.dim())]
            numbers = torch.arange(mask.shape[axis]).view(view).expand(mask.shape)
        parts.append(numbers.reshape(-1) + count)
        count = int(parts[-1].max()) + 1
    return torch.cat(parts)


def removals(
    kept: Tensor,
    block: int,
    most: int,
    settings: BcdConfig,
    units: Tensor,
    worth: Tensor | None,
    rng: torch.Generator,
) -> Iterator[Candidate]:
    """settings.rt masks, bool [R], with `block` of kept's ReLUs removed; whole units, so up to `most` of them.

    worth: float [R], needed unless proposals are uniform. The first block by worth has the lowest mean worth a ReLU;
    further ones are drawn without replacement, in proportion to worth to the power -1/temperature.
    """
    uniform_only = settings.proposal == "uniform"
    share = {"uniform": 1.0, "gradient": 0.0, "mixed": settings.uniform_share}[settings.proposal]
    lowest_first = True
    for number in range(settings.rt):
        # The uniform ones are spread evenly, and begin with a block by worth.
        if uniform_only or int((number + 1) * share) > int(number * share):
            ranking = _shuffled(kept, units, rng)
            yield Candidate(_remove(kept, ranking, units, block, most, worth), settings.adt, "uniform")
            continue
        assert worth is not None, "proposals by worth need it"
        temperature = 0.0 if lowest_first else settings.gradient_temperature
        ranking = _by_worth(kept, units, worth, temperature, rng)
        lowest_first = False
        yield Candidate(_remove(kept, ranking, units, block, most, worth), settings.adt, "gradient")


def exchanges(kept: Tensor, worth: Tensor, size: int, receiving: Tensor, tolerance: float) -> Iterator[Candidate]:
    """Masks of the same count: the removed ReLUs of highest worth come back for the kept ones of lowest worth.

    worth: float [R]. receiving: bool [R], where ReLUs may come back. At most `size` of them, only pairs whose exchange
    gains to first order; then half as many, and so on down to one.
    """
    back = _extreme(worth, ~kept & receiving, size, highest=True)
    taken = _extreme(worth, kept, size, highest=False)
    pairs = min(len(back), len(taken))
    pairs = int((worth[back[:pairs]] > worth[taken[:pairs]]).sum())
    while pairs > 0:
        changed = kept.clone()
        changed[back[:pairs]], changed[taken[:pairs]] = True, False
        yield Candidate(changed, tolerance, "exchange")
        pairs //= 2


def layer_moves(
    kept: Tensor,
    worth: Tensor,
    layers: Tensor,
    block: int,
    settings: BcdConfig,
    full_counts: Sequence[int],
    closing: Sequence[int],
) -> Iterator[tuple[int, Candidate]]:
    """Masks of `block` fewer ReLUs that take from one layer and give to others; the cheapest layer first.

    A layer loses up to block + drc ReLUs, of lowest worth. What that is above `block` comes back where worth is
    highest, in layers that are neither empty nor being emptied; what it is below is taken from the rest at lowest
    worth. The tolerance is round_worth for a whole layer and in proportion for a part of it, plus adt if the count
    falls. Yields (layer, candidate).

    layers: int64 [R]. full_counts: ReLUs of each layer that count as the whole. closing: layers being emptied.
    """
    counts = torch.bincount(layers[kept], minlength=len(full_counts))
    sums = torch.bincount(layers[kept], weights=worth[kept], minlength=len(full_counts))
    open_layers = [layer for layer in sums.argsort(stable=True).tolist() if counts[layer] > 0]
    for layer in open_layers if len(open_layers) > 1 else []:
        receivers = [other for other in open_layers if other != layer and other not in closing]
        receiving = torch.isin(layers, torch.tensor(receivers, dtype=torch.int64))
        count = int(counts[layer])
        back = min(max(0, min(count, block + settings.drc) - block), int((receiving & ~kept).sum()))
        taken = min(count, block + back)
        if taken == 0:
            continue
        changed = kept.clone()
        changed[_extreme(worth, kept & (layers == layer), taken, highest=False)] = False
        changed[_extreme(worth, kept & (layers != layer), block + back - taken, highest=False)] = False
        changed[_extreme(worth, ~kept & receiving, back, highest=True)] = True
        tolerance = settings.round_worth * taken / max(full_counts[layer], count) + (settings.adt if block else 0)
        yield layer, Candidate(changed, tolerance, "layer")


def _shuffled(kept: Tensor, units: Tensor, rng: torch.Generator) -> Tensor:
    """The units that hold kept ReLUs in random order, int64 [u]."""
    active = torch.bincount(units[kept]).nonzero().flatten()
    return active[torch.randperm(len(active), generator=rng)]


def _by_worth(kept: Tensor, units: Tensor, worth: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
    """The units that hold kept ReLUs, int64 [u], by mean worth; with a temperature drawn (Gumbel-top-k trick)."""
    sizes = torch.bincount(units[kept])
    active = sizes.nonzero().flatten()
    sums = torch.bincount(units[kept], weights=worth[kept].double())
    keys = (sums[active] / sizes[active]).clamp(min=_LEAST_WORTH).log()
    if temperature > 0:
        uniform = torch.rand(len(active), generator=rng, dtype=torch.float64).clamp(min=_LEAST_WORTH)
        keys = keys / temperature + (-uniform.log()).log()
    return active[keys.argsort(stable=True)]


def _remove(kept: Tensor, ranking: Tensor, units: Tensor, block: int, most: int, worth: Tensor | None) -> Tensor:
    """kept, bool [R], without the first units of a ranking that hold `block` ReLUs; at most `most` ReLUs fewer."""
    sizes = torch.bincount(units[kept])[ranking].cumsum(0)
    number = int((sizes < block).sum()) + 1
    gone = torch.zeros(int(units.max()) + 1, dtype=torch.bool)
    gone[ranking[:number]] = True
    changed = kept & ~gone[units]
    spared = int(sizes[number - 1]) - most
    if spared > 0:
        last = kept & (units == ranking[number - 1])
        dearest = worth if worth is not None else torch.arange(len(kept))
        changed[_extreme(dearest, last, spared, highest=True)] = True
    return changed


def _extreme(values: Tensor, among: Tensor, count: int, *, highest: bool) -> Tensor:
    """Positions of the `count` highest or lowest values where `among` is true; of equal ones the first."""
    positions = among.nonzero().flatten()
    return positions[values[positions].argsort(stable=True, descending=highest)[: max(count, 0)]]
