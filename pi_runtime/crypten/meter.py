"""What one process of the `crypten` backend sent, read at its sockets.

Linux keeps, for each TCP socket, the bytes sent, retransmitted and still queued (``tcp_info``). Their balance is what
the process handed to the socket: exact, gloo's framing included, retransmissions not, and independent of how far the
kernel got, so that consecutive readings never lose or double a byte. Where the kernel does not tell (macOS, Linux
before 4.19) the figure is CrypTen's own estimate and says so (``byte_source``).

Rounds are counted as CrypTen's communicator counts them: one for each of its collective calls. Messages are this
process's sends at the same interface, one a tensor (gloo may cut one into several).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

ByteSource = Literal["tcp_info", "communicator"]

# Offsets in struct tcp_info of <linux/tcp.h>; the kernel only ever appends to it.
_RECEIVED = (128, "<Q")
_NOT_SENT = (144, "<I")
_SENT = (200, "<Q")
_RETRANSMITTED = (208, "<Q")
_INFO_BYTES = 216


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Totals since the process started.

    sent_bytes: handed to TCP sockets; received_bytes: arrived on them (0 where the kernel does not tell).
    messages, rounds: see the module.
    """

    sent_bytes: int
    received_bytes: int
    messages: int
    rounds: int


class Meter:
    """Reads the traffic of this process.

    Create it before the first connection; call :meth:`watch` once CrypTen has its communicator.
    """

    def __init__(self) -> None:
        self.byte_source: ByteSource = "tcp_info" if _tcp_info_works() else "communicator"
        self._sockets: dict[int, tuple[int, int]] = {}
        self._communicator: Any = None
        self._messages = 0

    def watch(self, communicator: Any) -> None:
        """Counts messages and rounds of ``communicator`` (CrypTen's, its ``verbose`` setting on) from now on."""
        self._communicator = communicator
        rank = communicator.get_rank()

        def sends(name: str, args: tuple[Any, ...]) -> int:
            tensors = len(args[0]) if isinstance(args[0], list) else 1
            match name:
                case "all_reduce":
                    return tensors
                case "reduce" | "gather":
                    return 0 if args[1] == rank else tensors
                case "broadcast":
                    return tensors if args[1] == rank else 0
                case "send_obj":
                    return 2  # its length, then the object
            return 1

        for name in ("all_reduce", "reduce", "gather", "broadcast", "send", "isend", "send_obj"):
            setattr(communicator, name, self._counted(getattr(communicator, name), name, sends))

    def read(self) -> Reading:
        """The totals up to now."""
        rounds, estimate = 0, 0
        if self._communicator is not None:
            rounds = int(self._communicator.comm_rounds)
            # Both directions are in CrypTen's figure; in its two-party collectives they are equal.
            estimate = int(self._communicator.comm_bytes) // 2
        if self.byte_source == "communicator":
            return Reading(sent_bytes=estimate, received_bytes=0, messages=self._messages, rounds=rounds)
        # A socket that was closed keeps its last figures.
        self._sockets.update(_read_sockets())
        return Reading(
            sent_bytes=sum(sent for sent, _ in self._sockets.values()),
            received_bytes=sum(received for _, received in self._sockets.values()),
            messages=self._messages,
            rounds=rounds,
        )

    def _counted(
        self, method: Callable[..., Any], name: str, sends: Callable[[str, tuple[Any, ...]], int]
    ) -> Callable[..., Any]:
        @wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._messages += sends(name, args)
            return method(*args, **kwargs)

        return counted


def _read_sockets() -> dict[int, tuple[int, int]]:
    """Bytes (sent, received) of each TCP connection that this process has open, by inode."""
    found: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    found[os.fstat(connection.fileno()).st_ino] = _traffic(connection)
        except OSError:
            continue  # closed by another thread while we looked
    return found


def _traffic(connection: socket.socket) -> tuple[int, int]:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    sent, again, queued, received = (
        struct.unpack_from(code, info, offset)[0] for offset, code in (_SENT, _RETRANSMITTED, _NOT_SENT, _RECEIVED)
    )
    return sent - again + queued, received


def _tcp_info_works() -> bool:
    """Whether this kernel tells the bytes sent on a TCP socket."""
    if not hasattr(socket, "TCP_INFO") or not os.path.isdir("/proc/self/fd"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            return len(probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)) == _INFO_BYTES
        except OSError:
            return False
