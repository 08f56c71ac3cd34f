"""Frames over a transport: headers and payloads in both directions, each before a deadline.

What a peer does wrong below the level of messages shows here: bytes that are no frame, silence, and going away.
Payloads go from the caller's memory to the transport and back without a copy in between, beyond what arrives together
with a header. Deadlines are instants of ``time.monotonic()``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pi_runtime.errors import RemoteProtocolError
from pi_runtime.net.messages import ErrorCode, Identity, Kind, decode_control
from pi_runtime.net.transport import PeerAlert, Transport
from pi_runtime.net.wire import Decoder, Header, encode_header

FAREWELL_S = 2.0
"""How long a connection that has failed may still take for the last word of either side."""

_READ_BYTES = 64 << 10


class PeerRefusal(RemoteProtocolError):
    """The peer ended the connection with an ERROR message; ``code`` is its reason."""

    def __init__(self, peer: Identity, code: ErrorCode, text: str) -> None:
        super().__init__(f"{peer} refused: {text}")
        self.code = code


class FramePipe:
    """The frames to and from one peer; after any RemoteProtocolError of a transport that broke it is closed.

    peer: who is named in errors. doing: what this side waits for, as errors say it.
    """

    def __init__(self, transport: Transport, peer: Identity) -> None:
        self.peer = peer
        self.doing = "waiting"
        self._transport = transport
        self._decoder = Decoder()
        self._scratch = memoryview(bytearray(_READ_BYTES))
        self._sent = 0
        self._closed = False

    @property
    def overhead_bytes(self) -> int:
        """Bytes that the transport has added to what was sent (TLS records)."""
        return self._transport.overhead_bytes

    def send(self, kind: Kind, layer: int, payload: Sequence[memoryview], *, deadline: float) -> None:
        """Sends one frame; ``payload`` is its parts, one after the other.

        Raises:
            RemoteProtocolError: the peer went away, or does not read.
            PeerRefusal: it said why before it went.
        """
        try:
            self._put(kind, layer, payload, deadline)
        except OSError as error:
            raise self._unsent(error, kind) from error

    def send_last(self, kind: Kind, layer: int, payload: bytes) -> None:
        """Sends a frame to a peer that may be gone, unless this end is, and closes. Never raises."""
        if self._closed:
            return
        try:
            self._put(kind, layer, [memoryview(payload)], time.monotonic() + FAREWELL_S)
        except OSError:
            return
        finally:
            self.close()

    def header(self, deadline: float) -> Header:
        """Waits for the header of the next frame; the payload before must have been taken.

        Raises:
            PeerRefusal: it is an ERROR, which was read to its end.
            RemoteProtocolError: it is no frame, or nothing comes in time, or the peer went away.
        """
        if self._closed:
            raise RemoteProtocolError(f"the connection to {self.peer} is closed")
        while (header := self._decoder.next_header()) is None:
            self._decoder.feed(self._scratch[: self._read(self._scratch, deadline)])
        if header.kind is Kind.ERROR:
            body = decode_control(Kind.ERROR, self.payload(header, deadline))
            raise PeerRefusal(self.peer, ErrorCode(str(body["code"])), str(body["text"]))
        return header

    def payload(self, header: Header, deadline: float) -> bytearray:
        """The whole payload after ``header``. Raises as :meth:`header`."""
        payload = bytearray(header.length)
        self.fill(memoryview(payload), deadline)
        return payload

    def fill(self, view: memoryview, deadline: float) -> None:
        """Fills ``view`` with the next bytes of the present payload. Raises as :meth:`header`."""
        filled = self._decoder.take(view)
        while filled < len(view):
            count = self._read(view[filled:], deadline)
            self._decoder.bypassed(count)
            filled += count

    def fill_all(self, views: list[memoryview], length: int, deadline: float) -> None:
        """Moves the next ``length`` bytes of the payload to the front of ``views``, which it takes off."""
        while length:
            view = views[0]
            if len(view) > length:
                view, views[0] = view[:length], view[length:]
            else:
                views.pop(0)
            self.fill(view, deadline)
            length -= len(view)

    def poll(self, within_s: float) -> bool:
        """Whether bytes of the peer, or its end, are here or come in ``within_s``; takes nothing."""
        try:
            return self._decoder.buffered > 0 or self._transport.poll(within_s)
        except OSError:
            return True  # the next receive says what happened

    def close(self) -> None:
        """Ends the pipe without a word; safe to call twice, and from another thread to wake one that waits here."""
        self._closed = True
        self._transport.close()

    def _put(self, kind: Kind, layer: int, payload: Sequence[memoryview], deadline: float) -> None:
        header = encode_header(kind, layer, self._sent, sum(map(len, payload)))
        self._transport.send(header, *payload, deadline=deadline)
        self._sent += 1

    def _read(self, view: memoryview, deadline: float) -> int:
        try:
            count = self._transport.recv_into(view, deadline=deadline)
        except OSError as error:
            raise self._broken(error, self.doing) from error
        if not count:
            raise RemoteProtocolError(f"{self.peer} closed the connection")
        return count

    def _broken(self, error: OSError, doing: str) -> RemoteProtocolError:
        """Closes after a failure of the transport; says what went wrong."""
        self.close()
        if isinstance(error, TimeoutError):
            return RemoteProtocolError(f"{self.peer} did not go on in time while this side was {doing}")
        reason = error.strerror or str(error) or type(error).__name__
        return RemoteProtocolError(f"{self.peer} went away while this side was {doing}: {reason}")

    def _unsent(self, error: OSError, kind: Kind) -> RemoteProtocolError:
        """As :meth:`_broken`; but where the peer said why before it went away, that is the reason."""
        if not isinstance(error, TimeoutError):
            try:
                self.header(time.monotonic() + FAREWELL_S)
            except PeerRefusal as refusal:
                self.close()
                return refusal
            except RemoteProtocolError as found:
                if isinstance(found.__cause__, PeerAlert):
                    return found
        return self._broken(error, f"sending {kind.name}")
