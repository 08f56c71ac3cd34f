"""Mutual TLS 1.3 between the roles, as a transport around a transport.

Only TLS 1.3; both sides show a certificate of the project's CA (:mod:`pi_runtime.net.certs`); no session tickets, so no
resumption and no 0-RTT. Host names are not checked, since parties move between machines: a party is its role and name,
which the caller compares with whom it wanted. TLS runs over memory buffers rather than on the socket, so it works over
any transport, its handshake is shaped like the rest, and its bytes are counted exactly.
"""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from pi_runtime.backend import ROLES
from pi_runtime.errors import ConfigError, RemoteProtocolError
from pi_runtime.net.certs import URI_SCHEME, certificate_paths
from pi_runtime.net.messages import Identity, is_name
from pi_runtime.net.transport import PeerAlert, Transport
from pi_runtime.net.wire import Buffer

_RECORD_BYTES = 16 << 10
_BATCH_BYTES = 4 * _RECORD_BYTES
_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class Credentials:
    """A party's own certificate and key, and the CA that it trusts. The files are read when a connection begins."""

    identity: Identity
    authority_path: Path
    certificate_path: Path
    key_path: Path

    def context(self, *, accepting: bool) -> ssl.SSLContext:
        """The TLS settings of one end of a connection.

        Raises:
            ConfigError: a file is damaged, or the key is not the certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if accepting else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET
        if accepting:
            context.num_tickets = 0
        try:
            context.load_verify_locations(self.authority_path)
            context.load_cert_chain(self.certificate_path, self.key_path)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"cannot use {self.certificate_path} with its key and {self.authority_path}: "
                f"{error.strerror or error}; make new ones with 'pi-pipeline certs'"
            ) from error
        return context


def load_credentials(directory: Path, role: str, name: str | None = None) -> Credentials:
    """The credentials of ``role`` in ``directory``; ``name`` may be left out where there is only one of that role.

    Raises:
        ConfigError: a file is missing or damaged, the certificate has expired or states another party, the key can be
            read by others, or several certificates fit.
    """
    if name is None:
        found = sorted(directory.glob(f"{role}-*.pem"))
        if len(found) > 1:
            names = ", ".join(path.stem.removeprefix(f"{role}-") for path in found)
            raise ConfigError(f"{directory} has several certificates of the role {role} ({names}); name one")
        name = found[0].stem.removeprefix(f"{role}-") if found else role
    identity = Identity(role, name)
    certificate_path, key_path = certificate_paths(directory, identity)
    authority_path = directory / "ca.pem"
    for path in (authority_path, certificate_path, key_path):
        if not path.is_file():
            raise ConfigError(f"{path} is missing; make it with 'pi-pipeline certs' or copy it here")
    if stat.S_IMODE(key_path.stat().st_mode) & 0o077:
        raise ConfigError(f"{key_path} can be read by others; run 'chmod 600 {key_path}'")
    _check_own(certificate_path, identity)
    return Credentials(identity, authority_path, certificate_path, key_path)


def _check_own(path: Path, identity: Identity) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged; make it with 'pi-pipeline certs'") from error
    if (stated := stated_identity(certificate)) != identity:
        raise ConfigError(f"{path} is not the certificate of {identity}; it states {stated or 'no party'}")
    if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
        raise ConfigError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; make a new one")


def stated_identity(certificate: x509.Certificate) -> Identity | None:
    """The party that a certificate states; None unless there is exactly one, well formed."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    parts = urlsplit(uris[0]) if len(uris) == 1 else urlsplit("")
    role, name = parts.netloc, parts.path.removeprefix("/")
    if parts.scheme != URI_SCHEME or role not in ROLES or not is_name(name):
        return None
    return Identity(role, name)


