"""How candidates are scored: on all training images, on as many as decide, or on a sample by a sequential test.

Where `bcd.score_images` says so, a fixed draw of the training images takes the place of all of them. Images are not
augmented, the network is in eval mode, its weights are frozen. Where all images count they are looked at in the order
of the reference's margins: those it gets wrong first, then the least certain ones, so that a candidate's errors show
early. The order is the same whether scoring may end early or not, and so is the mask accepted.

Margin of an image: the logit of its label minus the largest other one; positive where the answer is right.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linearize.bcd_race import Race
from linearize.bcd_search import Candidate, Judge, Score, SearchResult, tolerated_errors
from linearize.config import BcdConfig
from linearize.data import Dataset
from linearize.ranks import Ranks
from linearize.relu_mask import set_relu_mask
from linearize.rng import generator

# A race looks for the first time after so many images, then doubles up to the batch size: clear cases end at once.
_FIRST_LOOK = 64


@dataclass(frozen=True)
class Reference:
    """A network's answers to the images that candidates are compared on.

    indices: int64 [n], training images in the order of scoring. margins: float32 [n], of these images.
    """

    indices: Tensor
    margins: Tensor

    @property
    def errors(self) -> int:
        """Wrong answers among the n images."""
        return int((~(self.margins > 0)).sum())

    @property
    def accuracy(self) -> float:
        """Percent of the n images."""
        return 100 * (len(self.indices) - self.errors) / len(self.indices)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Margins of float [B, K] for int64 [B]: float32 [B]; positive exactly where argmax gives the label."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    difference = (own - others).float()
    # Ties are decided as argmax does.
    right = logits.argmax(1) == labels
    return torch.where(right, difference.clamp(min=torch.finfo(torch.float32).tiny), difference.clamp(max=0))


def scored_images(data: Dataset, settings: BcdConfig, seed: int) -> Tensor:
    """The training images that stand for all of them in a search: int64 indices in rising order."""
    order = torch.randperm(len(data.train), generator=generator(seed, "scored images"))
    return order[: settings.score_images].sort().values


class Scoring:
    """Scores masks of one network on one dataset; leaves the mask last scored in the network."""

    def __init__(self, model: nn.Module, data: Dataset, settings: BcdConfig, seed: int) -> None:
        self._model, self._data, self._settings, self._seed = model, data, settings, seed
        self._pool = scored_images(data, settings, seed)
        self.images = len(self._pool)
        share = settings.racing_share if settings.scoring == "racing" else 1.0
        self._sample_images = math.ceil(share * self.images)
        self._measured = 0

    def measure(self, step: int) -> Reference:
        """The network as it is, on the images of a step: all of them by margin, or its random sample."""
        if self._settings.scoring == "racing":
            order = torch.randperm(self.images, generator=generator(self._seed, "racing", step))
            indices = self._pool[order[: self._sample_images]]
            return Reference(indices, self._all_margins(indices))
        indices = self._pool
        return _by_margin(indices, self._all_margins(indices))

    def follow(self, reference: Reference, result: SearchResult, ranks: Ranks, step: int) -> Reference:
        """The reference of a step after its network took a result's mask; all ranks call this together."""
        assert result.chosen is not None, "only a candidate that was found is followed"
        candidate, score = result.chosen
        set_relu_mask(self._model, candidate.kept)
        if self._settings.scoring == "racing":
            return self.measure(step)
        own = score.margins if ranks.rank == result.owner else torch.empty_like(reference.margins)
        assert own is not None, "the mask that is taken was scored on all images"
        return _by_margin(reference.indices, ranks.broadcast(own, result.owner))

    def judge(self, reference: Reference, reference_errors: int) -> Judge:
        """The judge of candidates against a reference, whose errors may be given otherwise (one that drifts)."""
        if self._settings.scoring == "racing":
            wrong = ~(reference.margins > 0)
            return lambda candidate, best, last: self._race(candidate, reference.indices, wrong)
        return lambda candidate, best, last: self._score(candidate, reference.indices, reference_errors, best, last)

    def _score(
        self, candidate: Candidate, indices: Tensor, reference_errors: int, best: Score | None, last: bool
    ) -> Score:
        images = len(indices)
        limit = tolerated_errors(reference_errors, images, candidate.tolerance)
        whole = last or best is None or self._settings.scoring == "full"
        stop_at = images + 1 if best is None or whole else max(limit + 1, best.errors)
        parts: list[Tensor] = []
        errors = seen = 0
        for part in self._batches(candidate.kept, indices, self._settings.eval_batch_size):
            parts.append(part)
            errors += int((~(part > 0)).sum())
            seen += len(part)
            if errors >= stop_at:
                break
        drop = 100 * (errors - reference_errors) / images
        return Score(errors, seen, drop, errors <= limit, torch.cat(parts) if seen == images else None)

    def _race(self, candidate: Candidate, indices: Tensor, wrong: Tensor) -> Score:
        race = Race(self.images, candidate.tolerance / 100, self._settings.racing_error)
        errors, verdict = 0, None
        for part in self._batches(candidate.kept, indices, min(_FIRST_LOOK, self._settings.eval_batch_size)):
            answers = ~(part > 0)
            errors += int(answers.sum())
            expected = wrong[race.seen : race.seen + len(part)]
            verdict = race.add(answers.long() - expected.long())
            if verdict is not None:
                break
        # A sample that decides nothing has at least an estimate.
        accepted = race.drop < candidate.tolerance / 100 if verdict is None else verdict
        return Score(errors, race.seen, 100 * race.drop, accepted)

    def take_measured(self) -> int:
        """Images looked at for references since this was last asked."""
        measured, self._measured = self._measured, 0
        return measured

    def _all_margins(self, indices: Tensor) -> Tensor:
        self._measured += len(indices)
        return torch.cat(list(self._batches(None, indices, self._settings.eval_batch_size)))

    @torch.inference_mode()
    def _batches(self, kept: Tensor | None, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Margins of the images, on the CPU, in batches that double from `size` to the batch size."""
        if kept is not None:
            set_relu_mask(self._model, kept)
        self._model.eval()
        split, start = self._data.train, 0
        while start < len(indices):
            part = indices[start : start + size].to(split.labels.device)
            labels = split.labels[part]
            yield margins(self._model(self._data.normalise(split.images[part])), labels).cpu()
            start += size
            size = min(2 * size, self._settings.eval_batch_size)


def _by_margin(indices: Tensor, values: Tensor) -> Reference:
    order = values.argsort(stable=True)
    return Reference(indices[order], values[order])
