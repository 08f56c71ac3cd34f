"""A listening role: a thread a connection, a cap on their number, and an orderly end.

A handler serves one peer through a :class:`Visit` until the peer leaves. Whatever goes wrong on one connection ends
that one alone: with an ERROR message that says why, and one line in the log that names the peer and nothing secret.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from pi_runtime.closing import Closing
from pi_runtime.errors import PiError, RemoteProtocolError
from pi_runtime.net.channel import Channel, Control
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import ErrorCode, Kind
from pi_runtime.preset.ledger import Ledger

log = logging.getLogger("pi_runtime.preset")

_ACCEPT_S = 0.2
_GRACE_S = 5.0
_SPARE_CONNECTIONS = 8
"""Connections beyond the cap that are still told why they are turned away; more are closed without a word."""


class RefusedRequest(PiError):
    """A request that this side will not serve; the peer is told ``code`` and the text, and the connection ends."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def check_bundle_bytes(batch: int, size: int, limit: int) -> None:
    """Refuses a bundle of ``batch`` images that takes ``size`` bytes where ``limit`` are allowed.

    Raises:
        RefusedRequest: it is too large.
    """
    if size > limit:
        raise RefusedRequest(
            ErrorCode.MODEL, f"a bundle of {batch} images takes {size:,} bytes, at most {limit:,}; use a smaller batch"
        )


class Visit:
    """One peer's connection while it is served. It is *idle* while nothing is under way and it waits for the peer."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._changed = threading.Condition()
        self._idle = False
        self._ended = False

    @property
    def peer_name(self) -> str:
        """The name in the peer's certificate."""
        return self.channel.peer.name

    def next_request(self, *kinds: Kind) -> Control | None:
        """The peer's next request, of ``kinds``; None where the peer said goodbye or this side is stopping.

        Raises: as :meth:`Channel.recv_control`.
        """
        with self.idle() as wanted:
            if not wanted:
                return None
            request = self.channel.recv_control(*kinds, Kind.BYE, within_s=self.channel.timeouts.idle_s)
        return None if request.kind is Kind.BYE else request

    def next_array(self, kind: Kind, nbytes: int) -> npt.NDArray[np.uint8]:
        """An array that the peer may take its time for."""
        with self.idle():
            return self.channel.recv_array(kind, nbytes, within_s=self.channel.timeouts.idle_s)

    @contextmanager
    def idle(self) -> Iterator[bool]:
        """Waiting for the peer inside the block; yields False where this side is stopping."""
        self._set_idle(True)
        try:
            yield not self._ended
        finally:
            self._set_idle(False)

    def end(self) -> None:
        """Ends the connection as soon as nothing is under way."""
        with self._changed:
            self._ended = True
            if self._idle:
                self.channel.close()

    @property
    def ended(self) -> bool:
        """Whether this side is stopping."""
        return self._ended

    def wait_idle(self, within_s: float) -> bool:
        """Waits until the connection is idle; False if it is not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle or self._ended, within_s)

    def _set_idle(self, idle: bool) -> None:
        with self._changed:
            self._idle = idle
            self._changed.notify_all()
            if self._ended and idle:
                self.channel.close()


class Service(Closing):
    """Accepts connections of ``roles`` and gives each to ``handle`` in a thread of its own."""

    def __init__(
        self,
        endpoint: Endpoint,
        address: str,
        roles: Collection[str],
        handle: Callable[[Visit], None],
        *,
        ledger: Ledger,
        max_connections: int,
    ) -> None:
        """Listens on ``address`` at once, so that early peers wait in line until :meth:`run`."""
        self._endpoint = endpoint
        self._listener = endpoint.listen(address)
        self.address = self._listener.address
        self._roles = roles
        self._handle = handle
        self._ledger = ledger
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._visits: set[Visit] = set()
        self._stop = threading.Event()

    def run(self) -> None:
        """Serves until :meth:`stop`, then closes."""
        while not self._stop.is_set():
            connection = self._listener.accept(timeout_s=_ACCEPT_S)
            if connection is not None:
                self._admit(connection)
        self.close()

    def stop(self) -> None:
        """Makes :meth:`run` return; may be called from a signal handler."""
        self._stop.set()

    def wait_idle(self, within_s: float) -> bool:
        """Waits until no connection has anything under way; False if that is not so in time."""
        deadline = time.monotonic() + within_s
        with self._lock:
            visits = list(self._visits)
        return all(visit.wait_idle(max(deadline - time.monotonic(), 0.0)) for visit in visits)

    def close(self) -> None:
        """Stops listening, lets what is under way finish for a few seconds, and ends all connections."""
        self._stop.set()
        self._listener.close()
        with self._lock:
            threads, visits = list(self._threads), list(self._visits)
        for visit in visits:
            visit.end()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        for visit in visits:
            visit.channel.close()

    def _admit(self, connection: socket.socket) -> None:
        with self._lock:
            if len(self._threads) >= self._max_connections + _SPARE_CONNECTIONS:
                connection.close()
                return
            # Not waited for at exit: a thread may be inside a long computation for a peer that is gone.
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True, name="visit")
            self._threads.add(thread)
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._greet(connection)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _greet(self, connection: socket.socket) -> None:
        try:
            channel = self._endpoint.greet(connection, self._roles)
        except PiError as error:
            log.info("turned away: %s", error)
            return
        visit = Visit(channel)
        with self._lock:
            welcome = len(self._visits) < self._max_connections and not self._stop.is_set()
            if welcome:
                self._visits.add(visit)
        if not welcome:
            channel.refuse(ErrorCode.BUSY, f"{self._max_connections} peers are connected; try again later")
            return
        try:
            with self._ledger.counting(channel):
                attend(visit, self._handle)
        finally:
            with self._lock:
                self._visits.discard(visit)


def attend(visit: Visit, handle: Callable[[Visit], None]) -> None:
    """Runs ``handle`` on ``visit``; whatever it raises ends the connection with a reason, and goes to the log."""
    channel = visit.channel
    try:
        handle(visit)
        channel.bye()
    except RefusedRequest as refusal:
        log.info("%s: refused: %s", channel.peer, refusal)
        channel.refuse(refusal.code, str(refusal))
    except RemoteProtocolError as error:
        if not visit.ended:
            log.info("%s: %s", channel.peer, error)
        channel.close()
    except PiError as error:
        log.warning("%s: %s", channel.peer, error)
        channel.refuse(ErrorCode.INTERNAL, "it failed for a reason of its own; see its log")
    except Exception:
        log.exception("%s: unexpected failure", channel.peer)
        channel.refuse(ErrorCode.INTERNAL, "it failed for a reason of its own; see its log")
