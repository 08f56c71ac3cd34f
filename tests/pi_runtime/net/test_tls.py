"""Mutual TLS over memory. Oracles: bytes counted by a tap below TLS, and errors by name."""

import datetime as dt
import ssl
import threading
import time
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from pi_runtime.errors import ConfigError, RemoteProtocolError
from pi_runtime.net.certs import certificate_paths, make_certificates
from pi_runtime.net.messages import Identity
from pi_runtime.net.tls import Credentials, TlsTransport, load_credentials
from pi_runtime.net.transport import MemoryTransport, memory_pair

CLIENT, SERVER, DEALER = (Identity(role, f"{role}-1") for role in ("client", "server", "dealer"))


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certs")
    make_certificates(directory, [CLIENT, SERVER, DEALER])
    return directory


def credentials(directory, identity):
    return Credentials(identity, directory / "ca.pem", *certificate_paths(directory, identity))


class Tap(MemoryTransport):
    """Memory that remembers what was sent."""

    def __init__(self, inner):
        self.__dict__.update(inner.__dict__)
        self.sent = bytearray()

    def send(self, *buffers, deadline):
        for buffer in buffers:
            self.sent += buffer
        super().send(*buffers, deadline=deadline)


def soon():
    return time.monotonic() + 5


def meet(connecting, accepting):
    """Both ends after a handshake and one byte each way, or the error of each."""
    left, right = (Tap(end) for end in memory_pair())
    ends = (TlsTransport(left, connecting, accepting=False), TlsTransport(right, accepting, accepting=True))
    results = [None, None]

    def run(index):
        try:
            results[index] = ends[index].handshake(deadline=soon())
            with suppress(BrokenPipeError):  # why it broke comes with the read
                ends[index].send(b"x", deadline=soon())
            ends[index].recv_into(memoryview(bytearray(1)), deadline=soon())
        except (RemoteProtocolError, OSError) as error:
            results[index] = error
            ends[index].close()

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends, results, (left, right)


@pytest.mark.parametrize(("connecting", "accepting"), [(CLIENT, SERVER), (CLIENT, DEALER), (SERVER, DEALER)])
def test_each_side_learns_the_role_and_name_of_the_other(certs, connecting, accepting):
    ends, results, _ = meet(credentials(certs, connecting), credentials(certs, accepting))
    assert results == [accepting, connecting]
    assert {end._tls.version() for end in ends} == {"TLSv1.3"}
    assert all(end._tls.session_reused is False for end in ends)


@pytest.mark.parametrize(
    "sizes", [(1,), (16, 20_000), (16, 16_368), (16, 16_369), (0, 5, 0), (16, 1 << 20, 3), (300_000,)]
)
def test_bytes_cross_unchanged_and_the_overhead_is_what_a_tap_counts(certs, sizes):
    (near, far), _, (tap, _) = meet(credentials(certs, CLIENT), credentials(certs, SERVER))
    data = [bytes(n % 251 for n in range(size)) for size in sizes]
    total = sum(sizes)
    before, overhead = len(tap.sent), near.overhead_bytes
    near.send(*data, deadline=soon())
    received = bytearray(total)
    filled = 0
    while filled < total:
        filled += far.recv_into(memoryview(received)[filled:], deadline=soon())
    assert received == b"".join(data)
    assert len(tap.sent) - before == total + near.overhead_bytes - overhead
    assert near.overhead_bytes - overhead == 22 * -(-total // 16384), "22 bytes a record, and no record too many"
    assert b"".join(data)[:200] not in tap.sent or total < 10


def test_the_end_of_the_pipe_is_the_end(certs):
    (near, far), _, _ = meet(credentials(certs, CLIENT), credentials(certs, SERVER))
    near.send(b"last", deadline=soon())
    near.close()
    view = memoryview(bytearray(10))
    assert far.recv_into(view, deadline=soon()) == 4
    assert far.recv_into(view, deadline=soon()) == 0


def test_a_flipped_bit_is_noticed(certs):
    (near, far), _, (tap, _) = meet(credentials(certs, CLIENT), credentials(certs, SERVER))
    near._inner = tampering = Tap(tap)
    start = len(tampering.sent)
    near.send(b"x" * 100, deadline=soon())
    record = bytes(tampering.sent[start:])
    far.recv_into(memoryview(bytearray(100)), deadline=soon())
    tap.send(record[:50], bytes([record[50] ^ 1]), record[51:], deadline=soon())
    with pytest.raises(ConnectionError, match="TLS failed"):
        far.recv_into(memoryview(bytearray(100)), deadline=soon())


def messages(results):
    return [str(result) for result in results]


def test_a_client_is_refused_as_a_server_and_a_dealer_as_a_client(certs):
    _, results, _ = meet(credentials(certs, CLIENT), credentials(certs, CLIENT))
    assert "the peer's certificate is refused: un" in messages(results)[0]  # unsupported or unsuitable, by version
    assert "purpose" in messages(results)[0]
    _, results, _ = meet(credentials(certs, DEALER), credentials(certs, SERVER))
    assert "certificate is refused" in messages(results)[1]
    assert "its role may not take this end" in messages(results)[0]


def test_another_ca_is_refused(certs, tmp_path):
    make_certificates(tmp_path, [CLIENT])
    _, results, _ = meet(credentials(tmp_path, CLIENT), credentials(certs, SERVER))
    assert "the peer's certificate is refused" in messages(results)[0]
    assert "it trusts another CA" in messages(results)[1]


def make_party(certs, directory, identity, uris, days):
    """A certificate of the CA in ``certs`` that make_certificates would not make."""
    authority = x509.load_pem_x509_certificate((certs / "ca.pem").read_bytes())
    authority_key = serialization.load_pem_private_key((certs / "ca.key").read_bytes(), None)
    key = Ed25519PrivateKey.generate()
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    pem_path, key_path = certificate_paths(directory, identity)
    pem_path.write_bytes(builder.sign(authority_key, None).public_bytes(serialization.Encoding.PEM))
    pkcs8 = serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    key_path.chmod(0o600)
    (directory / "ca.pem").write_bytes((certs / "ca.pem").read_bytes())


def test_an_expired_certificate_is_refused_by_both_sides(certs, tmp_path):
    make_party(certs, tmp_path, CLIENT, ["pi-pipeline://client/client-1"], days=-1)
    with pytest.raises(ConfigError, match=r"client-client-1.pem expired on 20\d\d-\d\d-\d\d; make a new one"):
        load_credentials(tmp_path, "client")
    _, results, _ = meet(credentials(tmp_path, CLIENT), credentials(certs, SERVER))
    assert "the peer's certificate is refused: certificate has expired" in messages(results)[1]
    assert "it has expired" in messages(results)[0]


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://client/client-1"],
        ["pi-pipeline://boss/client-1"],
        ["pi-pipeline://client/a/b"],
        ["pi-pipeline://client/a", "pi-pipeline://dealer/a"],
    ],
)
def test_a_certificate_that_does_not_state_one_party_is_refused(certs, tmp_path, uris):
    make_party(certs, tmp_path, CLIENT, uris, days=1)
    with pytest.raises(ConfigError, match="is not the certificate of client 'client-1'; it states no party"):
        load_credentials(tmp_path, "client")
    _, results, _ = meet(credentials(tmp_path, CLIENT), credentials(certs, SERVER))
    assert "the peer's certificate states no role" in messages(results)[1]


