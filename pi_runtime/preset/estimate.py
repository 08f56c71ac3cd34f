"""What a private inference costs, from the public graph alone, exactly: bytes, messages and rounds.

The protocol fixes the length of every message beforehand, control messages included, so the messages of a session are
written down here one by one (:func:`setup_messages`, :func:`bundle_messages`, :func:`online_messages`) and counted as a
channel counts them. They are those of parties named after their roles; a longer name adds its letters to HELLO and
MATERIAL. Not among them: what TLS adds, the BYE that ends a connection, and what a refusal or a lost connection
repeats. Seconds are :mod:`pi_runtime.preset.rehearse`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from pi_runtime.backend import ROLES
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.net.messages import MAX_BATCH, Kind, Scalar, encode_control
from pi_runtime.net.traffic import Counts, Traffic
from pi_runtime.net.wire import HEADER_BYTES, MAX_PAYLOAD_BYTES, NO_LAYER
from pi_runtime.preset.bundle import BundleLayout, part_bytes
from pi_runtime.preset.linear_ops import weight_shape
from pi_runtime.preset.model import ID_BYTES
from pi_runtime.preset.online import (
    input_bytes,
    logit_bytes,
    opening_sizes,
)
from pi_runtime.preset.program import Program, compile_program
from pi_runtime.primitives.prg import PRG_ID, SEED_BYTES

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


def _greeting(connector: str, acceptor: str) -> Iterator[Message]:
    for role, other in ((connector, acceptor), (acceptor, connector)):
        yield _control(role, other, Kind.HELLO, role=role, name=role, prg=PRG_ID)


def _control(sender: str, receiver: str, kind: Kind, **body: Scalar) -> Message:
    return Message(sender, receiver, kind, len(encode_control(kind, body)))
