"""Certificates. Oracle: OpenSSL's own command line where there is one, and the file system."""

import datetime as dt
import shutil
import stat
import subprocess

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from pi_runtime.errors import ConfigError
from pi_runtime.net.certs import certificate_paths, identity_uri, make_certificates
from pi_runtime.net.messages import Identity

PARTIES = [Identity("client", "alice"), Identity("server", "main"), Identity("dealer", "d1")]


@pytest.fixture
def directory(tmp_path):
    make_certificates(tmp_path / "certs", PARTIES, days=30)
    return tmp_path / "certs"


def load(directory, party):
    return x509.load_pem_x509_certificate(certificate_paths(directory, party)[0].read_bytes())


def test_each_party_gets_a_private_key_and_a_certificate_that_states_it(directory):
    assert {path.name for path in directory.iterdir()} == {
        *("ca.pem", "ca.key", "client-alice.pem", "client-alice.key"),
        *("server-main.pem", "server-main.key", "dealer-d1.pem", "dealer-d1.key"),
    }
    for path in directory.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    usages = {
        "client": {ExtendedKeyUsageOID.CLIENT_AUTH},
        "server": {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH},
        "dealer": {ExtendedKeyUsageOID.SERVER_AUTH},
    }
    for party in PARTIES:
        certificate = load(directory, party)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"pi-pipeline://{party.role}/{party.name}"]
        assert identity_uri(party) == f"pi-pipeline://{party.role}/{party.name}"
        assert set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages[party.role]
        assert certificate.subject.rfc4514_string() == f"CN={party.name}"
        left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
        assert dt.timedelta(days=29) < left <= dt.timedelta(days=30)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_accepts_each_end_and_refuses_a_client_as_a_server(directory):
    def verify(party, purpose):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(directory / "ca.pem")]
        done = subprocess.run([*command, str(certificate_paths(directory, party)[0])], capture_output=True)
        return done.returncode == 0

    client, server, dealer = PARTIES
    assert [verify(client, "sslclient"), verify(client, "sslserver")] == [True, False]
    assert [verify(server, "sslclient"), verify(server, "sslserver")] == [True, True]
    assert [verify(dealer, "sslclient"), verify(dealer, "sslserver")] == [False, True]


def test_nothing_is_ever_overwritten_and_parties_can_be_added(directory):
    before = {path: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ConfigError, match=r"client-alice.pem exists; remove it first"):
        make_certificates(directory, [Identity("client", "bob"), Identity("client", "alice")])
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    written = make_certificates(directory, [Identity("client", "bob")])
    assert [path.name for path in written] == ["client-bob.pem", "client-bob.key"]
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    load(directory, Identity("client", "bob")).verify_directly_issued_by(authority)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_authority_without_its_key_or_with_another_is_refused(directory, tmp_path):
    make_certificates(tmp_path / "other", [])
    more = [Identity("client", "bob")]
    (directory / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        make_certificates(directory, more)
    (directory / "ca.key").write_bytes(b"no key")
    with pytest.raises(ConfigError, match="is damaged"):
        make_certificates(directory, more)
    (directory / "ca.key").unlink()
    with pytest.raises(ConfigError, match="add parties where the CA's key is kept"):
        make_certificates(directory, more)


@pytest.mark.parametrize(
    "party", [Identity("boss", "x"), Identity("client", ""), Identity("client", "../x"), Identity("client", "a" * 65)]
)
def test_bad_parties_are_refused(tmp_path, party):
    with pytest.raises(ConfigError, match="a party is a role"):
        make_certificates(tmp_path / "certs", [party])
    assert not (tmp_path / "certs").exists()


def test_bad_lifetimes_and_places_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="days must be more than 0"):
        make_certificates(tmp_path, PARTIES, days=0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write certificates"):
        make_certificates(tmp_path / "file", PARTIES)
