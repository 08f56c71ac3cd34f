"""Where a party meets its peers: connecting, listening, TLS and the greeting that ends in a :class:`Channel`.

Example (a server, and a client on the same machine without TLS)::

    server = Endpoint(Identity("server", "server"), prg="chacha20", insecure_loopback=True)
    with server.listen("127.0.0.1:7700") as listener:
        while (connection := listener.accept(timeout_s=1.0)) is None:
            ...
        channel = server.greet(connection, ("client",))

    client = Endpoint(Identity("client", "alice"), prg="chacha20", insecure_loopback=True)
    channel = client.connect("127.0.0.1:7700", "server")
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from pi_runtime.closing import Closing
from pi_runtime.errors import BackendError, ConfigError, RemoteProtocolError
from pi_runtime.net.channel import Channel
from pi_runtime.net.messages import ErrorCode, Identity, Kind
from pi_runtime.net.order import Session
from pi_runtime.net.shaping import PROFILES, NetworkProfile, ShapedTransport
from pi_runtime.net.tls import Credentials, TlsTransport
from pi_runtime.net.transport import SocketTransport, Timeouts, Transport

_RETRY_S = 0.1


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 lets a listener choose.

    Raises:
        ConfigError: malformed.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or (":" in host and not text.startswith("[")) or not port.isascii() or not port.isdigit():
        raise ConfigError(f"an address must be HOST:PORT or [IPV6]:PORT, got {text!r}")
    if int(port) > 65_535:
        raise ConfigError(f"a port must be at most 65,535, got {port}")
    return host, int(port)


class Listener(Closing):
    """A bound socket that accepts connections. ``address`` is ``HOST:PORT`` as bound."""

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        host, port = bound.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def accept(self, *, timeout_s: float) -> socket.socket | None:
        """The next connection, not yet greeted; None if none comes in time. Greet it in a thread of its own."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.accept()[0]
        except TimeoutError:
            return None
        except OSError as error:
            raise BackendError(f"cannot accept connections on {self.address}: {error.strerror}") from error

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class Endpoint:
    """One party's way to meet others.

    identity: who this party is. prg: name of the generator that expands seeds, which both sides must share.
    credentials: for mutual TLS. insecure_loopback: plain TCP instead, on loopback addresses only; the peer's role and
    name are then its word. profile: the network that is imitated (give both sides the same).
    """

    identity: Identity
    prg: str
    credentials: Credentials | None = None
    insecure_loopback: bool = False
    profile: NetworkProfile = PROFILES["loopback"]
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        if (self.credentials is None) != self.insecure_loopback:
            raise ConfigError("give either a certs directory or the insecure_loopback flag (plain TCP), and not both")
        if self.credentials is not None and self.credentials.identity != self.identity:
            raise ConfigError(f"{self.identity} has the certificate of {self.credentials.identity}; give its own")

    def listen(self, address: str) -> Listener:
        """Binds ``address`` (``HOST:PORT``).

        Raises:
            ConfigError: malformed, unknown, or not loopback where TLS is off.
            BackendError: it is in use or not of this machine.
        """
        try:
            family, target = self._resolve(address)
        except socket.gaierror as error:
            raise ConfigError(f"the host of {address} is unknown: {error.strerror}") from error
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(target)
            bound.listen(64)
        except OSError as error:
            bound.close()
            raise BackendError(f"cannot listen on {address}: {error.strerror}; choose another address") from error
        return Listener(bound)

    def connect(self, address: str, role: str, name: str | None = None) -> Channel:
        """Connects to the ``role`` at ``address``, trying until ``connect_s`` has passed, and greets it.

        name: the only party of that role that will do; any name that the CA certified if None.

        Raises:
            ConfigError: the address is malformed, or not loopback where TLS is off.
            RemoteProtocolError: nobody answers in time, or who answers is not ``role``, or not called ``name``.
        """
        deadline = time.monotonic() + self.timeouts.connect_s
        while True:
            try:
                connection = self._try_connect(address, deadline)
                break
            except OSError as error:
                if time.monotonic() + _RETRY_S >= deadline:
                    raise RemoteProtocolError(
                        f"no {role} answers at {address} within {self.timeouts.connect_s:g} s "
                        f"({error.strerror or error}); start it, or check the address"
                    ) from error
                time.sleep(_RETRY_S)
        return self.greet_over(SocketTransport(connection), (role,), name=name, connector=True)

    def greet(self, connection: socket.socket, roles: Collection[str]) -> Channel:
        """Greets whoever connected; ``roles`` are welcome.

        Raises:
            RemoteProtocolError: it broke TLS or the greeting, is of another role, or took too long. The connection is
                closed.
        """
        return self.greet_over(SocketTransport(connection), roles, connector=False)

    def greet_over(
        self, transport: Transport, roles: Collection[str], *, connector: bool, name: str | None = None
    ) -> Channel:
        """As :meth:`connect` and :meth:`greet`, over any transport, of which it takes ownership."""
        deadline = time.monotonic() + self.timeouts.handshake_s
        peer = Identity(" or ".join(roles), name or "unknown")
        wanted = peer if name else f"a {peer.role}"
        certified: Identity | None = None
        try:
            if self.profile.is_shaped:
                transport = ShapedTransport(transport, self.profile)
            if self.credentials is not None:
                transport = TlsTransport(transport, self.credentials, accepting=not connector)
                certified = transport.handshake(deadline=deadline)
        except OSError as error:
            transport.close()
            raise RemoteProtocolError(f"no TLS with the {peer.role}: {error.strerror or error}") from error
        except BaseException:
            transport.close()
            raise
        session = Session(connector=connector)
        channel = Channel(transport, session, peer=certified or peer, timeouts=self.timeouts)
        try:
            if connector:
                self._hello(channel)
            body = channel.recv_control(Kind.HELLO, within_s=max(deadline - time.monotonic(), 0.0)).body
            channel.peer = stated = Identity(str(body["role"]), str(body["name"]))
            if certified is not None and stated != certified:
                raise RemoteProtocolError(f"the certificate of {certified} was shown by one who says it is {stated}")
            if stated.role not in roles or name not in (None, stated.name):
                check = "the address" if stated.role not in roles else "the address, or the name that is expected"
                raise RemoteProtocolError(f"{stated} was met where {wanted} is due; check {check}")
            if body["prg"] != self.prg:
                raise RemoteProtocolError(f"{stated} expands seeds with another generator than {self.prg}; update one")
            if not connector:
                self._hello(channel)
            session.pair(self.identity.role, stated.role)
        except RemoteProtocolError as error:
            channel.refuse(ErrorCode.PROTOCOL, str(error))
            raise
        return channel

    def _hello(self, channel: Channel) -> None:
        channel.send_control(Kind.HELLO, role=self.identity.role, name=self.identity.name, prg=self.prg)

    def _try_connect(self, address: str, deadline: float) -> socket.socket:
        family, target = self._resolve(address)
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(deadline - time.monotonic(), _RETRY_S))
            connection.connect(target)
        except OSError:
            connection.close()
            raise
        return connection

    def _resolve(self, address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
        host, port = parse_address(address)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        targets = sorted((family, str(target[0])) for family, _, _, _, target in found)
        if self.insecure_loopback and not all(ipaddress.ip_address(ip).is_loopback for _, ip in targets):
            raise ConfigError(f"plain TCP is for loopback addresses only, got {address}; make certificates")
        family, ip = targets[0]  # IPv4 first: the same choice on both sides of a name such as localhost
        return family, (ip, port)
