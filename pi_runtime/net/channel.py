"""A channel: messages to and from one peer, in legal order, each within a time limit, counted by tag.

A channel is used by one thread at a time; ``close`` may be called from another, and wakes it. After any
``RemoteProtocolError`` it is closed: a broken connection ends whatever was under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pi_runtime.closing import Closing
from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.net.frames import FramePipe, PeerRefusal
from pi_runtime.net.messages import MAX_TEXT_CHARS, ErrorCode, Identity, Kind, Scalar, decode_control, encode_control
from pi_runtime.net.order import BYE_STATES, CLOSED, Session
from pi_runtime.net.traffic import Meter, Traffic
from pi_runtime.net.transport import Timeouts, Transport
from pi_runtime.net.wire import NO_LAYER, Header, Sendable, as_bytes, split_frames

_STREAM_BYTES = 256 << 10
_OWN_FAILURE = "it failed for a reason of its own; see its log"


class Control(NamedTuple):
    """A control message that arrived; ``body`` has exactly the fields of its kind."""

    kind: Kind
    body: dict[str, Scalar]


class Channel(Closing):
    """Messages over ``transport``. Made by :class:`pi_runtime.net.endpoint.Endpoint`, which also does the greeting.

    As a context manager it says BYE at the end of its block, or ERROR where the block raised.
    """

    def __init__(
        self, transport: Transport, session: Session, *, peer: Identity, timeouts: Timeouts | None = None
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self._pipe = FramePipe(transport, peer)
        self._session = session
        self._meter = Meter()

    @property
    def peer(self) -> Identity:
        """Who is at the other end: as certified, or as it says until then."""
        return self._pipe.peer

    @peer.setter
    def peer(self, peer: Identity) -> None:
        self._pipe.peer = peer

    def traffic(self) -> Traffic:
        """A snapshot of the counts since the channel began, the greeting included (tag ``hello``)."""
        return self._meter.traffic()

    # Sending

    def send_control(self, kind: Kind, *, tag: str | None = None, **body: Scalar) -> None:
        """Sends a control message with the fields ``body``; the tag defaults to the kind in lower case.

        Raises:
            LocalProtocolError: not legal now, the session is over, or not the fields of ``kind``.
            RemoteProtocolError: the peer went away.
            PeerRefusal: it said why before it went.
        """
        payload = memoryview(encode_control(kind, body))
        self._send(kind, NO_LAYER, len(payload), [payload], tag)

    def send_array(self, kind: Kind, *buffers: Sendable, layer: int = NO_LAYER, tag: str | None = None) -> None:
        """Sends ``buffers``, one after the other as they lie in memory, as one message.

        Arrays of more than one byte an element must be little-endian. The tag defaults to ``layer<n>.<kind>``.

        Raises: as :meth:`send_control`.
        """
        views = [as_bytes(buffer) for buffer in buffers]
        self._send(kind, layer, sum(map(len, views)), views, tag)

    def send_stream(
        self, kind: Kind, nbytes: int, pieces: Iterable[Sendable], *, layer: int = NO_LAYER, tag: str | None = None
    ) -> None:
        """Sends a message of ``nbytes`` bytes whose pieces come one by one, each in memory of its own.

        Pieces are held until they fill a frame, and no longer.

        Raises:
            LocalProtocolError: not legal now, or the pieces do not add up to ``nbytes`` (the channel is then closed).
            RemoteProtocolError, PeerRefusal: as :meth:`send_control`.
        """
        self._send(kind, layer, nbytes, map(as_bytes, pieces), tag)

    # Receiving

    def recv_control(self, *kinds: Kind, within_s: float | None = None, tag: str | None = None) -> Control:
        """Waits ``within_s`` (default: read_s; pass ``timeouts.idle_s`` between requests) for one message of ``kinds``.

        Raises:
            PeerRefusal: the peer sent ERROR.
            RemoteProtocolError: it sent anything else, nothing in time, or went away.
        """
        deadline = time.monotonic() + (self.timeouts.read_s if within_s is None else within_s)
        self._pipe.doing = f"waiting for {' or '.join(kind.name for kind in kinds)}"
        try:
            header = self._begin(kinds, NO_LAYER, deadline)
            body = decode_control(header.kind, self._pipe.payload(header, deadline))
        except BaseException as error:
            self._fail(error)
            raise
        self._meter.received(tag or _tag(header.kind, NO_LAYER), header.length, frames=1)
        return Control(header.kind, body)

    def poll(self, within_s: float) -> bool:
        """Whether bytes of the peer, or its end, are here or come in ``within_s``; takes nothing off the channel."""
        return self._pipe.poll(within_s)

    def recv_array(
        self,
        kind: Kind,
        nbytes: int,
        *,
        layer: int = NO_LAYER,
        within_s: float | None = None,
        tag: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Waits for one array message of exactly ``nbytes`` bytes; memory is taken once its first header is there.

        The limit is ``within_s`` (default: read_s) and the time that the bytes may take.

        Raises: as :meth:`recv_control`.
        """
        result = np.empty(0, np.uint8)
        views: list[memoryview] = []

        def take(length: int, deadline: float) -> None:
            nonlocal result
            if not views:
                result = np.empty(nbytes, np.uint8)
                views.append(as_bytes(result))
            self._pipe.fill_all(views, length, deadline)

        self._receive(kind, layer, nbytes, take, tag, within_s=within_s)
        return result

    def recv_into(
        self, kind: Kind, *buffers: bytearray | npt.NDArray[Any], layer: int = NO_LAYER, tag: str | None = None
    ) -> None:
        """Waits for one array message of exactly the length of ``buffers`` together, and fills them one by one.

        Raises: as :meth:`recv_control`; ``buffers`` are then in part overwritten.
        """
        views = [as_bytes(buffer) for buffer in buffers]

        def take(length: int, deadline: float) -> None:
            self._pipe.fill_all(views, length, deadline)

        self._receive(kind, layer, sum(map(len, views)), take, tag)

    def recv_stream(
        self,
        kind: Kind,
        nbytes: int,
        sink: Callable[[memoryview], object],
        *,
        layer: int = NO_LAYER,
        tag: str | None = None,
    ) -> None:
        """Waits for one array message of exactly ``nbytes`` bytes and hands it to ``sink`` piece by piece.

        A piece is valid only during its call. The limit read_s holds for each frame, since the sender may compute
        between them. Memory: one piece.

        Raises: as :meth:`recv_control`, and what ``sink`` raises (the channel is then closed).
        """
        piece = memoryview(bytearray(min(_STREAM_BYTES, max(nbytes, 1))))

        def take(length: int, deadline: float) -> None:
            while length:
                part = piece[:length]
                self._pipe.fill(part, deadline)
                length -= len(part)
                sink(part)

        self._receive(kind, layer, nbytes, take, tag, limit_each_frame=True)

    # Ending

    def bye(self) -> None:
        """Tells the peer that this side is done, where that is legal, and closes."""
        if self._session.state in BYE_STATES:
            try:
                self.send_control(Kind.BYE)
            except RemoteProtocolError:
                return
        self.close()

    def refuse(self, code: ErrorCode, text: str) -> None:
        """Tells the peer why this side ends the connection, and closes. Never raises: the peer may be gone.

        ``text`` is cut to what an ERROR may hold; it must say nothing secret.
        """
        if self._session.state == CLOSED:
            self.close()
            return
        printable = "".join(c if " " <= c <= "~" else "?" for c in text)[:MAX_TEXT_CHARS]
        payload = encode_control(Kind.ERROR, {"code": code.value, "text": printable})
        self._session.state = CLOSED
        self._pipe.send_last(Kind.ERROR, NO_LAYER, payload)

    def close(self) -> None:
        """Ends the connection without a word; safe to call twice."""
        self._session.state = CLOSED
        self._pipe.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.bye()
        else:
            self.refuse(ErrorCode.INTERNAL, _OWN_FAILURE)

    # The inside

    def _send(self, kind: Kind, layer: int, nbytes: int, views: Iterable[memoryview], tag: str | None) -> None:
        self._session.send(kind, layer)
        overhead = self._pipe.overhead_bytes
        sent = frames = 0
        try:
            for frame in split_frames(views):
                length = sum(map(len, frame))
                if nbytes and not length:
                    continue
                if (sent := sent + length) > nbytes:
                    break
                limit_s = self.timeouts.read_s + length / self.timeouts.min_rate_bytes_s
                self._pipe.send(kind, layer, frame, deadline=time.monotonic() + limit_s)
                frames += 1
                del frame  # or its pieces would stay while those of the next are made
            if sent != nbytes:
                raise LocalProtocolError(f"{kind.name} must have {nbytes:,} bytes, got pieces of {sent:,}")
        except RemoteProtocolError:
            self.close()
            raise
        except BaseException:
            self.refuse(ErrorCode.INTERNAL, f"could not make {kind.name}")
            raise
        tls_bytes = self._pipe.overhead_bytes - overhead
        self._meter.sent(tag or _tag(kind, layer), sent, frames=frames, tls_bytes=tls_bytes)

    def _receive(
        self,
        kind: Kind,
        layer: int,
        nbytes: int,
        take: Callable[[int, float], None],
        tag: str | None,
        *,
        limit_each_frame: bool = False,
        within_s: float | None = None,
    ) -> None:
        """Receives one array message; ``take`` moves the so many next bytes to their place before a deadline."""
        limit_s = (self.timeouts.read_s if within_s is None else within_s) + nbytes / self.timeouts.min_rate_bytes_s
        deadline = time.monotonic() + limit_s
        self._pipe.doing = f"waiting for {kind.name}"
        left, frames = nbytes, 1
        try:
            header = self._begin((kind,), layer, deadline)
            while True:
                if header.length > left or (left and not header.length):
                    got = nbytes - left + header.length
                    raise RemoteProtocolError(
                        f"{self.peer} sent {got:,} bytes or an empty frame of {kind.name}, which has exactly {nbytes:,}"
                    )
                take(header.length, deadline)
                left -= header.length
                if not left:
                    break
                frames += 1
                if limit_each_frame:
                    deadline = time.monotonic() + limit_s
                header = self._pipe.header(deadline)
                if header.kind is not kind or header.layer != layer:
                    raise RemoteProtocolError(f"{self.peer} sent {header.kind.name} in the middle of {kind.name}")
        except BaseException as error:
            self._fail(error)
            raise
        self._meter.received(tag or _tag(kind, layer), nbytes, frames=frames)

    def _begin(self, kinds: Sequence[Kind], layer: int, deadline: float) -> Header:
        """The first frame's header of a message that must be one of ``kinds``."""
        header = self._pipe.header(deadline)
        self._session.receive(header.kind, header.layer)
        if header.kind not in kinds:
            if header.kind is Kind.BYE:
                raise RemoteProtocolError(f"{self.peer} ended the session")
            expected = " or ".join(kind.name for kind in kinds)
            raise RemoteProtocolError(f"{self.peer} sent {header.kind.name} where {expected} is due")
        if header.layer != layer:
            raise RemoteProtocolError(f"{self.peer} sent {header.kind.name} for layer {header.layer}, due is {layer}")
        return header

    def _fail(self, error: BaseException) -> None:
        """Closes after any failure of a receive, and tells the peer whether it is to blame."""
        if isinstance(error, PeerRefusal):
            self.close()
        elif isinstance(error, RemoteProtocolError):
            self.refuse(ErrorCode.PROTOCOL, str(error))
        else:
            self.refuse(ErrorCode.INTERNAL, _OWN_FAILURE)


def _tag(kind: Kind, layer: int) -> str:
    """What a message is counted under unless its sender or receiver says otherwise."""
    return kind.name.lower() if layer == NO_LAYER else f"layer{layer}.{kind.name.lower()}"
