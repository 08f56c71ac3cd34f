"""What a private inference costs, from the public graph alone: bytes, messages and rounds exactly, seconds as a model.

Bytes. The protocol fixes the length of every message beforehand, control messages included, so the messages of a
session are written down here one by one (:func:`setup_messages`, :func:`bundle_messages`, :func:`online_messages`) and
counted as a channel counts them. They are those of parties named after their roles; a longer name adds its letters to
HELLO and MATERIAL. Not among them: what TLS adds, the BYE that ends a connection, and what a refusal or a lost
connection repeats.

Seconds. :func:`rehearse` runs the online phase of both parties in this process, with random weights of the graph's
shapes and random material; no instruction of it depends on the values, so it takes as long as a real one. The modelled
latency is that, plus a round-trip time for each round, plus all online bytes at the link's bandwidth: the parties take
turns, so nothing of it overlaps. Not modelled: the operating system's time for each message (some 50 us a round on
loopback), TLS, other load, and the seconds of the offline phase.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from pi_runtime.backend import ROLES
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.net.messages import MAX_BATCH, Kind, Scalar, encode_control
from pi_runtime.net.shaping import NetworkProfile
from pi_runtime.net.traffic import Counts, Traffic
from pi_runtime.net.wire import HEADER_BYTES, MAX_PAYLOAD_BYTES, NO_LAYER
from pi_runtime.preset.bundle import BundleLayout, layout_of, part_bytes
from pi_runtime.preset.linear_ops import Weight, multiply, pack, quantise, weight_shape
from pi_runtime.preset.model import ID_BYTES
from pi_runtime.preset.online import (
    ClientInference,
    ServerMaterial,
    input_bytes,
    logit_bytes,
    material_from,
    opening_sizes,
    run_server,
)
from pi_runtime.preset.program import Program, Step, compile_program
from pi_runtime.preset.shares import BundlePads
from pi_runtime.preset.warmup import warm_up
from pi_runtime.primitives.prg import PRG_ID, SEED_BYTES, Seed
from pi_runtime.primitives.relu_gate import SERVER, GateMaterial
from pi_runtime.primitives.ring import I64, low_bits

MAX_REHEARSED_BYTES = 1 << 30
"""Most material of a bundle that a rehearsal makes; the client's half comes on top of it."""

_MEASURE_S = 1.5
_BUNDLE_ID = "0" * 2 * ID_BYTES
_MODEL: dict[str, Scalar] = {"model_id": "0" * 2 * ID_BYTES, "graph_hash": "0" * 64}
"""Ids have one length, so any stands for all."""


