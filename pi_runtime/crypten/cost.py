"""Turns what the processes of the `crypten` backend read off their meters into costs, a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pi_runtime.backend import ROLES, Cost, LayerCost
from pi_runtime.graph import Node

Mark = Mapping[str, Any]
"""A reading of one process's meter: ``sent_bytes``, ``messages``, ``rounds`` and, at a party, ``seconds``."""

_NOTHING: Mark = {"seconds": 0.0, "sent_bytes": 0, "messages": 0, "rounds": 0}


def cost_between(before: Mapping[str, Mark], after: Mapping[str, Mark], *, seconds: float | None = None) -> Cost:
    """The cost of what happened between two readings, by role; a role that is absent was idle.

    Rounds are the server's, which takes part in all of them; seconds too, unless given.
    """

    def spent(role: str, key: str) -> Any:
        return after[role][key] - before[role][key] if role in after else 0

    return Cost(
        seconds=spent("server", "seconds") if seconds is None else seconds,
        sent_bytes={role: spent(role, "sent_bytes") for role in ROLES},
        messages=sum(spent(role, "messages") for role in ROLES),
        rounds=spent("server", "rounds"),
    )


def setup_cost(totals: Mapping[str, Mark], *, seconds: float) -> Cost:
    """Everything since the processes started."""
    return cost_between(dict.fromkeys(totals, _NOTHING), totals, seconds=seconds)


def layer_costs(nodes: Iterable[Node], phase: str, marks: Mapping[str, Sequence[Mark]]) -> tuple[LayerCost, ...]:
    """One cost a step between consecutive marks: the nodes, framed online by ``input`` and ``output``."""
    steps = [(node.name, node.op, node.relu_count) for node in nodes]
    if phase == "online":
        steps = [("input", "input", 0), *steps, ("output", "output", 0)]
    moments = [dict(zip(marks, moment, strict=True)) for moment in zip(*marks.values(), strict=True)]
    return tuple(
        LayerCost(name=name, op=op, relu_count=relu_count, phase=phase, cost=cost_between(before, after))
        for (name, op, relu_count), (before, after) in zip(steps, pairwise(moments), strict=True)
    )
