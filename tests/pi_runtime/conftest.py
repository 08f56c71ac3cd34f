"""Client, server and dealer of a tiny network, in threads over real sockets on loopback."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pi_runtime.export import export_onnx
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Identity
from pi_runtime.net.transport import Timeouts
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.client import PresetClient
from pi_runtime.preset.dealer import Dealer
from pi_runtime.preset.server import PresetServer
from pi_runtime.preset.store import BundleStore
from pi_runtime.primitives.prg import PRG_ID

QUICK = Timeouts(connect_s=10, handshake_s=10, read_s=10)


class Parties:
    """A dealer and a server that run, and clients on demand; whatever was made is ended by :meth:`close`."""

    def __init__(self, graph, directory):
        self.graph = graph
        self.directory = directory
        self.threads = []
        self.ending = []
        self.dealer = self.server = None

    def endpoint(self, role, name=None):
        return Endpoint(Identity(role, name or role), prg=PRG_ID, insecure_loopback=True, timeouts=QUICK)

    def start_dealer(self, listen="127.0.0.1:0", **options):
        self.dealer = Dealer(self.graph.public(), self.endpoint("dealer"), listen=listen, **options)
        self._run(self.dealer)
        return self.dealer

    def start_server(self, listen="127.0.0.1:0", **options):
        self.server = PresetServer(
            self.graph,
            self.endpoint("server"),
            listen=listen,
            dealer=self.dealer.address,
            state=self.directory / "server",
            **options,
        )
        self._run(self.server)
        assert self.server.link.wait_ready(10)
        return self.server

    def client(self, name="client", store=None):
        """A client, and what it keeps its bundles in; each name has a store of its own."""
        opened = BundleStore(self.directory / (store or name), "client")
        client = PresetClient(
            self.endpoint("client", name), server=self.server.address, dealer=self.dealer.address, store=opened
        )
        self.ending += [client, opened]
        return client, opened

    def images(self, batch, seed=0):
        return np.random.default_rng(seed).normal(size=(batch, *self.graph.input_shape)).astype(np.float32)

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
