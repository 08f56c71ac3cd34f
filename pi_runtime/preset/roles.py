"""The verbs ``serve``, ``deal`` and ``prepare``: one role in this process, from its settings to its end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import track

from pi_runtime.errors import ConfigError
from pi_runtime.graph import load_public
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Identity, is_name
from pi_runtime.net.shaping import parse_profile
from pi_runtime.net.tls import load_credentials
from pi_runtime.net.traffic import Traffic
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.client import PresetClient
from pi_runtime.preset.dealer import Dealer
from pi_runtime.preset.server import PresetServer
from pi_runtime.preset.service import log
from pi_runtime.preset.store import BundleStore
from pi_runtime.primitives.prg import PRG_ID


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a role meets the others, and where it keeps its state.

    certs: directory of :mod:`pi_runtime.net.certs`, for mutual TLS. insecure_loopback: plain TCP on loopback instead.
    name: of the party, where its certificates leave a choice; without TLS, its word.
    server_name, dealer_name: of whom it calls, the only ones that will do; any that the CA certified if None.
    state: directory of what outlives the process; a place below the user's home by default.
    network: profile that is imitated on what this side sends.
    """

    certs: Path | None = None
    insecure_loopback: bool = False
    name: str | None = None
    server_name: str | None = None
    dealer_name: str | None = None
    state: Path | None = None
    network: str = "loopback"

    def __post_init__(self) -> None:
        for flag, name in (("--server-name", self.server_name), ("--dealer-name", self.dealer_name)):
            if name is not None and not is_name(name):
                raise ConfigError(f"{flag} must be 1 to 64 letters, digits or _ . -, as in a certificate, got {name!r}")

    def endpoint(self, role: str) -> Endpoint:
        """The endpoint of ``role``.

        Raises:
            ConfigError: certificates that cannot be used, or not exactly one of certs and insecure_loopback.
        """
        credentials = load_credentials(self.certs, role, self.name) if self.certs is not None else None
        return Endpoint(
            credentials.identity if credentials is not None else Identity(role, self.name or role),
            prg=PRG_ID,
            credentials=credentials,
            insecure_loopback=self.insecure_loopback,
            profile=parse_profile(self.network),
        )

    def state_of(self, identity: Identity) -> Path:
        """Where ``identity`` keeps its state."""
        if self.state is not None:
            return self.state
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return base / "pi-pipeline" / f"{identity.role}-{identity.name}"


def serve(model: Path, *, listen: str, dealer: str, access: Access, threads: int, max_clients: int) -> dict[str, Any]:
    """Serves ``model`` (an ONNX file or a run directory) until SIGTERM or Ctrl-C; returns what it sent.

    Raises:
        PiError: the model, an address, the certificates or the state directory cannot be used.
    """
    endpoint = access.endpoint("server")
    path = model / "model.onnx" if model.is_dir() else model
    server = PresetServer(
        load_onnx(path),
        endpoint,
        listen=listen,
        dealer=dealer,
        dealer_name=access.dealer_name,
        state=access.state_of(endpoint.identity),
        threads=threads,
        max_clients=max_clients,
    )
    return _run(server, "server")


def deal(public: Path, *, listen: str, access: Access, threads: int, max_peers: int) -> dict[str, Any]:
    """Deals bundles for the public graph ``public`` until SIGTERM or Ctrl-C; returns what it sent.

    Raises: as :func:`serve`.
    """
    endpoint = access.endpoint("dealer")
    dealer = Dealer(load_public(public), endpoint, listen=listen, threads=threads, max_peers=max_peers)
    return _run(dealer, "dealer")


def prepare(server: str, dealer: str, *, access: Access, batch: int, count: int, threads: int) -> dict[str, Any]:
    """Makes ``count`` bundles for ``batch`` images each, into the client's and the server's store.

    Raises:
        PiError: a peer cannot be reached or refuses, or the store cannot be used.
    """
    with open_client(server, dealer, access=access, threads=threads) as client:
        model_id = client.model.model_id
        console = Console(stderr=True)
        for _ in track(range(count), "bundles", console=console, transient=True, disable=not console.is_terminal):
            client.prepare(batch)
        return {"model_id": model_id, "batch": batch, "made": count, "ready": client.ready(batch)}


@contextmanager
def open_client(server: str, dealer: str, *, access: Access, threads: int = 1) -> Iterator[PresetClient]:
    """A client with the store of its state directory."""
    endpoint = access.endpoint("client")
    with (
        BundleStore(access.state_of(endpoint.identity), "client") as store,
        PresetClient(
            endpoint,
            server=server,
            dealer=dealer,
            store=store,
            server_name=access.server_name,
            dealer_name=access.dealer_name,
            threads=threads,
        ) as client,
    ):
        yield client


def _run(party: PresetServer | Dealer, role: str) -> dict[str, Any]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(f"a {role} runs in the main thread, which receives signals")

    def stop(_number: int, _frame: FrameType | None) -> None:
        party.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        log.info("%s listens on %s", role, party.address)
        party.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return {"role": role, "address": party.address, "sent_bytes": _sent(party.ledger.traffic())}


def _sent(traffic: Traffic) -> int:
    total = traffic.total
    return total.payload_sent_bytes + total.framing_sent_bytes + total.tls_sent_bytes
