"""Network namespaces, one a role, each with a TUN device that is its only way out: hosts on one machine.

A namespace lives as long as a descriptor, a socket or a process in it, and a TUN device as long as its descriptor. So
nothing is left behind, however the program ends, and no name is taken that another could use.

The hosts have addresses in 127.77.0.0/24. Such addresses never leave a machine; the kernel lets these out of one device
(``route_localnet``), into the hands of the relay. Parties that speak plain TCP to loopback addresses alone can thus be
put into namespaces without being told anything else.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pi_runtime.closing import Closing
from pi_runtime.errors import BackendError
from pi_runtime.net.hosts import Hosts

DEVICE = "pi0"
HEADER_BYTES = 40
"""IPv4 and TCP without options."""

_CLONE_NEWNET = 0x40000000
# <linux/if_tun.h>, <linux/sockios.h>, <linux/if.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_IFF_UP = 1

_QUEUE_PACKETS = 20_000
"""What the device holds while the relay does not read. TCP's windows end far below it: nothing is dropped."""

_RETRIES = 6
"""Retransmissions before a connection is given up (some 25 s): a relay that died must not hold a party for minutes."""


class Namespace(Closing):
    """A network namespace of one host and the TUN device in it.

    number: of the host, from 1. mtu: of the device, bytes. window_bytes: what a connection may have under way; the rest
    waits in the sender's socket, so that the link's queue stays short.

    Raises:
        BackendError: this process may not make one (it takes root and /dev/net/tun).
    """

    def __init__(self, number: int, *, mtu: int, window_bytes: int) -> None:
        self.address = f"127.77.0.{number}"
        self._descriptor = -1
        self.tun = -1
        try:
            with _returning():
                _libc("unshare", _CLONE_NEWNET)
                self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._configure(mtu, window_bytes)
        except OSError as error:
            self.close()
            raise BackendError(
                f"no network namespace with a TUN device can be made here ({error}); it takes Linux, root and"
                " /dev/net/tun"
            ) from error

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the block this thread is in the namespace."""
        with _returning():
            _libc("setns", self._descriptor, _CLONE_NEWNET)
            yield

    def dropped_packets(self) -> int:
        """Packets that the device had no room for since it was made.

        Raises:
            BackendError: nobody has the device open any more, so it is gone.
        """
        with self.entered():
            lines = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
        for name, _, counts in (line.strip().partition(":") for line in lines):
            if name == DEVICE:
                received, sent = int(counts.split()[3]), int(counts.split()[11])
                return received + sent
        raise BackendError(f"the device {DEVICE} of {self.address} is gone")

    def release_tun(self) -> None:
        """Lets go of the device, which from now on lives as long as another process has it open; safe to call twice."""
        if self.tun >= 0:
            os.close(self.tun)
        self.tun = -1

    def close(self) -> None:
        self.release_tun()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _configure(self, mtu: int, window_bytes: int) -> None:
        fcntl.ioctl(self.tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
        with suppress(FileNotFoundError):  # a kernel without IPv6
            _write("/proc/sys/net/ipv6/conf/all/disable_ipv6", 1)
        _write(f"/proc/sys/net/ipv4/conf/{DEVICE}/route_localnet", 1)
        _write("/proc/sys/net/ipv4/tcp_slow_start_after_idle", 0)
        _write("/proc/sys/net/ipv4/tcp_retries2", _RETRIES)
        # More than the window: the kernel keeps its own book-keeping in there, from a tenth up to a half.
        buffer_bytes = window_bytes * 3 // 2
        _write("/proc/sys/net/ipv4/tcp_rmem", f"4096 {buffer_bytes} {buffer_bytes}")
        _write("/proc/sys/net/ipv4/tcp_wmem", f"4096 {1 << 20} {max(4 << 20, 4 * window_bytes)}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for name in ("lo", DEVICE):
                if name == DEVICE:
                    _set(control, _SIOCSIFADDR, name, socket.inet_aton(self.address))
                    _set_number(control, _SIOCSIFMTU, name, mtu)
                    _set_number(control, _SIOCSIFTXQLEN, name, _QUEUE_PACKETS)
                _bring_up(control, name)
            # Once up, `lo` has 127.0.0.1/8 and would take in the other hosts' addresses.
            _set(control, _SIOCSIFNETMASK, "lo", socket.inet_aton("255.255.255.255"))
            _set(control, _SIOCSIFNETMASK, DEVICE, socket.inet_aton("255.255.255.0"))


class NamespaceHosts(Hosts, Closing):
    """A namespace for each of ``roles``; arguments and errors of :class:`Namespace`."""

    interface = DEVICE

    def __init__(self, roles: Sequence[str], *, mtu: int, window_bytes: int) -> None:
        self._namespaces: dict[str, Namespace] = {}
        try:
            for number, role in enumerate(roles, start=1):
                self._namespaces[role] = Namespace(number, mtu=mtu, window_bytes=window_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def tuns(self) -> list[int]:
        """Descriptors of the TUN devices, in the order of the hosts' numbers."""
        return [namespace.tun for namespace in self._namespaces.values()]

    def address(self, role: str) -> str:
        return self._namespaces[role].address

    @contextmanager
    def at(self, role: str) -> Iterator[None]:
        with self._namespaces[role].entered():
            yield

    def dropped_packets(self) -> int:
        """Packets lost for want of room at any host."""
        return sum(namespace.dropped_packets() for namespace in self._namespaces.values())

    def release_tuns(self) -> None:
        """Lets go of the devices: see :meth:`Namespace.release_tun`."""
        for namespace in self._namespaces.values():
            namespace.release_tun()

    def close(self) -> None:
        for namespace in self._namespaces.values():
            namespace.close()
        self._namespaces.clear()


@contextmanager
def _returning() -> Iterator[None]:
    """Brings this thread back into the namespace that it is in."""
    origin = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _libc("setns", origin, _CLONE_NEWNET)
        finally:
            os.close(origin)


def _libc(function: str, *arguments: int) -> None:
    """Calls ``unshare`` or ``setns``, which Python has from 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, function):
        raise OSError(f"this system has no {function}")
    if getattr(library, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _write(path: str, value: object) -> None:
    Path(path).write_text(f"{value}\n", encoding="ascii")


def _set(control: socket.socket, request: int, name: str, address: bytes) -> None:
    fcntl.ioctl(control, request, struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, address))


def _set_number(control: socket.socket, request: int, name: str, value: int) -> None:
    fcntl.ioctl(control, request, struct.pack("16si20x", name.encode(), value))


def _bring_up(control: socket.socket, name: str) -> None:
    flags = struct.unpack("16sH22x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", name.encode())))[1]
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
