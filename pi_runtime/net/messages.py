"""The messages of the three roles: their kinds, who may say what about itself, and the schema of each control message.

A message is either *control* (a small JSON object with a fixed set of fields) or an *array* (raw bytes, whose exact
length the receiver knows beforehand from the public graph). Nothing is ever unpickled.

Kinds, by the pair of roles that exchanges them; ``[layer]`` marks those that belong to one layer of the graph:

- any pair: HELLO, BYE, ERROR
- client and server, once a model: GET_MODEL, MODEL, GET_GRAPH, GRAPH (array), GET_SEED, WEIGHT_SEED (array)
- client and server, a bundle: PREPARE, PREPARED, CLIENT_SHARE (array) [layer], STORED
- client and server, online: OPEN, OPENED, INPUT (array), SERVER_OPEN (array) [layer], CLIENT_ANSWER (array) [layer],
  LOGITS (array)
- client and dealer: DEAL, BUNDLE_SEED (array), DEALT
- server and dealer, once a model: SETUP, SETUP_NEEDED, WEIGHT_PAD (array) [layer], SETUP_DONE
- server and dealer, a bundle: MATERIAL, LINEAR_SHARE (array) [layer], GATE_SHARE (array) [layer], STORED
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from pi_runtime.backend import ROLES
from pi_runtime.errors import LocalProtocolError, RemoteProtocolError

MAX_CONTROL_BYTES = 4096
"""Longest control payload; the longest legal one is ERROR with a text of escaped characters, under 4 kB."""

MAX_BATCH = 65_536
MAX_GRAPH_BYTES = 256 << 20
MAX_TEXT_CHARS = 300

Scalar = str | int
Body = Mapping[str, Scalar]


class Kind(IntEnum):
    """What a message is; the value is its byte on the wire."""

    HELLO = 1
    BYE = 2
    ERROR = 3

    GET_MODEL = 16
    MODEL = 17
    GET_GRAPH = 18
    GRAPH = 19
    GET_SEED = 20
    WEIGHT_SEED = 21

    PREPARE = 32
    PREPARED = 33
    CLIENT_SHARE = 34
    STORED = 35

    OPEN = 48
    OPENED = 49
    INPUT = 50
    SERVER_OPEN = 51
    CLIENT_ANSWER = 52
    LOGITS = 53

    DEAL = 64
    BUNDLE_SEED = 65
    DEALT = 66

    SETUP = 80
    SETUP_NEEDED = 81
    WEIGHT_PAD = 82
    SETUP_DONE = 83

    MATERIAL = 96
    LINEAR_SHARE = 97
    GATE_SHARE = 98

    __hash__ = int.__hash__  # Enum's own is Python code, and every message is looked up several times


class ErrorCode(StrEnum):
    """Why a peer ended the connection: the ``code`` of an ERROR message."""

    PROTOCOL = "protocol"  # the other side broke the protocol
    BUNDLE = "bundle"  # the bundle is spent, unknown, or another client's
    MODEL = "model"  # another model, graph or batch than the one served
    BUSY = "busy"  # no capacity now; try later
    INTERNAL = "internal"  # the sender failed for a reason of its own


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Identity:
    """Who a party is.

    role: ``client``, ``server`` or ``dealer``. name: 1 to 64 letters, digits, ``_ . -``, beginning with one of the
    first two.
    """

    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of a party."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class _Field:
    rule: str
    accepts: Callable[[object], bool]


def _hex(length: int) -> _Field:
    digits = re.compile(f"[0-9a-f]{{{2 * length}}}")
    return _Field(f"{2 * length} lower-case hex digits", lambda v: isinstance(v, str) and bool(digits.fullmatch(v)))


def _integer(low: int, high: int) -> _Field:
    return _Field(f"an integer from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def _choice(options: tuple[str, ...]) -> _Field:
    return _Field("one of " + ", ".join(options), lambda v: isinstance(v, str) and v in options)


_TEXT = _Field(
    f"at most {MAX_TEXT_CHARS} printable characters",
    lambda v: isinstance(v, str) and len(v) <= MAX_TEXT_CHARS and v.isprintable(),
)
_PARTY_NAME = _Field("a party's name", lambda v: isinstance(v, str) and is_name(v))
_BUNDLE = {"bundle_id": _hex(16)}
_MODEL = {"model_id": _hex(16), "graph_hash": _hex(32)}
_BATCH = {"batch": _integer(1, MAX_BATCH)}

CONTROL: Mapping[Kind, Mapping[str, _Field]] = {
    Kind.HELLO: {"role": _choice(ROLES), "name": _PARTY_NAME, "prg": _TEXT},
    Kind.BYE: {},
    Kind.ERROR: {"code": _choice(tuple(ErrorCode)), "text": _TEXT},
    Kind.GET_MODEL: {},
    Kind.MODEL: {**_MODEL, "graph_bytes": _integer(1, MAX_GRAPH_BYTES)},
    Kind.GET_GRAPH: {},
    Kind.GET_SEED: {},
    Kind.PREPARE: {**_BUNDLE, **_MODEL, **_BATCH},
    Kind.PREPARED: _BUNDLE,
    Kind.STORED: _BUNDLE,
    Kind.OPEN: {**_BUNDLE, **_MODEL, **_BATCH},
    Kind.OPENED: _BUNDLE,
    Kind.DEAL: {**_BUNDLE, **_MODEL, **_BATCH},
    Kind.DEALT: _BUNDLE,
    Kind.SETUP: _MODEL,
    Kind.SETUP_NEEDED: _MODEL,
    Kind.SETUP_DONE: _MODEL,
    Kind.MATERIAL: {**_BUNDLE, **_MODEL, **_BATCH, "client": _PARTY_NAME},
}
"""The fields of each control message: every one is required and no other is allowed."""

LAYERED = frozenset(
    (
        Kind.CLIENT_SHARE,
        Kind.SERVER_OPEN,
        Kind.CLIENT_ANSWER,
        Kind.WEIGHT_PAD,
        Kind.LINEAR_SHARE,
        Kind.GATE_SHARE,
    )
)
"""Kinds that carry the number of a layer."""


def encode_control(kind: Kind, body: Body) -> bytes:
    """The payload of a control message.

    Raises:
        LocalProtocolError: ``body`` does not have exactly the fields of ``kind``.
    """
    if fault := _fault(kind, body):
        raise LocalProtocolError(f"cannot send {kind.name}: {fault}")
    return json.dumps(body, separators=(",", ":"), sort_keys=True).encode("ascii")


def decode_control(kind: Kind, payload: bytes | bytearray | memoryview) -> dict[str, Scalar]:
    """The fields of a control message.

    Raises:
        RemoteProtocolError: too long, no JSON object, a field twice, missing, unknown or out of its range.
    """
    if len(payload) > MAX_CONTROL_BYTES:
        raise RemoteProtocolError(f"the peer's {kind.name} has {len(payload)} bytes; at most {MAX_CONTROL_BYTES}")
    try:
        body = json.loads(bytes(payload).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the peer's {kind.name} is not valid JSON") from error
    if not isinstance(body, dict):
        raise RemoteProtocolError(f"the peer's {kind.name} must be a JSON object, got {type(body).__name__}")
    if fault := _fault(kind, body):
        raise RemoteProtocolError(f"the peer's {kind.name} is malformed: {fault}")
    return body


def _fault(kind: Kind, body: Mapping[str, object]) -> str:
    """What is wrong with ``body``, without repeating a peer's bytes; empty if nothing is."""
    fields = CONTROL[kind]
    if missing := fields.keys() - body.keys():
        return f"it lacks {', '.join(sorted(missing))}"
    if len(body) > len(fields):
        return f"it has {len(body) - len(fields)} unknown field(s); known are {', '.join(sorted(fields)) or 'none'}"
    for name, field in fields.items():
        if not field.accepts(body[name]):
            return f"{name} must be {field.rule}"
    return ""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a field occurs twice")
    return body


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")
