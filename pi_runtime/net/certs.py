"""Certificates of the parties: one project CA, and for each party a key and a certificate that states role and name.

A directory holds ``ca.pem``, ``ca.key`` and, for each party, ``<role>-<name>.pem`` and ``<role>-<name>.key``. All keys
are Ed25519. A party's certificate carries the URI ``pi-pipeline://<role>/<name>`` and says in its extended key usage
which ends of a connection it may take: a client only opens connections, a dealer only accepts them, a server does both.

Who may hold what:

- ``ca.key`` belongs to whoever admits parties, best on a machine that plays no role: its holder can pass for any party,
  a dealer or a server included. It is needed again only to add parties. The protocol falls if the server's operator
  holds it and the client takes the dealer's certificate on trust, so the client's side must have a say in it.
- each machine needs ``ca.pem`` and the two files of its own party, nothing else.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pi_runtime.backend import ROLES
from pi_runtime.errors import ConfigError
from pi_runtime.net.messages import Identity, is_name

URI_SCHEME = "pi-pipeline"
DEFAULT_DAYS = 365
_AUTHORITY_LIVES = 10  # certificate lifetimes that the CA outlasts

_USAGES = {
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "server": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
    "dealer": [ExtendedKeyUsageOID.SERVER_AUTH],
}
_CLOCK_SKEW = dt.timedelta(minutes=5)


def identity_uri(identity: Identity) -> str:
    """How a certificate states ``identity``."""
    return f"{URI_SCHEME}://{identity.role}/{identity.name}"


def certificate_paths(directory: Path, identity: Identity) -> tuple[Path, Path]:
    """Where the certificate and the key of ``identity`` lie."""
    stem = f"{identity.role}-{identity.name}"
    return directory / f"{stem}.pem", directory / f"{stem}.key"


def make_certificates(directory: Path, parties: Collection[Identity], *, days: int = DEFAULT_DAYS) -> list[Path]:
    """Makes a CA in ``directory``, unless one is there, and a key and certificate for each of ``parties``.

    Keys are readable by their owner alone. Nothing is ever overwritten. Returns the paths written.

    Raises:
        ConfigError: a file exists, a role or name is malformed, or the directory has ``ca.pem`` without ``ca.key``.
    """
    if not days > 0:
        raise ConfigError(f"days must be more than 0, got {days}")
    for party in parties:
        if party.role not in ROLES or not is_name(party.name):
            raise ConfigError(
                f"a party is a role ({', '.join(ROLES)}) and a name of 1 to 64 letters, digits, '_', '.' or '-', "
                f"got {party.role!r} and {party.name!r}"
            )
        for path in certificate_paths(directory, party):
            if path.exists():
                raise ConfigError(f"{path} exists; remove it first if {party} is to have a new key")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        authority, authority_key = _authority(directory, days, written)
        for party in parties:
            key = Ed25519PrivateKey.generate()
            builder = _builder(_common_name(party.name), authority.subject, key, authority_key, days)
            for extension, critical in (
                (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity_uri(party))]), False),
                (x509.ExtendedKeyUsage(_USAGES[party.role]), True),
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_key_usage(authority=False), True),
            ):
                builder = builder.add_extension(extension, critical)
            pem_path, key_path = certificate_paths(directory, party)
            _write_pair(pem_path, builder.sign(authority_key, None), key_path, key)
            written += [pem_path, key_path]
    except OSError as error:
        raise ConfigError(f"cannot write certificates to {directory}: {error.strerror}") from error
    return written


def _authority(directory: Path, days: int, written: list[Path]) -> tuple[x509.Certificate, Ed25519PrivateKey]:
    """The CA of ``directory``: the one that is there, or a new one."""
    pem_path, key_path = directory / "ca.pem", directory / "ca.key"
    if pem_path.exists():
        if not key_path.exists():
            raise ConfigError(f"{pem_path} exists but {key_path} does not; add parties where the CA's key is kept")
        try:
            loaded = serialization.load_pem_private_key(key_path.read_bytes(), None)
            authority = x509.load_pem_x509_certificate(pem_path.read_bytes())
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{pem_path} or {key_path} is damaged; make a new directory") from error
        if not isinstance(loaded, Ed25519PrivateKey) or loaded.public_key() != authority.public_key():
            raise ConfigError(f"{key_path} is not the key of {pem_path}; make a new directory")
        return authority, loaded
    key = Ed25519PrivateKey.generate()
    # A name of its own for each CA: under one name for all, a foreign certificate would look like a broken signature.
    name = _common_name(f"pi-pipeline CA {os.urandom(8).hex()}")
    builder = _builder(name, name, key, key, _AUTHORITY_LIVES * days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority = builder.add_extension(_key_usage(authority=True), critical=True).sign(key, None)
    _write_pair(pem_path, authority, key_path, key)
    written += [pem_path, key_path]
    return authority, key


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PrivateKey, issuer_key: Ed25519PrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(pem_path: Path, certificate: x509.Certificate, key_path: Path, key: Ed25519PrivateKey) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_new(key_path, secret, 0o600)
    _write_new(pem_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that must not exist yet, so that not even a race overwrites a key."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
