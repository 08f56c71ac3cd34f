"""Bytes that this process sent and received over TCP, read at its sockets.

Linux keeps, for each TCP socket, the bytes sent, retransmitted and still queued (``tcp_info``). Their balance is what
the process handed to the socket: exact, framing of libraries included, retransmissions not, and independent of how far
the kernel got, so that consecutive readings never lose or double a byte.
"""

from __future__ import annotations

import os
import socket
import struct

# Offsets in struct tcp_info of <linux/tcp.h>; the kernel only ever appends to it.
_RECEIVED = (128, "<Q")
_NOT_SENT = (144, "<I")
_SENT = (200, "<Q")
_RETRANSMITTED = (208, "<Q")
_INFO_BYTES = 216


class SocketMeter:
    """Adds up the traffic of all TCP sockets of this process; works where :func:`tcp_info_works`.

    A connection that was opened and closed between two readings is not seen.
    """

    def __init__(self) -> None:
        self._sockets: dict[int, tuple[int, int]] = {}

    def read(self) -> tuple[int, int]:
        """Bytes sent and received so far; a socket that was closed keeps its last figures."""
        self._sockets.update(_read_sockets())
        return (
            sum(sent for sent, _ in self._sockets.values()),
            sum(received for _, received in self._sockets.values()),
        )


def tcp_info_works() -> bool:
    """Whether this kernel tells the bytes sent on a TCP socket (Linux from 4.19 on)."""
    if not hasattr(socket, "TCP_INFO") or not os.path.isdir("/proc/self/fd"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            return len(probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)) == _INFO_BYTES
        except OSError:
            return False


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
