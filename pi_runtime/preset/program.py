"""A graph as steps over Z_2^64, with every shift and every ring fixed. All of it is public.

Kinds of steps:

- *linear* (conv, linear, affine): secret weights; V = W * x + b with f_x + f_w fraction bits, then a truncation by
  ``shift``. One share of offline material each.
- *gate* (relu): the kept elements go through one-time-table gates. The only steps that send online messages.
- *public* (add, sub, reshape, concat, pad, slice, avg_pool): the same operation on both shares; inputs of different
  scale are aligned by left shifts (exact), a pool may truncate by ``shift``.

Pooling adds up its window: the mean of 2**t elements at f fraction bits is the same integer read at f + t, so no bit is
lost and nothing is truncated where a linear layer follows. A window of another size is multiplied by the constant
round(2**t / size).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import log2, prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import GraphError
from pi_runtime.graph import Graph, Node, Shape
from pi_runtime.preset.lowering import lower
from pi_runtime.preset.plan import FixedPointPlan, plan_of

LINEAR = frozenset(("conv", "linear", "affine"))
POOL_BITS = 12  # fraction bits of the reciprocal of a window whose size is no power of two


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One operation on both parties' shares.

    index: its number on the wire; node: with parameters on the server's side only.
    frac_bits: of the output. left_shifts: of each input, before the operation.
    shift: the right shift (truncation) behind it; 0 for none.
    weight_frac_bits: of a linear step's weights, the lowest zero_bits of which are zero.
    ring_bits: of a gate. multiplier: public int64 factor of a pool, broadcast over the output; None for 1.
    edge: the constant that an EDGE padding writes, on the server's side.
    """

    index: int
    kind: Literal["linear", "gate", "public"]
    node: Node
    frac_bits: int
    left_shifts: tuple[int, ...]
    shift: int = 0
    weight_frac_bits: int = 0
    zero_bits: int = 0
    ring_bits: int = 0
    multiplier: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    edge: int = 0

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def gate_count(self) -> int:
        """Gates of one image."""
        return self.node.relu_count

    @property
    def size(self) -> int:
        """Elements of the output of one image."""
        return prod(self.node.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """Steps in order, from the input wire to the logits' wire.

    last_use: after which step each wire is needed no more.
    """

    graph: Graph
    plan: FixedPointPlan
    input: str
    input_shape: Shape
    output: str
    steps: tuple[Step, ...]
    frac_bits: Mapping[str, int]

    @property
    def linear_steps(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.kind == "linear")

    @property
    def gate_steps(self) -> tuple[Step, ...]:
        """The steps that exchange messages; a layer that kept no ReLU is none."""
        return tuple(step for step in self.steps if step.kind == "gate")

    @property
    def output_frac_bits(self) -> int:
        return self.frac_bits[self.output]

    @property
    def classes(self) -> int:
        return prod(self.graph.shapes[self.output])

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        uses = {wire: step.index for step in self.steps for wire in step.node.inputs}
        return uses | {self.output: len(self.steps)}

    def shape(self, wire: str) -> Shape:
        """The shape of a wire, without the batch."""
        return self.graph.shapes[wire]


def compile_program(graph: Graph) -> Program:
    """Lowers ``graph`` (public or not) under the plan in its metadata.

    Raises:
        GraphError: a scale cannot be met (a truncation would have to shift left), two layers of one name, or a plan
            that is no plan.
    """
    plan = plan_of(graph)
    lowered = lower(graph)
    frac = {lowered.input: plan.frac_bits}
    needs_truncation = _pools_before_gates(lowered)
    steps: list[Step] = []
    for node in lowered.nodes:
        inputs = [frac[wire] for wire in node.inputs]
        common = max(inputs)
        index = len(steps)
        left = tuple(common - bits for bits in inputs)
        if node.op in LINEAR:
            zero_bits = plan.zero_bits if _suits_winograd(node) else 0
            weight_bits, bits = plan.weight_bits(node.name) + zero_bits, plan.wire_bits(node.name)
            step = Step(
                index=index,
                kind="linear",
                node=node,
                frac_bits=bits,
                left_shifts=left,
                shift=_shift(node, common + weight_bits, bits),
                weight_frac_bits=weight_bits,
                zero_bits=zero_bits,
            )
        elif node.op == "relu":
            ring_bits = plan.gate_bits(node.name)
            kind: Literal["gate", "public"] = "gate" if node.relu_count else "public"
            step = Step(index=index, kind=kind, node=node, frac_bits=common, left_shifts=left, ring_bits=ring_bits)
        elif node.op == "avg_pool":
            step = _pool_step(node, index, common, lowered, plan, node.name in needs_truncation)
        else:
            step = Step(
                index=index, kind="public", node=node, frac_bits=common, left_shifts=left, edge=-(1 << plan.edge_bits)
            )
        frac[node.output] = step.frac_bits
        steps.append(step)
    _check_names(steps)
    return Program(
        graph=lowered,
        plan=plan,
        input=lowered.input,
        input_shape=lowered.input_shape,
        output=lowered.output,
        steps=tuple(steps),
        frac_bits=frac,
    )


def _check_names(steps: list[Step]) -> None:
    """Pads are drawn by the name of a layer, so no two layers may share one."""
    seen: set[str] = set()
    for step in steps:
        if step.kind != "public":
            if step.name in seen:
                raise GraphError(f"two layers are called {step.name!r}; give each node of the ONNX file its own name")
            seen.add(step.name)


def _suits_winograd(node: Node) -> bool:
    if node.op != "conv" or node.param_shapes["weight"][2:] != (3, 3):
        return False
    return node.ints("strides") == (1, 1) and node.ints("dilations") == (1, 1)


def _shift(node: Node, have: int, want: int) -> int:
    if have < want:
        raise GraphError(f"{node.name}: its product has {have} fraction bits, the plan wants {want}; give it fewer")
    return have - want


def _pool_step(node: Node, index: int, bits: int, graph: Graph, plan: FixedPointPlan, truncate: bool) -> Step:
    counts = _window_counts(node, graph.shapes[node.inputs[0]])
    exact = log2(counts.flat[0])
    if (counts == counts.flat[0]).all() and exact.is_integer():
        multiplier, gained = None, int(exact)
    else:
        multiplier, gained = np.rint(2.0**POOL_BITS / counts).astype(np.int64), POOL_BITS
    out = plan.wire_bits(node.name) if truncate else bits + gained
    return Step(
        index=index,
        kind="public",
        node=node,
        frac_bits=out,
        left_shifts=(0,),
        shift=_shift(node, bits + gained, out),
        multiplier=multiplier,
    )


def _window_counts(node: Node, shape: Shape) -> npt.NDArray[np.float64]:
    """How many elements each window of a pool averages over: [H', W']."""
    kernel, strides, pads = node.ints("kernel"), node.ints("strides"), node.ints("pads")
    inside = np.ones(shape[1:])
    if node.int("count_include_pad"):
        inside = np.ones((shape[1] + pads[0] + pads[2], shape[2] + pads[1] + pads[3]))
    else:
        inside = np.pad(inside, ((pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(inside, kernel)[:: strides[0], :: strides[1]]
    counts: npt.NDArray[np.float64] = windows.sum((2, 3))
    return counts


def _pools_before_gates(graph: Graph) -> set[str]:
    """Pools whose result reaches something else than a linear layer: only there their extra fraction bits must go."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for wire in node.inputs:
            readers.setdefault(wire, []).append(node)

    def only_linear(wire: str) -> bool:
        following = readers.get(wire, [])
        return bool(following) and all(
            node.op in LINEAR or (node.op == "reshape" and only_linear(node.output)) for node in following
        )

    return {node.name for node in graph.nodes if node.op == "avg_pool" and not only_linear(node.output)}
