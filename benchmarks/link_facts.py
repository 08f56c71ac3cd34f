"""What a reader wants to know of each link: what it should be, what made it so, and what it was measured to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks import units
from benchmarks.schema import LinkRecord, Results

_BY = {
    "relay": "a relay between network namespaces",
    "channel": "the channel's own shaping",
    "none": "nothing here could shape it",
}


@dataclass(frozen=True, kw_only=True)
class LinkFact:
    """One link in words."""

    network: str
    text: str


def link_facts(results: Results) -> tuple[LinkFact, ...]:
    """The links other than loopback that the results describe."""
    return tuple(LinkFact(network=link.network, text=_text(link)) for link in results.links)


def _text(link: LinkRecord) -> str:
    bandwidth = "no limit" if link.bandwidth_mbps is None else f"{link.bandwidth_mbps:g} Mbit/s each way"
    parts = [f"{link.rtt_ms:g} ms round trip, {bandwidth}, by {_BY.get(link.shaping, link.shaping)}"]
    parts += _measured("round trip", link.measured_rtt_ms, "ms")
    parts += _measured("transfer", link.measured_bandwidth_mbps, "Mbit/s")
    if link.dropped_packets:
        parts.append(f"{units.count(link.dropped_packets)} packets lost, which spoils its figures")
    return "; ".join(parts)


def _measured(what: str, values: Sequence[float], unit: str) -> list[str]:
    if not values:
        return []
    middle, low, high = (units.significant(value) for value in (median(values), min(values), max(values)))
    return [f"measured {what} {middle} {unit} ({low} to {high}, {len(values)} times)"]
