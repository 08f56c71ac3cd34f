"""How a backend can be measured on a network profile here, and the link that does it.

By order of preference: through the relay between namespaces, for every backend whose roles can live apart; by the
channel's own shaping, for those that have it; not at all. A machine without namespaces has no relay.
"""

from __future__ import annotations

from typing import Any, Literal

from pi_runtime.backends import backend_options
from pi_runtime.closing import Closing
from pi_runtime.net.hosts import LOOPBACK_HOSTS
from pi_runtime.net.link import RelayedLink, why_no_relay
from pi_runtime.net.link_check import LinkCheck, check_link
from pi_runtime.net.shaping import NetworkProfile, parse_profile

Shaping = Literal["relay", "channel", "none"]
"""``none``: nothing here behaves like the profile, or it is the bare loopback."""


class Network(Closing):
    """The link of one profile, made when it is needed.

    shaping: what makes it behave like the profile.

    Raises:
        BackendError: the relay does not work.
    """

    def __init__(self, profile: NetworkProfile, shaping: Shaping) -> None:
        self.profile = profile
        self.shaping = shaping
        self._relay = RelayedLink(profile) if shaping == "relay" else None

    def options(self) -> dict[str, Any]:
        """What :func:`pi_runtime.backends.open_backend` must be told to open a backend on this link."""
        if self._relay is not None:
            return {"hosts": self._relay.hosts}
        return {"profile": self.profile.name} if self.shaping == "channel" else {}

    def check(self) -> LinkCheck:
        """Measures the link.

        Raises:
            BackendError: nothing comes through.
        """
        if self._relay is not None:
            return self._relay.check()
        return check_link(LOOPBACK_HOSTS, self.profile, shape=self.shaping == "channel")

    def dropped_packets(self) -> int:
        """Packets lost since the link was made; 0 where there is no relay that could lose one.

        Raises:
            BackendError: the relay is dead.
        """
        return 0 if self._relay is None else self._relay.dropped_packets()

    def close(self) -> None:
        if self._relay is not None:
            self._relay.close()


class Networks:
    """What this machine can do; ``relay`` is whether it may have a relay: if None, found out."""

    def __init__(self, *, relay: bool | None = None) -> None:
        self._told = relay

    def reach(self, backend: str, network: str) -> Literal["measured", "modelled", "no network"]:
        """Whether ``backend`` can be measured on the profile ``network``; ``no network``: none of it leaves a process.

        Raises:
            ConfigError: there is no such backend or profile.
        """
        shaped, options = parse_profile(network).is_shaped, backend_options(backend)
        if not {"port", "hosts", "profile"} & set(options):
            return "no network"
        if not shaped or (("hosts" if self._relay else "profile") in options):
            return "measured"
        return "modelled"

    @property
    def _relay(self) -> bool:
        return why_no_relay() is None if self._told is None else self._told

    def open(self, network: str) -> Network:
        """The link of the profile ``network``.

        Raises:
            ConfigError: there is no such profile.
            BackendError: the relay does not work.
        """
        profile = parse_profile(network)
        if not profile.is_shaped:
            return Network(profile, "none")
        return Network(profile, "relay" if self._relay else "channel")
