"""The seconds of a private inference over a link, as a model: a rehearsal on loopback, and the numbers of the link.

Online the parties take turns: a round-trip time for each round, and all bytes at the link's bandwidth, one after the
other; nothing overlaps with computing. Who has waited for a message computes on a core that has gone cold meanwhile:
:data:`WAKING_OF_RTT` and :data:`MOST_WAKING_S` are added to each round.

Offline the dealer computes the material of one layer while the link carries that of the layers before, so that the two
are a line of two machines (a flow shop; Johnson 1954): a layer leaves when it is computed and the link is free. What
waits for the link waits in a socket and stops nobody. All else of the phase (marks and material on disk, opening) comes
before or after. The client's shares go beside the dealer's, and are fewer.

Offline dealer and client compute at the same time, and what carries their bytes (sockets, devices, whatever imitates
the link) takes its part of the same cores: :data:`CARRYING_S_A_BYTE` is added to the computing of each layer.

Not modelled: TLS, packet headers, slow start and loss, and any other machine than that of the rehearsal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pi_runtime.net.shaping import NetworkProfile

WAKING_OF_RTT, MOST_WAKING_S = 0.16, 1.4e-3
"""What a round takes beyond its round trip, as a part of that and at most, in seconds. Of 31 networks on two machines a
round took in the median 0.08 ms more on the LAN and 1.5 ms more on the WAN than loopback and the profile add up to; the
link's own round trip was off by less than 0.05 and 1.3 ms. Nothing between the two was measured."""

CARRYING_S_A_BYTE = 2e-9
"""Seconds by which a byte on a link, of any role, holds up a dealer that computes, on two cores with the relay between
namespaces: fitted by eye to three measurements of 22 networks on two machines, all LAN latencies of which are within
9 % then. The relay's process alone takes 2.6e-9 s a byte of one core."""


@dataclass(frozen=True, kw_only=True)
class DealtLayer:
    """What one step of the dealer's takes offline; ``name`` is the node's.

    seconds: on loopback, from the dealer's computing to handing to the socket. sent_bytes: by role.
    """

    name: str
    seconds: float
    sent_bytes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Modelled seconds of one phase.

    compute_s: as rehearsed on loopback. slowing_s: by which waits and carried bytes hold up the computing.
    overlap_s: what of the transfer passes while computing, and so counts once.
    """

    compute_s: float
    round_trip_s: float
    transfer_s: float
    slowing_s: float = 0.0
    overlap_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.compute_s + self.slowing_s + self.round_trip_s + self.transfer_s - self.overlap_s


def online_latency(compute_s: float, *, rounds: int, sent_bytes: Mapping[str, int], profile: NetworkProfile) -> Latency:
    """Of ``compute_s`` as rehearsed, and the rounds and the bytes by role that the protocol declares."""
    rtt_s = profile.rtt_ms / 1e3
    return Latency(
        compute_s=compute_s,
        slowing_s=rounds * min(WAKING_OF_RTT * rtt_s, MOST_WAKING_S),
        round_trip_s=rounds * rtt_s,
        transfer_s=sum(sent_bytes.values()) / profile.bytes_per_s,
    )


def offline_latency(
    compute_s: float,
    *,
    layers: Sequence[DealtLayer],
    rounds: int,
    sent_bytes: Mapping[str, int],
    profile: NetworkProfile,
) -> Latency:
    """As :func:`online_latency`, of a bundle whose ``layers`` are dealt in their order, as part of ``compute_s``."""
    carrying_s = CARRYING_S_A_BYTE if profile.is_shaped else 0.0
    computing = [layer.seconds + carrying_s * sum(layer.sent_bytes.values()) for layer in layers]
    carried = [layer.sent_bytes["dealer"] / profile.bytes_per_s for layer in layers]
    return Latency(
        compute_s=compute_s,
        slowing_s=carrying_s * sum(sum(layer.sent_bytes.values()) for layer in layers),
        round_trip_s=rounds * profile.rtt_ms / 1e3,
        transfer_s=max(sent_bytes.values()) / profile.bytes_per_s,
        overlap_s=sum(computing) + sum(carried) - _in_line(computing, carried),
    )


def _in_line(computing: Sequence[float], carried: Sequence[float]) -> float:
    """When the last of many parts has been carried, each of which is computed first; both in their order."""
    computed = free = 0.0
    for compute_s, carry_s in zip(computing, carried, strict=True):
        computed += compute_s
        free = max(computed, free) + carry_s
    return free
