"""Client, server and dealer of a tiny network, in threads over real sockets on loopback."""

from __future__ import annotations

import secrets
import threading

import numpy as np
import pytest

from pi_runtime.backend import ROLES
from pi_runtime.export import export_onnx
from pi_runtime.net.certs import make_certificates
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import Identity, Kind
from pi_runtime.net.tls import load_credentials
from pi_runtime.net.transport import Timeouts
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.client import PresetClient
from pi_runtime.preset.dealer import Dealer
from pi_runtime.preset.server import PresetServer
from pi_runtime.preset.shares import BundlePads
from pi_runtime.preset.store import BundleStore
from pi_runtime.primitives.prg import PRG_ID, Seed

QUICK = Timeouts(connect_s=10, handshake_s=10, read_s=10)


class Parties:
    """A dealer and a server that run, and clients on demand; whatever was made is ended by :meth:`close`."""

    def __init__(self, graph, directory):
        self.graph = graph
        self.directory = directory
        self.threads = []
        self.ending = []
        self.dealer = self.server = None
        self.certs = None
        self.timeouts = QUICK

    def make_certificates(self, *more):
        """TLS from now on, with certificates for one party of each role, named like it, and for ``more``."""
        self.certs = self.directory / "certs"
        make_certificates(self.certs, [*(Identity(role, role) for role in ROLES), *more])

    def endpoint(self, role, name=None):
        identity = Identity(role, name or role)
        if self.certs is None:
            return Endpoint(identity, prg=PRG_ID, insecure_loopback=True, timeouts=self.timeouts)
        credentials = load_credentials(self.certs, identity.role, identity.name)
        return Endpoint(identity, prg=PRG_ID, credentials=credentials, timeouts=self.timeouts)

    def start_dealer(self, listen="127.0.0.1:0", *, name=None, **options):
        self.dealer = Dealer(self.graph.public(), self.endpoint("dealer", name), listen=listen, **options)
        self._run(self.dealer)
        return self.dealer

    def start_server(self, listen="127.0.0.1:0", *, name=None, ready=True, **options):
        self.server = PresetServer(
            self.graph,
            self.endpoint("server", name),
            listen=listen,
            dealer=self.dealer.address,
            state=self.directory / "server",
            **options,
        )
        self._run(self.server)
        if ready:
            assert self.server.link.wait_ready(10)
        return self.server

    def client(self, name="client", store=None, **options):
        """A client, and what it keeps its bundles in; each name has a store of its own."""
        opened = BundleStore(self.directory / (store or name), "client")
        client = PresetClient(
            self.endpoint("client", name),
            server=self.server.address,
            dealer=self.dealer.address,
            store=opened,
            **options,
        )
        self.ending += [client, opened]
        return client, opened

    def connect(self, name="client"):
        """A bare channel of a client to the server, for requests that no client of ours makes."""
        return self._connect("server", name)

    def connect_dealer(self, name="client"):
        """A bare channel of a client to the dealer."""
        return self._connect("dealer", name)

    def request(self, **changes):
        """The fields of PREPARE, OPEN and DEAL for the served model, with ``changes``."""
        return {"bundle_id": secrets.token_hex(16), "batch": 1, **self.server.model.public.fields, **changes}

    def refusal_of(self, channel, kind, **fields):
        """How the server refuses a request."""
        channel.send_control(kind, **fields)
        with pytest.raises(PeerRefusal) as caught:
            channel.recv_control(Kind.OPENED, Kind.PREPARED)
        return caught.value

    def deal(self, channel, seed, **fields):
        """Has the dealer deal a bundle, whether or not a client of ours would."""
        channel.send_control(Kind.DEAL, **fields)
        channel.send_array(Kind.BUNDLE_SEED, seed)
        channel.recv_control(Kind.DEALT)

    def pads_of(self, client, store, batch):
        """The pads of the client's next bundle, read from its store."""
        model = client.model
        with store.next_ready(owner=client.name, batch=batch, **model.fields) as lease:
            seed = Seed(lease.map()[:])
            return BundlePads(seed, bytes.fromhex(lease.bundle.bundle_id), bytes.fromhex(model.graph_hash), batch)

    def assert_serves(self, client):
        """The server still answers."""
        client.prepare(1)
        assert client.infer(self.images(1, seed=9)).shape == (1, 4)

    def images(self, batch, seed=0):
        return np.random.default_rng(seed).normal(size=(batch, *self.graph.input_shape)).astype(np.float32)

    def _connect(self, role, name):
        address = (self.server if role == "server" else self.dealer).address
        channel = self.endpoint("client", name).connect(address, role)
        self.ending.append(channel)
        return channel

    def _run(self, party):
        thread = threading.Thread(target=party.run)
        thread.start()
        self.threads.append((party, thread))

    def stop(self, party):
        """Ends one party and waits until it is gone."""
        party.stop()
        for other, thread in self.threads:
            if other is party:
                thread.join(10)
                assert not thread.is_alive()

    def close(self):
        for ending in self.ending:
            ending.close()
        for party, _ in self.threads:
            party.stop()
        for _, thread in self.threads:
            thread.join(10)


@pytest.fixture(scope="session")
def parties_of():
    """``parties_of(graph, directory)``: roles that outlive a test; nothing started yet, and to be closed."""
    return Parties


@pytest.fixture
def preset_graph(make_net, tmp_path):
    """The small residual network with four of ten ReLUs kept."""
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "m.onnx")
    return load_onnx(tmp_path / "m.onnx")


@pytest.fixture
def idle_parties(preset_graph, tmp_path):
    """Nothing started yet."""
    parties = Parties(preset_graph, tmp_path)
    yield parties
    parties.close()


@pytest.fixture
def parties(idle_parties):
    """A dealer and a server that is set up."""
    idle_parties.start_dealer()
    idle_parties.start_server()
    return idle_parties
