"""Frames: bytes to typed frames and back, without any socket.

Layout, little-endian, 16 bytes before the payload::

    offset  bytes  field
    0       2      magic, b"pI"
    2       1      protocol version, 1
    3       1      kind (messages.Kind)
    4       4      layer, or NO_LAYER where the kind belongs to no layer
    8       4      sequence number: counts this direction's frames from 0
    12      4      length of the payload

A message that is longer than one frame may hold goes as several frames of the same kind and layer; the receiver knows
the whole length beforehand and stops there. Control messages are always one frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.net.messages import CONTROL, LAYERED, MAX_CONTROL_BYTES, Kind

VERSION = 1
MAGIC = b"pI"
MAX_PAYLOAD_BYTES = 4 << 20
"""Most that one frame carries: the largest allocation that a stranger's header can cause."""

NO_LAYER = 0xFFFF_FFFF
_HEADER = struct.Struct("<2sBBIII")
HEADER_BYTES = _HEADER.size
_KINDS = {int(kind): kind for kind in Kind}

Buffer = bytes | bytearray | memoryview
Sendable = Buffer | npt.NDArray[Any]


class Header(NamedTuple):
    """What precedes a payload; ``layer`` is NO_LAYER where the kind belongs to no layer."""

    kind: Kind
    layer: int
    sequence: int
    length: int


@dataclass(frozen=True)
class Frame:
    """One frame with its payload, which never shows in ``repr``."""

    kind: Kind
    layer: int
    sequence: int
    payload: bytes = field(repr=False)


def encode_header(kind: Kind, layer: int, sequence: int, length: int) -> bytes:
    """The 16 bytes before a payload of ``length`` bytes.

    Raises:
        LocalProtocolError: the frame would be refused by any receiver (layer, length or sequence out of range).
    """
    if (layer != NO_LAYER) != (kind in LAYERED) or not 0 <= layer <= NO_LAYER:
        raise LocalProtocolError(f"cannot send {kind.name} with layer {layer}: see messages.LAYERED")
    limit = MAX_CONTROL_BYTES if kind in CONTROL else MAX_PAYLOAD_BYTES
    if length > limit:
        raise LocalProtocolError(f"cannot send a {kind.name} frame of {length:,} bytes; at most {limit:,}")
    if sequence > 0xFFFF_FFFF:
        raise LocalProtocolError("sequence numbers of this connection are used up; reconnect")
    return _HEADER.pack(MAGIC, VERSION, kind, layer, sequence, length)


def encode(frame: Frame) -> bytes:
    """The bytes of ``frame``; see the module for the layout and :func:`encode_header` for the errors."""
    return encode_header(frame.kind, frame.layer, frame.sequence, len(frame.payload)) + frame.payload


class Decoder:
    """Turns one direction's bytes, in whatever pieces they come, into frames.

    Two ways to use it. ``feed`` and ``next_frame`` give whole frames. ``feed``, ``next_header``, ``take`` and
    ``bypassed`` give a header as soon as it is there and let a payload go straight from the socket into its array.
    A refused header is refused again at every later call: the connection is dead.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._header: Header | None = None
        self._remaining = 0
        self._sequence = 0
        self._error: RemoteProtocolError | None = None

    def feed(self, data: Buffer) -> None:
        """Appends bytes that arrived."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    @property
    def buffered(self) -> int:
        """Bytes that were fed and belong to no frame or payload that was handed out."""
        return len(self._buffer) - self._start

    def next_header(self) -> Header | None:
        """The header of the next frame, or None until 16 bytes of it are there.

        The payload of the frame before must have been taken (or bypassed) to its end.

        Raises:
            RemoteProtocolError: not this protocol, an unknown kind, a layer where none belongs or none where one
                does, a payload over the limit, or a sequence number other than the next one.
        """
        assert self._remaining == 0, "the payload before was not taken to its end"
        if self._error is not None:
            raise self._error
        if self.buffered < HEADER_BYTES:
            return None
        try:
            header = self._parse()
        except RemoteProtocolError as error:
            self._error = error
            raise
        self._start += HEADER_BYTES
        self._sequence += 1
        self._remaining = header.length
        return header

    def take(self, into: memoryview) -> int:
        """Moves as much of the present payload as was fed and fits into ``into``; returns how many bytes."""
        count = min(len(into), self.buffered, self._remaining)
        with memoryview(self._buffer) as view:
            into[:count] = view[self._start : self._start + count]
        self._start += count
        self._remaining -= count
        return count

    def bypassed(self, count: int) -> None:
        """Says that ``count`` bytes of the present payload went from the socket to their place without ``feed``."""
        assert self.buffered == 0, "only an empty buffer can be bypassed"
        assert count <= self._remaining, "bypassed more than the payload"
        self._remaining -= count

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until all of it is there. Raises as :meth:`next_header`."""
        if self._header is None:
            self._header = self.next_header()
        header = self._header
        if header is None or self.buffered < header.length:
            return None
        payload = bytearray(header.length)
        self.take(memoryview(payload))
        self._header = None
        return Frame(header.kind, header.layer, header.sequence, bytes(payload))

    def _parse(self) -> Header:
        magic, version, byte, layer, sequence, length = _HEADER.unpack_from(self._buffer, self._start)
        if magic != MAGIC:
            raise RemoteProtocolError("the peer does not speak this protocol (wrong first bytes of a frame)")
        if version != VERSION:
            raise RemoteProtocolError(f"the peer speaks protocol version {version}, this side {VERSION}; update one")
        kind = _KINDS.get(byte)
        if kind is None:
            raise RemoteProtocolError(f"the peer sent a frame of unknown kind {byte}")
        if (layer != NO_LAYER) != (kind in LAYERED):
            raise RemoteProtocolError(f"the peer sent {kind.name} with layer {layer}, which that kind cannot have")
        limit = MAX_CONTROL_BYTES if kind in CONTROL else MAX_PAYLOAD_BYTES
        if length > limit:
            raise RemoteProtocolError(f"the peer sent a {kind.name} frame of {length:,} bytes; at most {limit:,}")
        if sequence != self._sequence:
            raise RemoteProtocolError(
                f"the peer sent frame {sequence} where frame {self._sequence} is due (lost, repeated or reordered)"
            )
        return Header(kind, layer, sequence, length)


def as_bytes(buffer: Sendable) -> memoryview:
    """The memory of ``buffer``, byte by byte and without a copy.

    Raises:
        LocalProtocolError: an array that is not contiguous.
    """
    view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    if not view.nbytes:
        return memoryview(b"")
    try:
        return view.cast("B")
    except TypeError as error:
        raise LocalProtocolError("an array on the wire must be contiguous; use numpy.ascontiguousarray") from error


def split_frames(views: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Cuts buffers into frames, each as full as a frame may be; no bytes at all are one empty frame."""
    frame: list[memoryview] = []
    room = MAX_PAYLOAD_BYTES
    for view in views:
        rest = view
        while len(rest) > room:
            yield [*frame, rest[:room]]
            rest = rest[room:]
            frame, room = [], MAX_PAYLOAD_BYTES
        if rest:
            frame.append(rest)
            room -= len(rest)
    yield frame
