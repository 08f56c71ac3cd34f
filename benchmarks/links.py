"""What the link adds to a latency in seconds, from counts: round trips, and the bytes that must follow one another.

A link has one bandwidth in each direction. Where two parties take turns, every byte waits for the one before it,
whoever sends it; where they send at the same time, the direction that carries most decides. The first is how `preset`
works online: each message answers the one before. Of everything else no more is assumed than the second, which is
never too long. So with rounds: one is a round trip where a message answers another, and one way of the link where both
sent at the same time. SPU counts both kinds alike (:mod:`pi_runtime.spu.link_log`), so each of its rounds is taken for
the shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.schema import Phase, Results, SentBytes
from pi_runtime.errors import ConfigError
from pi_runtime.net.shaping import parse_profile

_TAKES_TURNS = frozenset((("preset", "online"),))
_ROUNDS_ARE_ONE_WAY = frozenset(("spu-cheetah", "spu-semi2k"))


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symmetric link.

    rtt_s: round-trip time in seconds. bytes_per_s: of one direction; infinite where nothing limits it.
    """

    rtt_s: float
    bytes_per_s: float


def link_of(network: str) -> Link | None:
    """The link of a profile, by its name or numbers; None where neither says what it is."""
    try:
        profile = parse_profile(network)
    except ConfigError:
        return None
    return Link(rtt_s=profile.rtt_ms / 1e3, bytes_per_s=profile.bytes_per_s)


def link_in(results: Results, network: str) -> Link | None:
    """The link of ``network`` as it was measured for the results, in medians; what was not is the profile's."""
    profile = link_of(network)
    record = next((record for record in results.links if record.network == network), None)
    if profile is None or record is None:
        return profile
    rtt_ms, bandwidth_mbps = record.measured_rtt_ms, record.measured_bandwidth_mbps
    return Link(
        rtt_s=median(rtt_ms) / 1e3 if rtt_ms else profile.rtt_s,
        bytes_per_s=median(bandwidth_mbps) * 1e6 / 8 if any(bandwidth_mbps) else profile.bytes_per_s,
    )


def serial_bytes(backend: str, phase: Phase, sent: SentBytes) -> int:
    """The bytes of a phase that no two of can be on their way at once; see the module."""
    if (backend, phase) in _TAKES_TURNS:
        return sent.total
    return max(sent.client, sent.server, sent.dealer)


def serial_rounds(backend: str, rounds: float) -> float:
    """The round trips that so many rounds of a backend take at least; see the module."""
    return rounds / 2 if backend in _ROUNDS_ARE_ONE_WAY else rounds


def link_seconds(link: Link, rounds: float, transferred: float) -> float:
    """``rounds * RTT + bytes / bandwidth``; ``transferred`` as :func:`serial_bytes` counts."""
    return rounds * link.rtt_s + transferred / link.bytes_per_s


def least_link_seconds(link: Link, backend: str, phase: Phase, rounds: float, sent: SentBytes) -> float:
    """What a link adds at least to a phase of a backend, from its rounds and bytes; see the module."""
    return link_seconds(link, serial_rounds(backend, rounds), serial_bytes(backend, phase, sent))
