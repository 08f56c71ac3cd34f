"""What every backend answers to, and what it reports: logits and their cost, a layer and a phase.

The three phases of a private inference:

- ``setup``: once a model (connecting, sharing or committing to the weights);
- ``offline``: once an inference, before the input is known (correlated randomness);
- ``online``: from the input to the logits.

A figure is counted in exactly one of them. Bytes are counted where they leave a role's socket.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pi_runtime.closing import Closing

PHASES = ("setup", "offline", "online")
ROLES = ("client", "server", "dealer")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one phase took.

    seconds: wall time, as the client sees it (for a layer: as the party that computes it sees it).
    sent_bytes: by role, the bytes that it sent to any other role; a role that does not exist sent 0.
    messages: sends of all roles together.
    rounds: exchanges that wait for one another (one message each way is one round).
    """

    seconds: float = 0.0
    sent_bytes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    messages: int = 0
    rounds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            sent_bytes={role: self.sent_bytes[role] + other.sent_bytes[role] for role in ROLES},
            messages=self.messages + other.messages,
            rounds=self.rounds + other.rounds,
        )

    @property
    def total_bytes(self) -> int:
        """Bytes of all roles together."""
        return sum(self.sent_bytes.values())


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of one node of the graph in one phase.

    name, op: of the node in :class:`pi_runtime.graph.Graph`, or ``input``/``output`` for sharing and revealing.
    relu_count: kept ReLUs of the node; 0 for anything but a ReLU layer.
    """

    name: str
    op: str
    relu_count: int
    phase: str
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of one call of :meth:`Backend.infer` (with the offline phase that it used up).

    phases: the whole cost by phase. ``setup`` is the backend's, the same for each call.
    layers: what could be told apart; empty where a backend runs the graph as one.
    """

    phases: Mapping[str, Cost]
    layers: tuple[LayerCost, ...] = ()


class Backend(Closing):
    """Runs one exported graph; ``close`` ends every process that it started."""

    name: str

    @abstractmethod
    def prepare(self, model: Path) -> None:
        """Loads the ONNX graph ``model`` and does what is done once for it (phase ``setup``).

        Raises:
            GraphError: the graph is damaged or holds an operator outside the set.
            BackendError: the backend cannot run here.
        """

    @abstractmethod
    def offline(self, batch: int, count: int = 1) -> None:
        """Makes what ``count`` calls of ``infer`` with ``batch`` images each will use up (phase ``offline``)."""

    @abstractmethod
    def infer(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], RunCost]:
        """Runs the graph on ``images`` [B, C, H, W], normalised; returns logits [B, classes] and the cost.

        Does the offline phase first, apart from the online clock, where :meth:`offline` left nothing for this batch.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends processes and connections; safe to call twice."""


def sum_costs(costs: Iterable[Cost]) -> Cost:
    """Adds costs; an empty sum is no cost."""
    total = Cost()
    for cost in costs:
        total = total + cost
    return total
