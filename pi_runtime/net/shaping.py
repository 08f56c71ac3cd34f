"""Network profiles, and a transport that behaves like one: for measurements on one machine.

Model of one direction of the link. Bytes handed over at time t begin to leave at max(t, when the link is free), leave
at the profile's bandwidth and arrive half a round-trip time later. The sender goes on at once, as it would with a
socket buffer, so that computing and transmission overlap as on a real network; a thread of the sending side holds the
bytes back until they are due. Each side shapes what it sends, so both sides need the same profile.

Not modelled: packet headers (about 3 % of a full packet), slow start, loss and jitter.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from pi_runtime.errors import ConfigError
from pi_runtime.net.transport import Transport, time_left
from pi_runtime.net.wire import Buffer

_PIECE_BYTES = 64 << 10
_BACKLOG_BYTES = 8 << 20
"""A sender waits while this much lies unsent, as with a socket buffer; over any profile's bandwidth-delay product."""

_DRAIN_S = 5.0

_SPIN_S = 150e-6
"""Sleeping overshoots by about this; the rest of a wait is spun, or half a millisecond of RTT would become one."""


@dataclass(frozen=True)
class NetworkProfile:
    """A symmetric link.

    bandwidth_mbps: 10^6 bits a second, each direction. rtt_ms: round-trip time in milliseconds.
    """

    name: str
    bandwidth_mbps: float
    rtt_ms: float

    def __post_init__(self) -> None:
        if not self.bandwidth_mbps > 0:
            raise ConfigError(f"bandwidth_mbps must be more than 0, got {self.bandwidth_mbps}")
        if not 0 <= self.rtt_ms < 60_000:
            raise ConfigError(f"rtt_ms must be from 0 to 60,000, got {self.rtt_ms}")

    @property
    def is_shaped(self) -> bool:
        """Whether the link is anything but the bare one."""
        return math.isfinite(self.bandwidth_mbps) or self.rtt_ms > 0

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth of one direction in bytes a second."""
        return self.bandwidth_mbps * 1e6 / 8


PROFILES = {
    profile.name: profile
    for profile in (
        NetworkProfile("loopback", math.inf, 0.0),
        NetworkProfile("lan", 1000.0, 0.5),
        NetworkProfile("wan", 100.0, 40.0),
        NetworkProfile("mobile", 20.0, 80.0),
    )
}
"""``loopback`` is whatever the machine does, unshaped."""


def parse_profile(text: str) -> NetworkProfile:
    """A profile by its name, or from numbers: ``bandwidth_mbps=50,rtt_ms=20``.

    Raises:
        ConfigError: neither.
    """
    if text in PROFILES:
        return PROFILES[text]
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        numbers = {key.strip(): float(value) for key, _, value in pairs}
    except ValueError:
        numbers = {}
    if len(pairs) != 2 or numbers.keys() != {"bandwidth_mbps", "rtt_ms"}:
        raise ConfigError(
            f"a network profile is one of {', '.join(PROFILES)} or 'bandwidth_mbps=50,rtt_ms=20', got {text!r}"
        )
    return NetworkProfile(text, numbers["bandwidth_mbps"], numbers["rtt_ms"])


def parse_profiles(text: str) -> tuple[NetworkProfile, ...]:
    """Profiles separated by commas, each as in :func:`parse_profile`: ``lan,bandwidth_mbps=50,rtt_ms=20,wan``.

    Two that mean the same are one; a profile of numbers is called by them in one form.

    Raises:
        ConfigError: one is malformed, or there is none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found: dict[str, NetworkProfile] = {}
    while parts:
        part = parts.pop(0)
        custom = "=" in part
        profile = parse_profile(f"{part},{parts.pop(0)}" if custom and parts else part)
        if custom:
            name = f"bandwidth_mbps={profile.bandwidth_mbps:.12g},rtt_ms={profile.rtt_ms:.12g}"
            profile = NetworkProfile(name, profile.bandwidth_mbps, profile.rtt_ms)
        found[profile.name] = profile
    if not found:
        raise ConfigError(f"networks must name at least one of {', '.join(PROFILES)}, got {text!r}")
    return tuple(found.values())


class ShapedTransport(Transport):
    """``inner`` with the delay and the bandwidth of ``profile`` on what this side sends; it owns ``inner``."""

    def __init__(self, inner: Transport, profile: NetworkProfile) -> None:
        self._inner = inner
        self._bytes_per_s = profile.bytes_per_s
        self._delay_s = profile.rtt_ms / 2e3
        self._free_at = 0.0
        self._queue: deque[tuple[float, float, bytes]] = deque()  # due, deadline of the sender, bytes
        self._backlog = 0
        self._changed = threading.Condition()
        self._closing = False
        self._error: OSError | None = None
        self._relay = threading.Thread(target=self._run, name="shaping", daemon=True)
        self._relay.start()

    @property
    def overhead_bytes(self) -> int:
        return self._inner.overhead_bytes

    def send(self, *buffers: Buffer, deadline: float) -> None:
        data = memoryview(b"".join(buffers))
        with self._changed:
            for start in range(0, len(data), _PIECE_BYTES):
                piece = bytes(data[start : start + _PIECE_BYTES])
                while self._backlog > _BACKLOG_BYTES and self._error is None:
                    self._changed.wait(time_left(deadline))
                if self._error is not None:
                    raise self._error
                self._free_at = max(time.monotonic(), self._free_at) + len(piece) / self._bytes_per_s
                due = self._free_at + self._delay_s
                self._queue.append((due, deadline + self._delay_s, piece))
                self._backlog += len(piece)
                self._changed.notify_all()

    def recv_into(self, view: memoryview, *, deadline: float) -> int:
        return self._inner.recv_into(view, deadline=deadline)

    def poll(self, within_s: float) -> bool:
        return self._inner.poll(within_s)

    def close(self) -> None:
        """Ends the pipe once what was sent has arrived, or after a few seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._relay.join(_DRAIN_S)
        self._inner.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                due, deadline, piece = self._queue[0]
            _sleep_until(due)
            try:
                self._inner.send(piece, deadline=max(deadline, due + 1.0))
            except OSError as error:
                with self._changed:
                    self._error = error
                    self._queue.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._queue.popleft()
                self._backlog -= len(piece)
                self._changed.notify_all()


def _sleep_until(instant: float) -> None:
    left = instant - time.monotonic()
    if left > _SPIN_S:
        time.sleep(left - _SPIN_S)
    while time.monotonic() < instant:
        pass
