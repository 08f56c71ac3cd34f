"""The finetune of a step on several ranks: on the first one alone, or by DistributedDataParallel on all."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from linearize.config import BcdConfig
from linearize.data import Dataset, batches_per_epoch
from linearize.errors import ConfigError
from linearize.finetune import finetune
from linearize.ranks import Ranks, SharedContext
from linearize.stage import StageContext
from linearize.train import Teacher


class RankParallel(nn.Module):
    """A network whose batches are divided over the ranks; every rank is given, and returns, the whole batch.

    The gradient of a mean over the batch is that of one process; BatchNorm normalises each rank's part by itself, as
    DistributedDataParallel does, so the weights depend on the number of ranks.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks
        self.parallel = DistributedDataParallel(model)

    def forward(self, inputs: Tensor) -> Tensor:
        """float [B, C, H, W] -> logits [B, K], of which only this rank's part carries gradients."""
        world, rank = self._ranks.world, self._ranks.rank
        parts = torch.tensor_split(inputs, world)
        own = self.parallel(parts[rank])
        padded = own.new_zeros(len(parts[0]), *own.shape[1:])
        padded[: len(own)] = own.detach()
        gathered = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(gathered, padded)
        logits = [other[: len(part)] for other, part in zip(gathered, parts, strict=True)]
        # DistributedDataParallel averages over ranks, but each has only its own images' share of the batch's mean.
        logits[rank] = own + (world - 1) * (own - own.detach())
        return torch.cat(logits)


def finetune_step(
    model: nn.Module,
    teacher: Teacher,
    settings: BcdConfig,
    context: StageContext,
    shared: SharedContext,
    step: int,
) -> None:
    """Finetune in place; every rank ends with the first one's weights. All ranks call this together.

    context: the first rank's own; shared: of all. Raises ConfigError if a rank's part of a batch would be too small.
    """
    stage, name, ranks = f"bcd_finetune/{step}", "bcd_finetune", shared.ranks
    if settings.finetune_ranks == "first" or ranks.world == 1:
        if ranks.first:
            finetune(model, teacher, settings.finetune, context, stage=stage, name=name)
    else:
        batch = min(settings.finetune.batch_size, context.data.images_per_epoch)
        if batch < 2 * ranks.world:
            raise ConfigError(
                f"bcd.finetune.batch_size must be at least {2 * ranks.world}, two images for each of {ranks.world} "
                f"ranks, got {batch}; raise it, or set bcd.finetune_ranks to first"
            )
        finetune(RankParallel(model, ranks), teacher, settings.finetune, shared, stage=stage, name=name)
    ranks.share_model(model)
    model.eval()


def finetune_images(settings: BcdConfig, data: Dataset) -> int:
    """Images that a finetune sends forward and backward."""
    sgd = settings.finetune
    return sgd.epochs * batches_per_epoch(data, sgd.batch_size) * min(sgd.batch_size, data.images_per_epoch)
