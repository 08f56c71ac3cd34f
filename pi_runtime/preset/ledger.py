"""What all connections of one role carried, those that ended included."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pi_runtime.net.channel import Channel
from pi_runtime.net.traffic import Counts, Traffic


class Ledger:
    """Adds up the traffic of a role's channels, by tag."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Channel] = []
        self._ended: dict[str, Counts] = {}

    def open(self, channel: Channel) -> None:
        """Counts ``channel`` from its beginning on."""
        with self._lock:
            self._open.append(channel)

    def close(self, channel: Channel) -> None:
        """Keeps the last figures of ``channel``."""
        with self._lock:
            self._open.remove(channel)
            _add(self._ended, channel.traffic())

    @contextmanager
    def counting(self, channel: Channel) -> Iterator[None]:
        """Opens, and closes at the end of the block."""
        self.open(channel)
        try:
            yield
        finally:
            self.close(channel)

    def traffic(self) -> Traffic:
        """All traffic since the role began. Exact while no channel is sending or receiving."""
        with self._lock:
            total = dict(self._ended)
            for channel in self._open:
                _add(total, channel.traffic())
        return Traffic(total)


def _add(total: dict[str, Counts], traffic: Traffic) -> None:
    for tag, counts in traffic.by_tag.items():
        total[tag] = total.get(tag, Counts()) + counts
