"""Parties meeting over real sockets. Oracles: errors by name, and the identities that were certified."""

import socket
import threading
import time

import pytest

from pi_runtime.errors import BackendError, ConfigError, RemoteProtocolError
from pi_runtime.net.certs import make_certificates
from pi_runtime.net.endpoint import Endpoint, parse_address
from pi_runtime.net.messages import Identity, Kind
from pi_runtime.net.shaping import parse_profile
from pi_runtime.net.tls import load_credentials
from pi_runtime.net.transport import Timeouts, memory_pair
from pi_runtime.net.wire import NO_LAYER, encode_header

QUICK = Timeouts(connect_s=5, handshake_s=5, read_s=5)
CLIENT, SERVER, DEALER = (Identity(role, f"{role}-1") for role in ("client", "server", "dealer"))


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certs")
    make_certificates(directory, [CLIENT, SERVER, DEALER])
    return directory


def plain(identity, **options):
    return Endpoint(identity, **{"prg": "p", "insecure_loopback": True, "timeouts": QUICK, **options})


def secure(certs, identity, **options):
    credentials = load_credentials(certs, identity.role)
    return Endpoint(identity, **{"prg": "p", "credentials": credentials, "timeouts": QUICK, **options})


def meet(connecting, accepting, wanted="server", welcome=("client",), name=None):
    """What each side got: a channel, or the error."""
    results = {}

    def accept(listener):
        try:
            results["accepting"] = accepting.greet(listener.accept(timeout_s=5), welcome)
        except RemoteProtocolError as error:
            results["accepting"] = error

    with accepting.listen("127.0.0.1:0") as listener:
        other = threading.Thread(target=accept, args=(listener,))
        other.start()
        try:
            results["connecting"] = connecting.connect(listener.address, wanted, name)
        except RemoteProtocolError as error:
            results["connecting"] = error
        other.join()
    return results["connecting"], results["accepting"]


def close(*channels):
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(("one", "other"), [(CLIENT, SERVER), (CLIENT, DEALER), (SERVER, DEALER)])
def test_parties_meet_and_know_one_another(certs, safe, one, other):
    make = (lambda identity: secure(certs, identity)) if safe else plain
    near, far = meet(make(one), make(other), other.role, ("client", "server"))
    assert (near.peer, far.peer) == (other, one)
    near.bye()
    assert far.recv_control(Kind.BYE).kind is Kind.BYE
    far.close()


def test_tls_bytes_are_counted_apart(certs):
    near, far = meet(secure(certs, CLIENT), secure(certs, SERVER))
    before = near.traffic()
    near.send_control(Kind.GET_MODEL)
    counts = (near.traffic() - before).total
    assert (counts.payload_sent_bytes, counts.framing_sent_bytes, counts.tls_sent_bytes) == (2, 16, 22)
    assert far.recv_control(Kind.GET_MODEL).body == {}
    close(near, far)


def test_a_shaped_connection_takes_the_round_trip_of_its_profile():
    profile = parse_profile("bandwidth_mbps=100,rtt_ms=40")
    near, far = meet(plain(CLIENT, profile=profile), plain(SERVER, profile=profile))

    times = 3

    def answer():
        for _ in range(times):
            far.recv_control(Kind.GET_SEED)
            far.send_array(Kind.WEIGHT_SEED, bytes(16))

    other = threading.Thread(target=answer)
    other.start()
    taken = []
    for _ in range(times):
        start = time.monotonic()
        near.send_control(Kind.GET_SEED)
        near.recv_array(Kind.WEIGHT_SEED, 16)
        taken.append(time.monotonic() - start)
    assert min(taken) == pytest.approx(0.04, rel=0.1)
    other.join()
    close(near, far)


def test_start_up_order_does_not_matter():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = plain(SERVER)
    results = []

    def serve_late():
        time.sleep(0.3)
        with server.listen(address) as listener:
            results.append(server.greet(listener.accept(timeout_s=5), ("client",)))

    other = threading.Thread(target=serve_late)
    other.start()
    near = plain(CLIENT).connect(address, "server")
    other.join()
    assert near.peer == SERVER
    close(near, *results)


def test_nobody_there_is_one_clear_error():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    client = plain(CLIENT, timeouts=Timeouts(connect_s=0.3))
    with pytest.raises(RemoteProtocolError, match=f"no server answers at {address} within 0.3 s .*refused.*; start it"):
        client.connect(address, "server")


