"""Who may be whose peer. Oracles: errors by name."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pi_runtime.errors import ConfigError, RemoteProtocolError
from pi_runtime.net.certs import make_certificates
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Identity
from pi_runtime.net.tls import load_credentials
from pi_runtime.preset.dealer import Dealer
from pi_runtime.preset.roles import Access
from pi_runtime.primitives.prg import PRG_ID


def test_a_client_certificate_is_no_dealer(preset_graph, tmp_path):
    make_certificates(tmp_path, [Identity("client", "eve"), Identity("server", "server")])
    eve = Endpoint(Identity("client", "eve"), prg=PRG_ID, credentials=load_credentials(tmp_path, "client"))
    server = Endpoint(Identity("server", "server"), prg=PRG_ID, credentials=load_credentials(tmp_path, "server"))
    with eve.listen("127.0.0.1:0") as listener:

        def pose():
            with pytest.raises(RemoteProtocolError):
                eve.greet(listener.accept(timeout_s=10), ("server",))

        posing = threading.Thread(target=pose)
        posing.start()
        with pytest.raises(RemoteProtocolError):
            server.connect(listener.address, "dealer")
        posing.join(10)


def test_plain_tcp_is_for_loopback_alone(idle_parties):
    with pytest.raises(ConfigError, match="plain TCP is for loopback addresses only"):
        Dealer(idle_parties.graph.public(), idle_parties.endpoint("dealer"), listen="0.0.0.0:0")


def test_a_client_pins_the_names_of_server_and_dealer(idle_parties):
    idle_parties.make_certificates(Identity("server", "other"), Identity("dealer", "other"))
    idle_parties.start_dealer(name="other")
    idle_parties.start_server(name="other")
    anyone, _ = idle_parties.client(store="anyone")
    anyone.prepare(1)
    stranger, _ = idle_parties.client(store="stranger", server_name="server")
    with pytest.raises(RemoteProtocolError, match="server 'other' was met where server 'server' is due; check the add"):
        stranger.prepare(1)
    halfway, store = idle_parties.client(store="halfway", server_name="other", dealer_name="dealer")
    with pytest.raises(RemoteProtocolError, match="dealer 'other' was met where dealer 'dealer' is due"):
        halfway.prepare(1)
    assert store.counts()["ready"] == 0
    pinned, _ = idle_parties.client(store="pinned", server_name="other", dealer_name="other")
    idle_parties.assert_serves(pinned)


def test_a_server_pins_the_name_of_its_dealer(idle_parties, caplog):
    idle_parties.make_certificates(Identity("dealer", "other"))
    idle_parties.start_dealer(name="other")
    server = idle_parties.start_server(dealer_name="dealer", ready=False)
    address = idle_parties.dealer.address
    assert not server.link.wait_ready(0.3)
    assert "dealer 'other' was met where dealer 'dealer' is due" in caplog.text
    assert not idle_parties.dealer._models
    idle_parties.stop(idle_parties.dealer)
    idle_parties.start_dealer(address)
    assert server.link.wait_ready(10)


@pytest.mark.parametrize("flag", ["server_name", "dealer_name"])
def test_a_pinned_name_must_be_one_that_a_certificate_can_hold(flag):
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} must be 1 to 64 letters.*got 'no name'"):
        Access(insecure_loopback=True, **{flag: "no name"})


ENDS = [("client", "server"), ("client", "dealer"), ("server", "dealer")]


def wrong_certificate(parties, fault, directory, role):
    """An endpoint of ``role`` whose certificate is of another CA, or whose own CA alone is ours."""
    make_certificates(directory, [Identity(role, role)])
    if fault == "trusts ours":
        shutil.copy(parties.certs / "ca.pem", directory)
    credentials = load_credentials(directory, role)
    return Endpoint(Identity(role, role), prg=PRG_ID, credentials=credentials, timeouts=parties.timeouts)


@pytest.mark.parametrize("fault", ["foreign", "trusts ours"])
def test_a_wrong_certificate_is_turned_away_by_every_role(idle_parties, tmp_path, caplog, fault):
    idle_parties.make_certificates()
    idle_parties.start_dealer()
    idle_parties.start_server()
    caplog.set_level("INFO", "pi_runtime.preset")
    for caller, called in ENDS:
        stranger = wrong_certificate(idle_parties, fault, tmp_path / f"{caller}-{called}", caller)
        with pytest.raises(RemoteProtocolError, match="certificate"):
            stranger.connect(getattr(idle_parties, called).address, called)
    # And the other way: who is called has it, and the caller notices.
    for caller, called in ENDS:
        stranger = wrong_certificate(idle_parties, fault, tmp_path / f"{called}-for-{caller}", called)
        with stranger.listen("127.0.0.1:0") as listener, ThreadPoolExecutor(1) as pool:
            honest = pool.submit(idle_parties.endpoint(caller).connect, listener.address, called)
            with pytest.raises(RemoteProtocolError):
                stranger.greet(listener.accept(timeout_s=10), (caller,))
            with pytest.raises(RemoteProtocolError, match="certificate is refused"):
                honest.result(20)
    assert not any(record.exc_info for record in caplog.records)
    idle_parties.assert_serves(idle_parties.client()[0])
