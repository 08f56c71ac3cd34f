"""What garbled circuits would take for the same ReLUs: DELPHI's published cost a ReLU. Modelled, and never a row.

Only what scales with the ReLUs is used. The same logs have 0.43 s of linear layers online and 286 s of homomorphic
encryption offline for ResNet18 at 32x32, which do not fall with the ReLUs and are left out; so are rounds, which they
do not state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.links import link_of
from benchmarks.schema import Results, Subject

NAME = "delphi-gc (published)"
SOURCE = (
    "ASPLOS'23 measurements of the DELPHI code base (github.com/kvgarimella/cryptonite, 4dab8f9): ResNet18 at 32x32"
    " with 557,056 garbled-circuit ReLUs of a 41-bit prime field, means of 10 runs; machine and link are not stated"
)

RELUS = 557_056
ONLINE_S = (10.17 + 1.99) / RELUS
"""Seconds a ReLU online: evaluating circuits at the client, encoding labels at the server."""
OFFLINE_S = (17.0 + 4.2) / RELUS
"""Seconds a ReLU offline, both at the server: garbling, encoding."""
ONLINE_BYTES = 1_184
"""A ReLU online, from the server to the client."""
OFFLINE_BYTES = 17_072 + 2_016
"""A ReLU offline: the circuit, oblivious transfer."""


@dataclass(frozen=True, kw_only=True)
class PublishedCost:
    """The ReLUs of one network on one link, alone; ``online_s`` and ``offline_s`` include their bytes' transfer."""

    subject: Subject
    network: str
    online_s: float
    online_bytes: int
    offline_s: float
    offline_bytes: int
    kind: Literal["modelled"] = "modelled"
    backend: str = NAME


def published_costs(results: Results) -> tuple[PublishedCost, ...]:
    """A cost for each network at a budget and each link of the results whose numbers are known."""
    found = []
    for network in results.networks:
        link = link_of(network)
        if link is None:
            continue
        for subject in results.subjects:
            count = subject.relu_count
            found.append(
                PublishedCost(
                    subject=subject,
                    network=network,
                    online_s=count * (ONLINE_S + ONLINE_BYTES / link.bytes_per_s),
                    online_bytes=count * ONLINE_BYTES,
                    offline_s=count * (OFFLINE_S + OFFLINE_BYTES / link.bytes_per_s),
                    offline_bytes=count * OFFLINE_BYTES,
                )
            )
    return tuple(found)
