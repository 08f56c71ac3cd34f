"""The numbers of a secure network: fraction bits of weights and wires, and the ring of each ReLU gate. All public.

A plan lives in the graph's metadata under ``fixed_point``, so the hash of the public graph covers it and client, server
and dealer cannot disagree on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pi_runtime.errors import GraphError
from pi_runtime.graph import Graph

KEY = "fixed_point"
DEFAULT_FRAC_BITS = 12
DEFAULT_RING_BITS = 24
LOGIT_RING_BITS = 32
WINOGRAD_ZERO_BITS = 2
INPUT_BITS = 31  # of a plan that saw no images: products with 16-bit weights then stay far below 2**63

MAX_FAILURE_RATE = 1e-4
"""Most failed truncations an image that a plan may predict; no role takes a graph whose plan states more."""


@dataclass(frozen=True, kw_only=True)
class FixedPointPlan:
    """Scales are powers of two: a wire with f fraction bits holds round(x * 2**f).

    frac_bits: of the input and of every wire behind a truncation, unless ``wire_frac_bits`` names its node.
    weight_frac_bits: of the weights, unless ``layer_weight_frac_bits`` names the node.
    ring_bits: n of every gate, unless ``gate_ring_bits`` names its node; a gate reads its input mod 2**n as signed.
    zero_bits: the weights of 3x3 convolutions at stride 1 get so many more fraction bits, all zero; with 2 they run as
        Winograd convolutions, twice as fast, and their truncations wrap four times as often; 0 turns that off.
    logit_ring_bits: the logits are read mod 2**this, signed.
    edge_bits: the padding of a MaxPool is the integer -2**this; every activation there must be larger.
    input_bits: the client refuses an image that holds an integer of 2**this or more in size.
    failure_rate: failed truncations an image that the calibration predicts
        (:func:`pi_runtime.preset.failure.failure_rate`); None where the numbers were not chosen on images. It is
        stated, not proven: nothing short of weights and data bounds it, and worst cases taken from the rings alone
        exceed the limit for every deep network.

    Raises:
        GraphError: a number out of its range, or a stated failure rate above ``MAX_FAILURE_RATE``.
    """

    frac_bits: int = DEFAULT_FRAC_BITS
    weight_frac_bits: int = DEFAULT_FRAC_BITS
    ring_bits: int = DEFAULT_RING_BITS
    zero_bits: int = WINOGRAD_ZERO_BITS
    logit_ring_bits: int = LOGIT_RING_BITS
    edge_bits: int = DEFAULT_FRAC_BITS + 8
    input_bits: int = INPUT_BITS
    failure_rate: float | None = None
    wire_frac_bits: Mapping[str, int] = field(default_factory=dict)
    layer_weight_frac_bits: Mapping[str, int] = field(default_factory=dict)
    gate_ring_bits: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = (
            ("frac_bits", 1, 24, (self.frac_bits, *self.wire_frac_bits.values())),
            ("weight_frac_bits", 0, 24, (self.weight_frac_bits, *self.layer_weight_frac_bits.values())),
            ("ring_bits", 4, 32, (self.ring_bits, *self.gate_ring_bits.values())),
            ("zero_bits", 0, 2, (self.zero_bits,)),
            ("logit_ring_bits", 8, 32, (self.logit_ring_bits,)),
            ("edge_bits", 1, 30, (self.edge_bits,)),
            ("input_bits", 1, INPUT_BITS, (self.input_bits,)),
        )
        for name, low, high, values in rules:
            for value in values:
                if type(value) is not int or not low <= value <= high:
                    raise GraphError(f"{KEY}: {name} must be an integer from {low} to {high}, got {value!r}")
        rate = self.failure_rate
        if rate is not None and (type(rate) is not float or not 0 <= rate <= MAX_FAILURE_RATE):
            raise GraphError(
                f"{KEY}: failure_rate must be a number from 0 to {MAX_FAILURE_RATE:g}, got {rate!r}; calibrate the"
                " model again, with fewer fraction bits"
            )

    def wire_bits(self, node: str) -> int:
        """Fraction bits of the output of a node that truncates."""
        return self.wire_frac_bits.get(node, self.frac_bits)

    def weight_bits(self, node: str) -> int:
        """Fraction bits of the weights of a linear node."""
        return self.layer_weight_frac_bits.get(node, self.weight_frac_bits)

    def gate_bits(self, node: str) -> int:
        """Ring of a ReLU layer's gates."""
        return self.gate_ring_bits.get(node, self.ring_bits)

    def to_metadata(self) -> dict[str, Any]:
        """As it stands in the graph's metadata."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}


def plan_of(graph: Graph) -> FixedPointPlan:
    """The plan in the metadata of ``graph``; the defaults where there is none.

    Raises:
        GraphError: the metadata is no plan.
    """
    document = graph.metadata.get(KEY, {})
    known = FixedPointPlan.__dataclass_fields__
    if not isinstance(document, dict) or set(document) - set(known):
        raise GraphError(f"the metadata {KEY} must be an object with some of {', '.join(known)}")
    for name, value in document.items():
        if isinstance(value, dict) != name.startswith(("wire_", "layer_", "gate_")):
            raise GraphError(f"the metadata {KEY}.{name} has the wrong type")
    return FixedPointPlan(**document)


def with_plan(graph: Graph, plan: FixedPointPlan) -> Graph:
    """The same graph under another plan."""
    return Graph(
        input=graph.input,
        input_shape=graph.input_shape,
        output=graph.output,
        nodes=graph.nodes,
        metadata={**graph.metadata, KEY: plan.to_metadata()},
    )
