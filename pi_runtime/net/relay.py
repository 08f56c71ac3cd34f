"""The wire between hosts: a process that carries IP packets from TUN device to TUN device, late and paced.

``python -m pi_runtime.net.relay``, started by :mod:`pi_runtime.net.link` alone. Model of the link from one host to
another, each pair and direction its own: a packet begins to leave when it has arrived here and the link is free, takes
its length over the bandwidth, and is delivered ``delay_s`` after its last byte has left. As on a wire, packets of one
direction keep their order, and none is lost: where too much waits, the device is not read, and TCP's windows stop the
sender long before the device is full.

The wait for an instant sleeps first and spins at the end. The process asks for real-time scheduling, as a wire does not
wait for a processor, and goes without where it does not get it.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pi_runtime.child.control import Control
from pi_runtime.net.punctual import punctual

MAX_PACKET_BYTES = 65_535
_BACKLOG_BYTES = 64 << 20
"""A host's device is not read while this much of its packets waits here."""

_READS_AT_ONCE = 32
_SPIN_S = 60e-6


@dataclass(eq=False)
class Lane:
    """One direction between two hosts: packets under way, by the instant at which they are due."""

    target: int
    free_at: float = 0.0
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)


class Relay:
    """The lanes between hosts; ``tuns`` holds their devices, host 1 first.

    bytes_per_s: of each lane, infinity for no limit. delay_s: of each lane; may be changed at any time.
    """

    def __init__(self, tuns: list[int], *, bytes_per_s: float, delay_s: float) -> None:
        self.delay_s = delay_s
        self.packets = self.most_waiting = 0
        self._bytes_per_s = bytes_per_s
        self._waiting = dict.fromkeys(tuns, 0)
        self._lanes = {
            source: {number: Lane(target) for number, target in enumerate(tuns, start=1) if target != source}
            for source in tuns
        }
        self._every_lane = [(source, lane) for source, lanes in self._lanes.items() for lane in lanes.values()]

    def readable(self) -> list[int]:
        """The devices from which packets may be taken now."""
        return [tun for tun, waiting in self._waiting.items() if waiting < _BACKLOG_BYTES]

    def take(self, tun: int) -> None:
        """Puts what the device has onto its lanes. What is not for a host of this net (broadcast) ends here."""
        lanes = self._lanes[tun]
        for _ in range(_READS_AT_ONCE):
            try:
                packet = os.read(tun, MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            lane = lanes.get(packet[19]) if packet[0] >> 4 == 4 and len(packet) >= 20 else None
            if lane is None:
                continue
            lane.free_at = max(time.monotonic(), lane.free_at) + len(packet) / self._bytes_per_s
            lane.queue.append((lane.free_at + self.delay_s, packet))
            self.packets += 1
            self._waiting[tun] += len(packet)
            self.most_waiting = max(self.most_waiting, self._waiting[tun])

    def deliver(self) -> float:
        """Delivers what is due; returns the instant at which the next packet is, infinity if there is none."""
        following = float("inf")
        for source, lane in self._every_lane:
            queue = lane.queue
            while queue and queue[0][0] <= time.monotonic():
                packet = queue[0][1]
                try:
                    os.write(lane.target, packet)
                except BlockingIOError:
                    break  # no memory for it just now: it stays the first
                queue.popleft()
                self._waiting[source] -= len(packet)
            if queue:
                following = min(following, queue[0][0])
        return following


def run(relay: Relay, control: Control) -> None:
    """Carries packets and answers ``control`` until that is closed.

    Raises:
        EOFError: it is closed.
    """
    while True:
        left = relay.deliver() - time.monotonic()
        timeout = None if left == float("inf") else max(0.0, left - _SPIN_S)
        orders = control.fileno()
        for source in select.select([orders, *relay.readable()], [], [], timeout)[0]:
            if source == orders:
                control.send(_answer(relay, control.receive()[0]))
            else:
                relay.take(source)


def _answer(relay: Relay, header: dict[str, Any]) -> dict[str, Any]:
    if header["command"] == "delay":
        relay.delay_s = float(header["delay_s"])
    return {"packets": relay.packets, "most_waiting_bytes": relay.most_waiting}


def main() -> None:
    """Runs over the control descriptor in the first argument; the first command names the devices."""
    control = Control(socket.socket(fileno=int(sys.argv[1])))
    try:
        header, _ = control.receive()
        rate = header["bytes_per_s"]
        relay = Relay(
            [int(tun) for tun in header["tuns"]],
            bytes_per_s=float("inf") if rate is None else float(rate),
            delay_s=float(header["delay_s"]),
        )
        gc.disable()
        control.send({})
        with punctual():
            run(relay, control)
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    main()