class TlsTransport(Transport):
    """TLS over ``inner``, which it owns. Call :meth:`handshake` before anything else."""

    def __init__(self, inner: Transport, credentials: Credentials, *, accepting: bool) -> None:
        self._inner = inner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = credentials.context(accepting=accepting)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=accepting)
        self._scratch = memoryview(bytearray(_READ_BYTES))
        self._overhead_bytes = 0

    @property
    def overhead_bytes(self) -> int:
        return self._overhead_bytes + self._inner.overhead_bytes

    def handshake(self, *, deadline: float) -> Identity:
        """Does the TLS handshake and returns whom the peer's certificate states.

        An accepting side's refusal of the peer's certificate shows on the peer at its first read.

        Raises:
            RemoteProtocolError: no TLS 1.3, no certificate, one that has expired or is not of this CA, or one that
                states no party.
            OSError: the transport failed.
        """
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush(deadline)
                    self._feed(deadline)
        except ssl.SSLError as error:
            self._flush(deadline)
            raise RemoteProtocolError(_explain(error)) from error
        self._flush(deadline)
        certificate = x509.load_der_x509_certificate(self._tls.getpeercert(True) or b"")
        identity = stated_identity(certificate)
        if identity is None:
            raise RemoteProtocolError("the peer's certificate states no role; make it with 'pi-pipeline certs'")
        return identity

    def send(self, *buffers: Buffer, deadline: float) -> None:
        # What fits into one record goes as one: a header by itself would cost a record and its 22 bytes.
        pending = bytearray()
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            room = _RECORD_BYTES - len(pending)
            pending.extend(view[:room])
            view = view[room:]
            while view:
                self._write(pending, deadline)
                pending = bytearray(view[:_RECORD_BYTES])
                view = view[_RECORD_BYTES:]
        self._write(pending, deadline)
        self._flush(deadline)

    def recv_into(self, view: memoryview, *, deadline: float) -> int:
        filled = 0
        while filled < len(view):
            try:
                count = int(self._tls.read(len(view) - filled, view[filled:]))
            except ssl.SSLWantReadError:
                if filled:
                    break
                self._flush(deadline)
                self._feed(deadline)
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            except ssl.SSLError as error:
                raise PeerAlert(_explain(error)) from error
            if not count:
                break
            filled += count
        return filled

    def poll(self, within_s: float) -> bool:
        return bool(self._tls.pending() or self._incoming.pending) or self._inner.poll(within_s)

    def close(self) -> None:
        self._inner.close()

    def _write(self, data: bytearray, deadline: float) -> None:
        if data:
            before = self._outgoing.pending
            self._tls.write(data)
            self._overhead_bytes += self._outgoing.pending - before - len(data)
        if self._outgoing.pending > _BATCH_BYTES:
            self._flush(deadline)

    def _flush(self, deadline: float) -> None:
        if self._outgoing.pending:
            self._inner.send(self._outgoing.read(), deadline=deadline)

    def _feed(self, deadline: float) -> None:
        count = self._inner.recv_into(self._scratch, deadline=deadline)
        if count:
            self._incoming.write(self._scratch[:count])
        else:
            self._incoming.write_eof()


def _explain(error: ssl.SSLError) -> str:
    """One line for what went wrong in TLS, in the words of its user."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused: {error.verify_message}"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    known = {
        "certificate required": "the peer asks for a certificate; none was shown",
        "peer did not return a certificate": "the peer showed no certificate",
        "unknown ca": "the peer refused this side's certificate: it trusts another CA",
        "certificate expired": "the peer refused this side's certificate: it has expired",
        "bad certificate": "the peer refused this side's certificate",
        "unsupported certificate": "the peer refused this side's certificate: its role may not take this end",
        "wrong version number": "the peer does not speak TLS (plain TCP?)",
        "http request": "the peer does not speak TLS (plain TCP?)",
        "unexpected eof while reading": "the peer closed the connection during the TLS handshake",
    }
    for words, text in known.items():
        if words in reason:
            return text
    return f"TLS failed: {reason}"
