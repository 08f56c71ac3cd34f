"""Which backend is measured on which network, and the links of a measurement, open and checked.

A backend without a network is measured on loopback, whatever was asked for. What cannot be measured on a network here
is modelled from its measurement on loopback, which is then made as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Protocol

from benchmarks.errors import MeasureError
from benchmarks.schema import LOOPBACK, LinkRecord, Results, Shaping
from benchmarks.sweep import Progress
from pi_runtime.errors import PiError
from pi_runtime.net.link_check import TOLERANCE, LinkCheck
from pi_runtime.net.shaping import parse_profile

Reach = Literal["measured", "modelled", "no network"]
log = logging.getLogger(__name__)


class Link(Protocol):
    """One network, made; as :class:`pi_runtime.networks.Network`."""

    @property
    def shaping(self) -> Shaping: ...

    def options(self) -> dict[str, Any]: ...

    def check(self) -> LinkCheck: ...

    def dropped_packets(self) -> int: ...

    def close(self) -> None: ...


class Links(Protocol):
    """What a machine can do for networks; as :class:`pi_runtime.networks.Networks`."""

    def reach(self, backend: str, network: str) -> Reach: ...

    def open(self, network: str) -> Link: ...


@dataclass(frozen=True, kw_only=True)
class Placement:
    """measured: the backends on each network, in the order of the visits; loopback is always there, maybe for none.

    modelled: backend and network of what is computed.
    """

    measured: Mapping[str, tuple[str, ...]]
    modelled: tuple[tuple[str, str], ...]


def place(backends: Sequence[str], networks: Sequence[str], reach: Callable[[str, str], Reach]) -> Placement:
    """Shares out backends among networks.

    Raises:
        MeasureError: there is no network.
        ConfigError: of ``reach``: there is no such backend or profile.
    """
    if not networks:
        raise MeasureError("networks must name at least one network")
    asked = dict.fromkeys(networks)
    measured: dict[str, dict[str, None]] = {name: {} for name in (asked if LOOPBACK in asked else (LOOPBACK, *asked))}
    modelled = []
    for network in asked:
        for backend in backends:
            way = "measured" if network == LOOPBACK else reach(backend, network)
            measured[network if way == "measured" else LOOPBACK][backend] = None
            if way == "modelled":
                modelled.append((backend, network))
    return Placement(
        measured={network: tuple(name for name in backends if name in found) for network, found in measured.items()},
        modelled=tuple(modelled),
    )


class OpenLinks:
    """The links of a measurement: made and checked at their first use, and kept to its end."""

    def __init__(self, links: Links, progress: Progress) -> None:
        self.progress = progress
        self.reach = links.reach
        self._links = links
        self._stack = ExitStack()
        self._open: dict[str, Link] = {}
        self._dropped: dict[str, int] = {}

    def ready(self, network: str, results: Results) -> Results:
        """Makes and checks the link, unless it is there; returns ``results`` with the check.

        Raises:
            MeasureError: ``results`` has figures on this network that were shaped in another way.
            BackendError: the link does not work.
        """
        if network == LOOPBACK or network in self._open:
            return results
        label = f"{network}: link"
        self.progress(label, 0, 2)
        link = self._links.open(network)
        self._stack.callback(link.close)
        record = _record(results, network, link.shaping)
        self.progress(label, 1, 2)
        check = link.check()
        record = record.model_copy(
            update={
                "measured_rtt_ms": (*record.measured_rtt_ms, check.rtt_ms),
                "measured_bandwidth_mbps": (*record.measured_bandwidth_mbps, *check.bandwidth_mbps),
            }
        )
        self._open[network], self._dropped[network] = link, record.dropped_packets
        self.progress(label, 2, 2)
        if not check.is_as(parse_profile(network)):
            log.warning("%s", link_problem(record))
        return _with(results, record)

    def options(self, network: str) -> dict[str, Any]:
        """What the opener must be told to open a backend on ``network``."""
        return {} if network == LOOPBACK else self._open[network].options()

    def after(self, network: str, results: Results) -> Results:
        """``results`` with the packets that the link has lost by now."""
        record = results.link(network)
        if network == LOOPBACK or record is None:
            return results
        dropped = self._dropped[network] + self._open[network].dropped_packets()
        if dropped == record.dropped_packets:
            return results
        record = record.model_copy(update={"dropped_packets": dropped})
        log.warning("%s", link_problem(record))
        return _with(results, record)

    @contextmanager
    def blaming(self, networks: Iterable[str]) -> Iterator[None]:
        """Where the block fails because one of the links is dead, that is what is told."""
        try:
            yield
        except PiError as error:
            for network in networks:
                if network in self._open:
                    try:
                        self._open[network].dropped_packets()
                    except PiError as death:
                        raise death from error
            raise

    def close(self) -> None:
        """Ends all links; safe to call twice."""
        self._stack.close()
        self._open.clear()


def unlinked(network: str, results: Results) -> Results:
    """``results`` with the profile of ``network``, where nothing was measured on it."""
    return results if results.link(network) else _with(results, _record(results, network, "none"))


def link_line(record: LinkRecord) -> str:
    """One link as a line: the profile, what shaped it, and what was measured."""
    bandwidth = "unlimited" if record.bandwidth_mbps is None else f"{record.bandwidth_mbps:g} Mbit/s"
    line = f"{record.network}: {bandwidth}, RTT {record.rtt_ms:g} ms"
    if record.shaping == "none":
        return f"{line}; modelled only, nothing here behaves so"
    rates = f"{_span(record.measured_bandwidth_mbps)} Mbit/s, RTT {_span(record.measured_rtt_ms)} ms"
    return f"{line}; by the {record.shaping}, measured {rates}, {record.dropped_packets} packets lost"


def link_problem(record: LinkRecord) -> str | None:
    """What is wrong with a link in one sentence; None where every check was within the tolerance and nothing lost."""
    nominal = [(found, record.rtt_ms) for found in record.measured_rtt_ms]
    nominal += [(found, record.bandwidth_mbps or 0.0) for found in record.measured_bandwidth_mbps]
    off = max((abs(found - wanted) / wanted for found, wanted in nominal if wanted), default=0.0)
    if off > TOLERANCE:
        return f"the link {link_line(record)}: off by {off:.0%}; latencies on it are not those of the profile"
    if record.dropped_packets:
        return f"the link {link_line(record)}; latencies on it hold waits for lost packets"
    return None


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _record(results: Results, network: str, shaping: Shaping) -> LinkRecord:
    """What ``results`` has of the link, else a new entry."""
    known = results.link(network)
    if known is not None and known.shaping not in ("none", shaping):
        raise MeasureError(
            f"the figures on {network} so far were shaped by the {known.shaping}, and here it would be the {shaping};"
            " finish them where they were begun, or give another --output"
        )
    if known is not None:
        return known.model_copy(update={"shaping": shaping})
    profile = parse_profile(network)
    return LinkRecord(
        network=network,
        shaping=shaping,
        rtt_ms=profile.rtt_ms,
        bandwidth_mbps=profile.bandwidth_mbps if isfinite(profile.bandwidth_mbps) else None,
    )


def _with(results: Results, record: LinkRecord) -> Results:
    others = [link for link in results.links if link.network != record.network]
    return results.model_copy(update={"links": (*others, record)})
