"""Byte pipes under a channel: one interface over a socket and over memory.

Shaping (:mod:`pi_runtime.net.shaping`) and TLS (:mod:`pi_runtime.net.tls`) are transports around a transport. Deadlines
are instants of ``time.monotonic()``; a transport raises ``TimeoutError`` past one and ``OSError`` when the pipe breaks.
One thread uses a transport at a time, save for ``close``.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from pi_runtime.errors import ConfigError
from pi_runtime.net.wire import Buffer

_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")
"""What one ``sendmsg`` takes; a frame of many small pieces has more."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Time limits of every wait, in seconds, and the rate below which a peer counts as gone.

    connect_s: until the peer listens (it may start later). handshake_s: TLS and greeting. read_s: for the next message
    while something is under way, the peer's computing included. idle_s: for the next request.
    min_rate_bytes_s: a long message may take read_s plus its length over this.
    """

    connect_s: float = 30.0
    handshake_s: float = 10.0
    read_s: float = 60.0
    idle_s: float = 3600.0
    min_rate_bytes_s: float = 125_000.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be more than 0, got {value}")


class PeerAlert(ConnectionError):
    """The peer ended the pipe and said why, below the protocol (a TLS alert)."""


class Transport(ABC):
    """An ordered, reliable pipe of bytes to one peer."""

    @property
    def overhead_bytes(self) -> int:
        """Bytes beyond those given to ``send`` that this transport has put on the network so far (TLS records)."""
        return 0

    @abstractmethod
    def send(self, *buffers: Buffer, deadline: float) -> None:
        """Sends all bytes of ``buffers``, one after the other."""

    @abstractmethod
    def recv_into(self, view: memoryview, *, deadline: float) -> int:
        """Waits, then puts at least one and at most ``len(view)`` into ``view``; returns how many, 0 at the end."""

    @abstractmethod
    def poll(self, within_s: float) -> bool:
        """Whether :meth:`recv_into` would have bytes, or the end, within ``within_s`` seconds; takes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Ends the pipe; safe to call twice, and from another thread to wake one that waits here."""


def time_left(deadline: float) -> float:
    """Seconds until ``deadline``, more than 0.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class SocketTransport(Transport):
    """A connected stream socket, which it owns. Nagle's delay is off, and dead peers are noticed by TCP keep-alive."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, *buffers: Buffer, deadline: float) -> None:
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while pending:
            self._socket.settimeout(time_left(deadline))
            sent = self._socket.sendmsg(pending[:_MOST_BUFFERS])
            while pending and sent >= len(pending[0]):
                sent -= len(pending.pop(0))
            if sent:
                pending[0] = pending[0][sent:]

    def recv_into(self, view: memoryview, *, deadline: float) -> int:
        self._socket.settimeout(time_left(deadline))
        return self._socket.recv_into(view)

    def poll(self, within_s: float) -> bool:
        if self._socket.fileno() < 0:
            return True
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(within_s * 1e3))

    def close(self) -> None:
        with suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for bytes
        self._socket.close()


class _Pipe:
    """One direction of a pair in memory, without a limit on what lies in it."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def write(self, piece: bytes) -> None:
        with self._changed:
            if self._closed:
                raise BrokenPipeError("the other end is closed")
            self._pieces.append(piece)
            self._changed.notify()

    def read_into(self, view: memoryview, deadline: float) -> int:
        with self._changed:
            while not self._pieces:
                if self._closed:
                    return 0
                self._changed.wait(time_left(deadline))
            piece = self._pieces.popleft()
            count = min(len(piece), len(view))
            view[:count] = piece[:count]
            if count < len(piece):
                self._pieces.appendleft(piece[count:])
            return count

    def poll(self, within_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._pieces) or self._closed, within_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class MemoryTransport(Transport):
    """One end of :func:`memory_pair`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, *buffers: Buffer, deadline: float) -> None:
        if piece := b"".join(buffers):
            self._outgoing.write(piece)

    def recv_into(self, view: memoryview, *, deadline: float) -> int:
        return self._incoming.read_into(view, deadline)

    def poll(self, within_s: float) -> bool:
        return self._incoming.poll(within_s)

    def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()


def memory_pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends in one process, for two threads (or one: nothing blocks a sender)."""
    there, back = _Pipe(), _Pipe()
    return MemoryTransport(back, there), MemoryTransport(there, back)
