"""What a link does, found out with sockets as a program would: its round-trip time and its rate."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from pi_runtime.errors import BackendError
from pi_runtime.net.hosts import Hosts
from pi_runtime.net.punctual import punctual
from pi_runtime.net.shaping import NetworkProfile, ShapedTransport
from pi_runtime.net.transport import SocketTransport, Transport

TOLERANCE = 0.1
"""How far from its profile a link may be, as a fraction of the profile's figure."""

_PINGS_S, _MOST_PINGS, _FEWEST_PINGS = 0.5, 200, 10
_TRANSFER_S = 0.6
_BARE_TRANSFER_BYTES = 64 << 20
_PIECE_BYTES = 1 << 18
_TIMEOUT_S = 60.0
_PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Before each further try: a measurement of hours is worth waiting for what slows the machine to pass."""


@dataclass(frozen=True, kw_only=True)
class LinkCheck:
    """One measurement of a link.

    rtt_ms: median round-trip time of one byte. bandwidth_mbps: from client to server, and from server to client.
    """

    rtt_ms: float
    bandwidth_mbps: tuple[float, float]

    def is_as(self, profile: NetworkProfile) -> bool:
        """Whether it is within ``TOLERANCE`` of ``profile``."""
        return all(
            abs(found - nominal) <= TOLERANCE * nominal
            for found, nominal in (
                (self.rtt_ms, profile.rtt_ms),
                *((rate, profile.bandwidth_mbps) for rate in self.bandwidth_mbps),
            )
            if 0 < nominal < float("inf")
        )


def check_link(
    hosts: Hosts, profile: NetworkProfile, *, shape: bool = False, mend: Callable[[], None] | None = None
) -> LinkCheck:
    """Measures the link between client and server, anew after longer and longer pauses where a machine spoils a try.

    shape: on each side the channel's shaping (:mod:`pi_runtime.net.shaping`) is laid over the socket.
    mend: called before each further try.

    Raises:
        BackendError: nothing comes through.
    """
    check = _measure(hosts, profile, shape=shape)
    for pause_s in _PAUSES_S:
        if check.is_as(profile):
            break
        time.sleep(pause_s)
        if mend is not None:
            mend()
        check = _measure(hosts, profile, shape=shape)
    return check


def _measure(hosts: Hosts, profile: NetworkProfile, *, shape: bool) -> LinkCheck:
    return LinkCheck(
        rtt_ms=round_trip_s(hosts, profile, shape=shape) * 1e3,
        bandwidth_mbps=(
            rate_mbps(hosts, profile, sender="client", shape=shape),
            rate_mbps(hosts, profile, sender="server", shape=shape),
        ),
    )


def round_trip_s(hosts: Hosts, profile: NetworkProfile, *, shape: bool = False) -> float:
    """Median time from sending a byte to having its echo; ``profile`` says how many are affordable."""
    count = _MOST_PINGS if profile.rtt_ms == 0 else int(_PINGS_S / (profile.rtt_ms / 1e3))
    count = min(max(count, _FEWEST_PINGS), _MOST_PINGS)
    taken = []
    with _pair(hosts, "client", profile if shape else None) as (near, far), _beside(lambda: _echo(far, count + 1)):
        for _ in range(count + 1):
            started = time.perf_counter()
            _send(near, 1)
            _receive(near, 1)
            taken.append(time.perf_counter() - started)
    return median(taken[1:])  # the first finds nothing warm


def rate_mbps(hosts: Hosts, profile: NetworkProfile, *, sender: str, shape: bool = False) -> float:
    """10^6 bits a second of payload over the second half of a transfer, at the receiver."""
    size = _BARE_TRANSFER_BYTES
    if profile.bytes_per_s < float("inf"):
        # The first round trips are TCP's start and not the link's rate.
        size = int(profile.bytes_per_s * (_TRANSFER_S + 16 * profile.rtt_ms / 1e3))
    with _pair(hosts, sender, profile if shape else None) as (near, far), _beside(lambda: _send(near, size)):
        half = _receive(far, size // 2)
        started = time.perf_counter()
        rest = _receive(far, size - half)
        seconds = time.perf_counter() - started
    return rest * 8 / seconds / 1e6


@contextmanager
def _pair(hosts: Hosts, near_role: str, shape: NetworkProfile | None) -> Iterator[tuple[Transport, Transport]]:
    """A connection between client and server: the end of ``near_role``, and the other."""
    far_role = "server" if near_role == "client" else "client"
    try:
        with hosts.at(far_role):
            listener = socket.create_server((hosts.address(far_role), 0))
        with listener:
            listener.settimeout(_TIMEOUT_S)
            with hosts.at(near_role):
                near_socket = socket.create_connection(listener.getsockname(), timeout=_TIMEOUT_S)
            far_socket = listener.accept()[0]
    except OSError as error:
        raise BackendError(f"no connection between client and server over the link ({error})") from error
    ends: list[Transport] = [SocketTransport(near_socket), SocketTransport(far_socket)]
    if shape is not None:
        ends = [ShapedTransport(end, shape) for end in ends]
    try:
        yield ends[0], ends[1]
    except OSError as error:
        raise BackendError(f"the link between client and server broke ({error})") from error
    finally:
        for end in ends:
            end.close()


@contextmanager
def _beside(work: Callable[[], object]) -> Iterator[None]:
    """Does ``work`` in a thread while the block runs; its error, if any, is the block's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with punctual():
                work()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with punctual():  # the link is measured, and not how busy the machine is
        yield
    thread.join(_TIMEOUT_S)
    if failed:
        raise failed[0]


def _echo(end: Transport, times: int) -> None:
    for _ in range(times):
        _receive(end, 1)
        _send(end, 1)


def _send(end: Transport, count: int) -> None:
    end.send(bytes(count), deadline=time.monotonic() + 2 * _TIMEOUT_S)


def _receive(end: Transport, count: int) -> int:
    """Takes exactly so many bytes; returns how many."""
    view = memoryview(bytearray(min(count, _PIECE_BYTES)))
    left = count
    while left:
        got = end.recv_into(view[: min(left, len(view))], deadline=time.monotonic() + _TIMEOUT_S)
        if not got:
            raise ConnectionError("the other end is gone")
        left -= got
    return count