def test_no_certificate_old_tls_and_plain_bytes_are_refused(certs):
    for change, message in (
        (lambda context: None, "the peer showed no certificate"),
        (lambda context: setattr(context, "maximum_version", ssl.TLSVersion.TLSv1_2), "TLS failed: "),
    ):
        left, right = memory_pair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        change(context)
        stranger = TlsTransport(left, credentials(certs, CLIENT), accepting=False)
        stranger._tls = context.wrap_bio(stranger._incoming, stranger._outgoing, server_side=False)
        other = threading.Thread(target=quietly, args=(stranger.handshake,))
        other.start()
        with pytest.raises(RemoteProtocolError, match=message):
            TlsTransport(right, credentials(certs, SERVER), accepting=True).handshake(deadline=soon())
        left.close()
        other.join()
    left, right = memory_pair()
    left.send(b"pI\x01\x01" * 10, deadline=soon())
    with pytest.raises(RemoteProtocolError, match="does not speak TLS"):
        TlsTransport(right, credentials(certs, SERVER), accepting=True).handshake(deadline=soon())
    left, right = memory_pair()
    left.close()
    with pytest.raises((RemoteProtocolError, OSError)):
        TlsTransport(right, credentials(certs, SERVER), accepting=True).handshake(deadline=soon())


def quietly(handshake):
    try:
        handshake(deadline=soon())
    except (RemoteProtocolError, OSError, ValueError, x509.InvalidVersion):
        return


def test_credentials_are_found_checked_and_never_guessed(certs, tmp_path):
    found = load_credentials(certs, "server")
    assert found.identity == SERVER
    assert load_credentials(certs, "server", "server-1") == found
    make_certificates(tmp_path, [Identity("client", "a"), Identity("client", "b"), Identity("server", "s")])
    with pytest.raises(ConfigError, match=r"several certificates of the role client \(a, b\); name one"):
        load_credentials(tmp_path, "client")
    with pytest.raises(ConfigError, match=r"dealer-dealer.pem is missing; make it with"):
        load_credentials(tmp_path, "dealer")
    (tmp_path / "client-a.key").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others; run 'chmod 600"):
        load_credentials(tmp_path, "client", "a")
    (tmp_path / "dealer-x.pem").write_bytes((tmp_path / "server-s.pem").read_bytes())
    (tmp_path / "dealer-x.key").write_bytes((tmp_path / "server-s.key").read_bytes())
    (tmp_path / "dealer-x.key").chmod(0o600)
    with pytest.raises(ConfigError, match=r"is not the certificate of dealer 'x'; it states server 's'"):
        load_credentials(tmp_path, "dealer")
    (tmp_path / "server-s.pem").write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"server-s.pem is damaged"):
        load_credentials(tmp_path, "server")
    (tmp_path / "client-b.key").write_bytes((certs / "client-client-1.key").read_bytes())
    with pytest.raises(ConfigError, match="cannot use"):
        load_credentials(tmp_path, "client", "b").context(accepting=False)