@dataclass(frozen=True)
class Message:
    """One message between two roles, of ``payload_bytes``; ``layer`` is the index of a step, or NO_LAYER."""

    sender: str
    receiver: str
    kind: Kind
    payload_bytes: int
    layer: int = NO_LAYER

    @property
    def framing_bytes(self) -> int:
        """16 a frame; an empty message is one frame."""
        return HEADER_BYTES * max(-(-self.payload_bytes // MAX_PAYLOAD_BYTES), 1)

    @property
    def tag(self) -> str:
        """As :class:`pi_runtime.net.channel.Channel` counts it."""
        name = self.kind.name.lower()
        return name if self.layer == NO_LAYER else f"layer{self.layer}.{name}"


def setup_messages(graph: Graph, program: Program) -> Iterator[Message]:
    """Once a model: the server gives the dealer A, the client learns the graph and D's seed and meets the dealer."""
    yield from _greeting("server", "dealer")
    yield _control("server", "dealer", Kind.SETUP, **_MODEL)
    yield _control("dealer", "server", Kind.SETUP_NEEDED, **_MODEL)
    for step in program.linear_steps:
        yield Message("server", "dealer", Kind.WEIGHT_PAD, 8 * prod(weight_shape(step)), step.index)
    yield _control("dealer", "server", Kind.SETUP_DONE, **_MODEL)
    graph_bytes = len(graph.public_json().encode())
    yield from _greeting("client", "server")
    yield _control("client", "server", Kind.GET_MODEL)
    yield _control("server", "client", Kind.MODEL, graph_bytes=graph_bytes, **_MODEL)
    yield _control("client", "server", Kind.GET_GRAPH)
    yield Message("server", "client", Kind.GRAPH, graph_bytes)
    yield _control("client", "server", Kind.GET_SEED)
    yield Message("server", "client", Kind.WEIGHT_SEED, SEED_BYTES)
    yield from _greeting("client", "dealer")


def bundle_messages(program: Program, batch: int) -> Iterator[Message]:
    """Offline, for one inference of ``batch`` images: the bundle is made, stored and opened."""
    asked: dict[str, Scalar] = {"bundle_id": _BUNDLE_ID, "batch": batch, **_MODEL}
    yield _control("client", "server", Kind.PREPARE, **asked)
    yield _control("server", "client", Kind.PREPARED, bundle_id=_BUNDLE_ID)
    yield _control("client", "dealer", Kind.DEAL, **asked)
    yield Message("client", "dealer", Kind.BUNDLE_SEED, SEED_BYTES)
    yield _control("dealer", "server", Kind.MATERIAL, client="client", **asked)
    for step in program.steps:
        if step.kind == "linear":
            yield Message("client", "server", Kind.CLIENT_SHARE, part_bytes(step, batch), step.index)
            yield Message("dealer", "server", Kind.LINEAR_SHARE, part_bytes(step, batch), step.index)
        elif step.kind == "gate":
            yield Message("dealer", "server", Kind.GATE_SHARE, part_bytes(step, batch), step.index)
    yield _control("server", "dealer", Kind.STORED, bundle_id=_BUNDLE_ID)
    yield _control("dealer", "client", Kind.DEALT, bundle_id=_BUNDLE_ID)
    yield _control("server", "client", Kind.STORED, bundle_id=_BUNDLE_ID)
    yield _control("client", "server", Kind.OPEN, **asked)
    yield _control("server", "client", Kind.OPENED, bundle_id=_BUNDLE_ID)


def online_messages(program: Program, batch: int) -> Iterator[Message]:
    """From the masked input of ``batch`` images to their logits."""
    yield Message("client", "server", Kind.INPUT, input_bytes(program, batch))
    for step in program.gate_steps:
        sizes = opening_sizes(step, batch)
        yield Message("server", "client", Kind.SERVER_OPEN, sizes.opening, step.index)
        yield Message("client", "server", Kind.CLIENT_ANSWER, sizes.answer, step.index)
    yield Message("server", "client", Kind.LOGITS, logit_bytes(program, batch))


def count_messages(messages: Iterable[Message]) -> dict[str, Traffic]:
    """The traffic of each role, by tag, as its channels count it from the beginning of ``messages`` on."""
    counts: dict[str, defaultdict[str, Counts]] = {role: defaultdict(Counts) for role in ROLES}
    spoke_last: set[tuple[str, str]] = set()  # who has sent, and to whom, since it last received from there
    for message in messages:
        sent, received = counts[message.sender][message.tag], counts[message.receiver][message.tag]
        sent.payload_sent_bytes += message.payload_bytes
        sent.framing_sent_bytes += message.framing_bytes
        sent.messages_sent += 1
        spoke_last.add((message.sender, message.receiver))
        received.payload_received_bytes += message.payload_bytes
        received.framing_received_bytes += message.framing_bytes
        received.messages_received += 1
        received.rounds += (message.receiver, message.sender) in spoke_last
        spoke_last.discard((message.receiver, message.sender))
    return {role: Traffic(dict(by_tag)) for role, by_tag in counts.items()}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Bytes that each role sends, by role, and the messages and rounds that they go in; TLS apart.

    rounds: how often the client, having sent, waits for an answer.
    """

    payload_bytes: Mapping[str, int]
    framing_bytes: Mapping[str, int]
    messages: int
    rounds: int

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Payload and framing."""
        return {role: self.payload_bytes[role] + self.framing_bytes[role] for role in ROLES}

    @property
    def total_bytes(self) -> int:
        """Of all roles."""
        return sum(self.sent_bytes.values())


def volume(spent: Mapping[str, Traffic], *, layer: int | None = None) -> Volume:
    """What the roles counted in all, or under the messages of one layer alone."""
    prefix = "" if layer is None else f"layer{layer}."
    sums = {
        role: sum((counts for tag, counts in traffic.by_tag.items() if tag.startswith(prefix)), Counts())
        for role, traffic in spent.items()
    }
    return Volume(
        payload_bytes={role: total.payload_sent_bytes for role, total in sums.items()},
        framing_bytes={role: total.framing_sent_bytes for role, total in sums.items()},
        messages=sum(total.messages_sent for total in sums.values()),
        rounds=sums["client"].rounds,
    )


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Seconds of one online phase on this machine, without any network; ``runs`` were made, this is the median one.

    server_linear_s, server_gate_s, server_public_s: the server's steps by kind. client_s: all that the client does.
    """

    server_linear_s: float
    server_gate_s: float
    server_public_s: float
    client_s: float
    runs: int

    @property
    def total_s(self) -> float:
        return self.server_linear_s + self.server_gate_s + self.server_public_s + self.client_s


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Modelled seconds from input to logits: the sum of its three terms."""

    compute_s: float
    round_trip_s: float
    transfer_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.round_trip_s + self.transfer_s


def latency(online: Volume, compute: Compute, profile: NetworkProfile) -> Latency:
    """The modelled online latency over a link of ``profile``."""
    return Latency(
        compute_s=compute.total_s,
        round_trip_s=online.rounds * profile.rtt_ms / 1e3,
        transfer_s=online.total_bytes / profile.bytes_per_s,
    )


@dataclass(frozen=True, kw_only=True)
class LayerEstimate:
    """What one step takes; ``name`` and ``op`` are the node's, of the parts of a MaxPool their own."""

    name: str
    op: str
    relu_count: int
    online: Volume
    offline: Volume


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Exact volumes by phase and by layer, and the exact sizes of what is stored.

    opening_bytes, answer_bytes: of all gate layers together, framing apart, as are input_bytes and logit_bytes.
    server_bundle_bytes, client_bundle_bytes: of a bundle's file at each of them.
    """

    batch: int
    setup: Volume
    offline: Volume
    online: Volume
    layers: tuple[LayerEstimate, ...]
    input_bytes: int
    opening_bytes: int
    answer_bytes: int
    logit_bytes: int
    server_bundle_bytes: int
    client_bundle_bytes: int


def estimate(graph: Graph, batch: int) -> Estimate:
    """The exact part: nothing is run and no parameter is looked at.

    Raises:
        GraphError: the graph is outside what the protocol takes.
        ConfigError: ``batch`` out of range.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch must be from 1 to {MAX_BATCH:,}, got {batch}")
    program = compile_program(graph)
    messages = list(online_messages(program, batch))
    offline, online = count_messages(bundle_messages(program, batch)), count_messages(messages)

    def payload(kind: Kind) -> int:
        return sum(message.payload_bytes for message in messages if message.kind is kind)

    return Estimate(
        batch=batch,
        setup=volume(count_messages(setup_messages(graph, program))),
        offline=volume(offline),
        online=volume(online),
        layers=tuple(
            LayerEstimate(
                name=step.name,
                op=step.node.op,
                relu_count=step.gate_count,
                online=volume(online, layer=step.index),
                offline=volume(offline, layer=step.index),
            )
            for step in program.steps
        ),
        input_bytes=payload(Kind.INPUT),
        opening_bytes=payload(Kind.SERVER_OPEN),
        answer_bytes=payload(Kind.CLIENT_ANSWER),
        logit_bytes=payload(Kind.LOGITS),
        server_bundle_bytes=BundleLayout(program, batch).total_bytes,
        client_bundle_bytes=SEED_BYTES,
    )


def rehearse(graph: Graph, batch: int, *, threads: int = 1, measure_s: float = _MEASURE_S) -> Compute:
    """Measures the online phase of ``batch`` images on this machine, for about ``measure_s`` seconds.

    threads: CPU threads of the server's linear layers.

    Raises:
        GraphError: the graph is outside what the protocol takes.
        ConfigError: the material would not fit a rehearsal.
    """
    program = compile_program(_with_random_weights(graph))
    size = BundleLayout(program, batch).total_bytes
    if size > MAX_REHEARSED_BYTES:
        raise ConfigError(
            f"a measurement with batch {batch} needs {size:,} bytes of material, at most {MAX_REHEARSED_BYTES:,}; "
            "use a smaller batch, or --no-timing for the bytes alone"
        )
    packed: dict[str, Weight] = {
        step.name: pack(step, weight)
        for step, (weight, _) in zip(program.linear_steps, quantise(program).values(), strict=True)
    }

    def product(step: Step, share: I64) -> I64:
        return multiply(step, packed[step.name], share, threads)

    warm_up(program, product)
    draw_material = _random_material(program, batch)
    runs: list[Compute] = []
    until = time.perf_counter() + measure_s
    while len(runs) < 2 or time.perf_counter() < until:
        runs.append(_rehearse_once(program, product, draw_material(), batch))
    runs.sort(key=lambda run: run.total_s)
    return replace(runs[len(runs) // 2], runs=len(runs))


def _rehearse_once(
    program: Program, product: Callable[[Step, I64], I64], material: ServerMaterial, batch: int
) -> Compute:
    client = ClientInference(program, BundlePads(Seed.fresh(), bytes(ID_BYTES), bytes(32), batch))
    images = np.zeros((batch, *program.input_shape), np.float32)
    seconds = {"linear": 0.0, "gate": 0.0, "public": 0.0}
    last = client_s = away_s = 0.0

    def exchange(step: Step, opening: bytes) -> bytes:
        nonlocal away_s
        asked = time.perf_counter()
        answer = client.answer(step, opening)
        away_s = time.perf_counter() - asked
        return answer

    def watch(step: Step) -> None:
        nonlocal last, client_s, away_s
        now = time.perf_counter()
        seconds[step.kind] += now - last - away_s
        client_s += away_s
        last, away_s = now, 0.0

    started = time.perf_counter()
    masked = np.frombuffer(client.mask_input(images), "<i8").reshape(images.shape)
    last = time.perf_counter()
    client_s = last - started
    payload = run_server(program, product, material, masked, exchange, watch)
    received = time.perf_counter()
    client.logits(payload)
    client_s += time.perf_counter() - received
    return Compute(
        server_linear_s=seconds["linear"],
        server_gate_s=seconds["gate"],
        server_public_s=seconds["public"] + received - last,
        client_s=client_s,
        runs=1,
    )


def _with_random_weights(graph: Graph) -> Graph:
    """Weights as of a fresh network, so that they have the digits of a trained one's; biases of zero."""
    rng = np.random.default_rng(0)
    nodes = []
    for node in graph.nodes:
        params: dict[str, npt.NDArray[np.float32]] = {}
        for name, shape in node.param_shapes.items():
            scale = (2 / max(prod(shape[1:]), 1)) ** 0.5 if name == "weight" else 0.0
            params[name] = rng.normal(0.0, scale, shape).astype(np.float32)
        nodes.append(replace(node, params=params))
    return replace(graph, nodes=tuple(nodes))


def _random_material(program: Program, batch: int) -> Callable[[], ServerMaterial]:
    """Makes material that nobody dealt, over the same arrays each time: for clocks alone."""
    rng = np.random.default_rng(0)

    def uniform(*shape: int) -> npt.NDArray[np.uint64]:
        return rng.integers(0, 1 << 64, shape, np.uint64)

    shares = {step.index: uniform(batch, *step.node.shape).view(np.int64) for step in program.linear_steps}
    gates = {}
    for step in program.gate_steps:
        layout, count = layout_of(step), batch * step.gate_count
        gates[step] = (
            uniform(count, layout.word_count),
            rng.integers(0, 256, (count, layout.table_bytes), np.uint8),
            low_bits(uniform(count), layout.ring_bits),
        )

    def draw() -> ServerMaterial:
        return material_from(
            shares, {step.index: GateMaterial(layout_of(step), SERVER, *arrays) for step, arrays in gates.items()}
        )

    return draw


def _greeting(connector: str, acceptor: str) -> Iterator[Message]:
    for role, other in ((connector, acceptor), (acceptor, connector)):
        yield _control(role, other, Kind.HELLO, role=role, name=role, prg=PRG_ID)


def _control(sender: str, receiver: str, kind: Kind, **body: Scalar) -> Message:
    return Message(sender, receiver, kind, len(encode_control(kind, body)))
