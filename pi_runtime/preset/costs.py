"""From what the three roles counted to costs, a phase and a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pi_runtime.backend import ROLES, Cost, LayerCost
from pi_runtime.graph import Graph
from pi_runtime.net.traffic import Traffic
from pi_runtime.preset.program import Program, Step

_OFFLINE = ("client_share", "linear_share", "gate_share")
_ONLINE = ("server_open", "client_answer")


@dataclass(frozen=True)
class Reading:
    """What each role had carried at one moment, by role.

    step_seconds: of the last inference at the server. deal_seconds: of the last bundle at the dealer.
    """

    traffic: Mapping[str, Traffic]
    step_seconds: Mapping[str, float]
    deal_seconds: Mapping[str, float] = field(default_factory=dict)

    def since(self, earlier: Reading) -> Mapping[str, Traffic]:
        """What happened between, by role."""
        return {role: self.traffic[role] - earlier.traffic[role] for role in ROLES}


def phase_cost(spent: Mapping[str, Traffic], seconds: float) -> Cost:
    """All of a phase. Rounds are the client's: it takes part in every exchange that something waits for."""
    return _cost(spent, [tag for traffic in spent.values() for tag in traffic.by_tag], seconds)


def offline_layers(
    graph: Graph, program: Program, spent: Mapping[str, Traffic], deal_seconds: Mapping[str, float]
) -> tuple[LayerCost, ...]:
    """What the material of each layer took; seconds as the dealer sees them, from computing to handing to the socket.

    The client does its part of the linear layers meanwhile and the server stores, so that these seconds are no share of
    the phase's. What the dealer does between two layers is in the second.
    """
    return tuple(
        _layer(graph, step, "offline", spent, deal_seconds.get(str(step.index), 0.0))
        for step in program.steps
        if step.kind != "public"
    )


def online_layers(
    graph: Graph, program: Program, spent: Mapping[str, Traffic], step_seconds: Mapping[str, float]
) -> tuple[LayerCost, ...]:
    """Input, each layer as the server sees it (the wait for the client's answer included), and output."""
    ends = [
        LayerCost(name=name, op=name, relu_count=0, phase="online", cost=_cost(spent, [tag], 0.0))
        for name, tag in (("input", "input"), ("output", "logits"))
    ]
    layers = [_layer(graph, step, "online", spent, step_seconds.get(str(step.index), 0.0)) for step in program.steps]
    return (ends[0], *layers, ends[1])


def _layer(graph: Graph, step: Step, phase: str, spent: Mapping[str, Traffic], seconds: float) -> LayerCost:
    kinds = _OFFLINE if phase == "offline" else _ONLINE
    name, op = _origin(graph, step)
    tags = [f"layer{step.index}.{kind}" for kind in kinds]
    return LayerCost(name=name, op=op, relu_count=step.gate_count, phase=phase, cost=_cost(spent, tags, seconds))


def _origin(graph: Graph, step: Step) -> tuple[str, str]:
    """The node of the graph that a step belongs to: itself, or the MaxPool that was taken apart."""
    for node in graph.nodes:
        if step.name == node.name or (node.op == "max_pool" and step.name.startswith(f"{node.name}.")):
            return node.name, node.op
    raise AssertionError(f"{step.name} comes from no node")


def _cost(spent: Mapping[str, Traffic], tags: list[str], seconds: float) -> Cost:
    sent = {
        role: sum(
            counts.payload_sent_bytes + counts.framing_sent_bytes + counts.tls_sent_bytes
            for tag, counts in spent[role].by_tag.items()
            if tag in tags
        )
        for role in ROLES
    }
    chosen = [(role, counts) for role in ROLES for tag, counts in spent[role].by_tag.items() if tag in tags]
    return Cost(
        seconds=seconds,
        sent_bytes=sent,
        messages=sum(counts.messages_sent for _, counts in chosen),
        rounds=sum(counts.rounds for role, counts in chosen if role == "client"),
    )
