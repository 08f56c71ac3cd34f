"""A link of a profile between hosts in namespaces: the relay's process, set so that sockets see the profile's numbers.

A packet takes some time through two devices and the relay even without delay; the relay delays by so much less. What
the sockets then see is measured by :mod:`pi_runtime.net.link_check`, and is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

from pi_runtime.backend import ROLES
from pi_runtime.child.process import Process, ask, close_all
from pi_runtime.closing import Closing
from pi_runtime.errors import BackendError
from pi_runtime.net.link_check import LinkCheck, check_link, round_trip_s
from pi_runtime.net.namespaces import HEADER_BYTES, Namespace, NamespaceHosts
from pi_runtime.net.relay import MAX_PACKET_BYTES
from pi_runtime.net.shaping import NetworkProfile

_MODULE = "pi_runtime.net.relay"
_ANSWER_S = 30.0
_LEAST_MTU = 1500
_PACKET_S = 0.005
"""A packet takes at most this long to leave: large packets are cheap to relay, and must not hold up small ones."""

_QUEUE_S = 0.05
"""What a connection may have waiting at the link beyond what is under way. Well below TCP's shortest time-out."""

_LEAST_WINDOW_PACKETS = 8
_MOST_WINDOW_BYTES = 64 << 20
_TRIM_STEPS = 4
_GOOD_ENOUGH = 0.02
_MOST_OWN_S = 250e-6
"""What devices and relay take one way is far below this. More comes of a busy machine, and is not to be made up for."""


class RelayedLink(Closing):
    """Hosts for ``roles`` whose links behave like ``profile``, each pair's and direction's its own.

    Raises:
        BackendError: no namespaces here, or the relay does not work.
    """

    def __init__(self, profile: NetworkProfile, roles: Sequence[str] = ROLES) -> None:
        self.profile = profile
        self._stack = ExitStack()
        self._processes: dict[str, Process] = {}
        mtu = packet_bytes(profile)
        try:
            self.hosts = self._stack.enter_context(
                NamespaceHosts(roles, mtu=mtu, window_bytes=_window_bytes(profile, mtu))
            )
            self._stack.callback(lambda: close_all(self._processes.values()))
            self._processes["relay"] = Process(_MODULE, "relay", threads=1, inherit=self.hosts.tuns)
            rate = profile.bytes_per_s
            self._tell("start", tuns=self.hosts.tuns, bytes_per_s=None if rate == float("inf") else rate, delay_s=0.0)
            self.hosts.release_tuns()  # they go with the relay, and connections over them fail instead of waiting
            self._trim()
        except BaseException:
            self.close()
            raise

    def check(self) -> LinkCheck:
        """Measures the link, and sets it anew where it is not as its profile.

        Raises:
            BackendError: nothing comes through.
        """
        return check_link(self.hosts, self.profile, mend=self._trim)

    def dropped_packets(self) -> int:
        """Packets lost on the way since the link was made; there should be none.

        Raises:
            BackendError: the relay is dead, with its last words.
        """
        if death := self._processes["relay"].death():
            raise BackendError(death)
        return self.hosts.dropped_packets()

    def close(self) -> None:
        self._stack.close()
        self._processes.clear()

    def _trim(self) -> None:
        """Sets the delay so that a round trip takes what the profile says."""
        wanted_s = self.profile.rtt_ms / 1e3
        delay_s = wanted_s / 2
        for _ in range(_TRIM_STEPS):
            self._tell("delay", delay_s=delay_s)
            missing_s = wanted_s - round_trip_s(self.hosts, self.profile)
            if abs(missing_s) <= _GOOD_ENOUGH * wanted_s:
                return
            delay_s = min(max(0.0, wanted_s / 2 - _MOST_OWN_S, delay_s + missing_s / 2), wanted_s / 2)

    def _tell(self, command: str, **values: Any) -> None:
        ask(self._processes, ["relay"], {"command": command, **values}, timeout_s=_ANSWER_S)


@cache
def why_no_relay() -> str | None:
    """Why no link can be made here; None if one can."""
    try:
        Namespace(1, mtu=_LEAST_MTU, window_bytes=MAX_PACKET_BYTES).close()
    except BackendError as error:
        return str(error)
    return None


def packet_bytes(profile: NetworkProfile) -> int:
    """The largest IP packet on a link of ``profile``, bytes."""
    if profile.bytes_per_s == float("inf"):
        return MAX_PACKET_BYTES
    return int(min(max(profile.bytes_per_s * _PACKET_S, _LEAST_MTU), MAX_PACKET_BYTES))


def _window_bytes(profile: NetworkProfile, mtu: int) -> int:
    least = _LEAST_WINDOW_PACKETS * (mtu - HEADER_BYTES)
    if profile.bytes_per_s == float("inf"):
        return max(least, 8 << 20)
    return int(min(max(profile.bytes_per_s * (profile.rtt_ms / 1e3 + _QUEUE_S), least), _MOST_WINDOW_BYTES))
