"""What a stage costs: images sent forward and backward through the network, and seconds; a kill loses none of it.

Counted are the passes through the network that is being linearized, whoever makes them; searching and finetuning apart.
Not counted: measurements that decide nothing (`monitoring`), and the teacher, which sees each augmented training image
once more.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

Activity = Literal["search", "finetune"]

_MONITORING: ContextVar[bool] = ContextVar("monitoring", default=False)


@contextmanager
def monitoring() -> Iterator[None]:
    """Passes inside the block are only for the record and not counted."""
    token = _MONITORING.set(True)
    try:
        yield
    finally:
        _MONITORING.reset(token)


@dataclass
class Cost:
    """Images, not batches. An image is counted as sent backward where its forward pass recorded gradients."""

    forward_images: int = 0
    backward_images: int = 0
    seconds: float = 0.0


class Meter:
    """Counts of one stage. `SavedState` stores them with every state and brings them back."""

    def __init__(self) -> None:
        self._costs: dict[str, Cost] = {"search": Cost(), "finetune": Cost()}
        self._activity: Activity = "search"
        self._since: float | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Meter":
        # A copy of a watched network is still part of the stage.
        return self

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Start from zero and count what passes through a network until the block ends."""
        self._costs = {"search": Cost(), "finetune": Cost()}
        self._since = time.monotonic()
        hook = model.register_forward_pre_hook(self._count)
        try:
            yield
        finally:
            self._tick()
            self._since = None
            hook.remove()

    @contextmanager
    def activity(self, activity: Activity) -> Iterator[None]:
        """What passes inside the block is counted under this name; outside of any block it is the search."""
        self._tick()
        before, self._activity = self._activity, activity
        try:
            yield
        finally:
            self._tick()
            self._activity = before

    def add_forward(self, images: int) -> None:
        """Count images that other ranks sent forward for this stage."""
        self._costs[self._activity].forward_images += images

    def counts(self) -> dict[str, dict[str, float]]:
        """{"search": {...}, "finetune": {...}} of forward_images, backward_images and seconds; JSON values."""
        self._tick()
        return {activity: asdict(cost) for activity, cost in self._costs.items()}

    def at_least(self, counts: Mapping[str, Mapping[str, float]]) -> None:
        """Take over counts that were stored before a kill. Of several states of a stage the latest one counts most."""
        for activity, cost in self._costs.items():
            stored = counts[activity]
            cost.forward_images = max(cost.forward_images, int(stored["forward_images"]))
            cost.backward_images = max(cost.backward_images, int(stored["backward_images"]))
            cost.seconds = max(cost.seconds, float(stored["seconds"]))

    def _count(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if _MONITORING.get():
            return
        cost = self._costs[self._activity]
        images = len(inputs[0])
        cost.forward_images += images
        if torch.is_grad_enabled():
            cost.backward_images += images

    def _tick(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self._costs[self._activity].seconds += now - self._since
            self._since = now
