"""The seconds of a private inference over a link, as a model: a rehearsal on loopback, and the numbers of the link.

Online the parties take turns: a round-trip time for each round, and all bytes at the link's bandwidth, one after the
other; nothing overlaps with computing.

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

    compute_s: as rehearsed on loopback. carrying_s: by which the link's bytes hold up the computing.
    overlap_s: what of the transfer passes while computing, and so counts once.
    """

    compute_s: float
    round_trip_s: float
    transfer_s: float
    carrying_s: float = 0.0
    overlap_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.compute_s + self.carrying_s + self.round_trip_s + self.transfer_s - self.overlap_s


def online_latency(compute_s: float, *, rounds: int, sent_bytes: Mapping[str, int], profile: NetworkProfile) -> Latency:
    """Of ``compute_s`` as rehearsed, and the rounds and the bytes by role that the protocol declares."""
    return Latency(
        compute_s=compute_s,
        round_trip_s=rounds * profile.rtt_ms / 1e3,
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
        carrying_s=carrying_s * sum(sum(layer.sent_bytes.values()) for layer in layers),
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