@pytest.mark.parametrize("safe", [False, True])
def test_the_wrong_role_is_refused_on_both_sides(certs, safe):
    make = (lambda identity: secure(certs, identity)) if safe else plain
    near, far = meet(make(CLIENT), make(SERVER), wanted="dealer")
    assert "server 'server-1' was met where a dealer is due" in str(near)
    if not isinstance(far, RemoteProtocolError):
        with pytest.raises(RemoteProtocolError, match="refused: server 'server-1' was met"):
            far.recv_control(Kind.OPEN)
    near, far = meet(make(CLIENT), make(DEALER), wanted="dealer", welcome=("server",))
    assert "client 'client-1' was met where a server is due" in str(far)
    assert "refused: client 'client-1' was met where a server is due" in str(near)


def test_the_wrong_name_and_the_wrong_generator_are_refused():
    near, far = meet(plain(CLIENT), plain(SERVER), name="other")
    assert "server 'server-1' was met where server 'other' is due" in str(near)
    close(far)
    near, far = meet(plain(CLIENT), plain(SERVER, prg="q"))
    assert "expands seeds with another generator than q" in str(far)
    assert "refused: client 'client-1' expands seeds" in str(near)


def test_a_role_that_its_certificate_does_not_state_is_refused(certs):
    liar = secure(certs, CLIENT)
    object.__setattr__(liar, "identity", Identity("server", "client-1"))
    near, far = meet(liar, secure(certs, DEALER), wanted="dealer", welcome=("client", "server"))
    assert "the certificate of client 'client-1' was shown by one who says it is server 'client-1'" in str(far)
    assert "refused: the certificate of" in str(near)


def test_plain_tcp_and_tls_do_not_mix(certs):
    near, far = meet(plain(CLIENT), secure(certs, SERVER))
    assert "does not speak TLS" in str(far)
    assert isinstance(near, RemoteProtocolError)
    near, far = meet(secure(certs, CLIENT), plain(SERVER))
    assert "does not speak this protocol" in str(far)
    assert isinstance(near, RemoteProtocolError)


def test_a_foreign_certificate_is_one_clear_line_on_both_sides(certs, tmp_path):
    make_certificates(tmp_path, [CLIENT])
    near, far = meet(secure(tmp_path, CLIENT), secure(certs, SERVER))
    assert "the peer's certificate is refused: " in str(near)
    assert "it trusts another CA" in str(far)
    (tmp_path / "ca.pem").write_bytes((certs / "ca.pem").read_bytes())
    near, far = meet(secure(tmp_path, CLIENT), secure(certs, SERVER))
    assert "the peer's certificate is refused: " in str(far)
    assert "the peer refused this side's certificate" in str(near)


def test_a_silent_or_slow_stranger_is_given_up():
    server = plain(SERVER, timeouts=Timeouts(handshake_s=0.1))
    left, right = memory_pair()
    left.send(encode_header(Kind.HELLO, NO_LAYER, 0, 50), deadline=time.monotonic() + 1)
    start = time.monotonic()
    with pytest.raises(RemoteProtocolError, match="did not go on in time"):
        server.greet_over(right, ("client",), connector=False)
    assert time.monotonic() - start < 1


def test_plain_tcp_is_for_loopback_only():
    server = plain(SERVER)
    for address in ("0.0.0.0:0", "192.0.2.1:7700", "[::]:0"):
        with pytest.raises(ConfigError, match="plain TCP is for loopback addresses only"):
            server.listen(address)
        with pytest.raises(ConfigError, match="plain TCP is for loopback addresses only"):
            server.connect(address, "dealer")


def test_an_endpoint_is_either_safe_or_openly_not(certs):
    credentials = load_credentials(certs, "client")
    for options in ({}, {"credentials": credentials, "insecure_loopback": True}):
        with pytest.raises(ConfigError, match="either a certs directory or the insecure_loopback flag"):
            Endpoint(CLIENT, prg="p", **options)
    with pytest.raises(ConfigError, match="server 'server-1' has the certificate of client 'client-1'"):
        Endpoint(SERVER, prg="p", credentials=credentials)


def test_an_occupied_port_and_an_unknown_host_are_clear_errors():
    server = plain(SERVER)
    with server.listen("127.0.0.1:0") as listener:
        with pytest.raises(BackendError, match="Address already in use; choose another"):
            server.listen(listener.address)
        assert listener.accept(timeout_s=0.01) is None
    with pytest.raises(ConfigError, match="is unknown"):
        server.listen("no-such-host.invalid:1")


def test_addresses_are_parsed():
    assert parse_address("localhost:7700") == ("localhost", 7700)
    assert parse_address("[::1]:0") == ("::1", 0)
    for bad in ("localhost", ":1", "a:b", "::1:80", "a:-1", "a:1 ", "a:²", ""):
        with pytest.raises(ConfigError, match="must be HOST:PORT"):
            parse_address(bad)
    with pytest.raises(ConfigError, match="at most 65,535, got 70000"):
        parse_address("a:70000")
