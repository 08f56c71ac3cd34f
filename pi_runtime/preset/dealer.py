"""The dealer: knows the public graph, keeps A of each model it was set up for, and deals bundles.

A = W - D is uniform to the dealer, which never sees D. A is held in memory alone: a restarted dealer is set up again by
the server. A bundle's seed, alpha and opening masks are forgotten once the bundle is delivered. The dealer must see no
message between client and server: with a recording of that link its state gives weights and inputs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

from pi_runtime.closing import Closing
from pi_runtime.errors import RemoteProtocolError
from pi_runtime.graph import Graph
from pi_runtime.net.channel import Channel, Control
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Body, ErrorCode, Kind
from pi_runtime.preset.bundle import DEFAULT_MAX_BUNDLE_BYTES, BundleLayout
from pi_runtime.preset.ledger import Ledger
from pi_runtime.preset.linear_ops import Weight, pack, weight_shape
from pi_runtime.preset.offline import deal
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.reply import expect
from pi_runtime.preset.service import RefusedRequest, Service, Visit, check_bundle_bytes, log
from pi_runtime.preset.shares import BundlePads
from pi_runtime.preset.step_clock import StepClock
from pi_runtime.preset.warmup import warm_up
from pi_runtime.primitives.prg import SEED_BYTES, Label, Seed, Stream

DEFAULT_MAX_PEERS = 32
_LINK_CHECK_S = 1.0
_RETRY_S = 0.05


@dataclass(frozen=True, eq=False)
class _Model:
    """A of one model, packed, and the name of the server that it belongs to."""

    server: str
    pads: Mapping[str, Weight] = field(repr=False)


@dataclass(eq=False)
class _Link:
    """The connection to a server that is set up; ``lock`` is held by whoever uses the channel.

    The model is the link's own: what the server is set up for elsewhere does not take it away.
    """

    channel: Channel
    model: _Model
    lock: threading.Lock = field(default_factory=threading.Lock)


class Dealer(Closing):
    """Deals bundles for one public graph; a server sets it up, clients ask.

    threads: CPU threads of the linear layers. max_bundle_bytes: the largest bundle that a client may ask for.
    """

    def __init__(
        self,
        graph: Graph,
        endpoint: Endpoint,
        *,
        listen: str,
        threads: int = 1,
        max_peers: int = DEFAULT_MAX_PEERS,
        max_bundle_bytes: int = DEFAULT_MAX_BUNDLE_BYTES,
    ) -> None:
        """Listens at once.

        Raises:
            PiError: the graph or the address cannot be used.
        """
        self._graph_hash = graph.public_hash
        self._program = compile_program(graph.public())
        warm_up(self._program)
        self._threads = threads
        self._max_bundle_bytes = max_bundle_bytes
        self._timeouts = endpoint.timeouts
        self._lock = threading.Condition()
        self._models: dict[str, _Model] = {}
        self._links: dict[str, _Link] = {}
        self.ledger = Ledger()
        self.step_seconds: dict[str, float] = {}
        self._service = Service(
            endpoint, listen, ("client", "server"), self._serve, ledger=self.ledger, max_connections=max_peers
        )
        self.address = self._service.address

    def run(self) -> None:
        """Serves until :meth:`stop`."""
        self._service.run()

    def stop(self) -> None:
        """Makes :meth:`run` return; may be called from a signal handler."""
        self._service.stop()

    def wait_idle(self, within_s: float) -> bool:
        """Waits until nothing is under way with any peer, so that the ledger is exact."""
        return self._service.wait_idle(within_s)

    def close(self) -> None:
        """Ends all connections."""
        self._service.close()

    def _serve(self, visit: Visit) -> None:
        if visit.channel.peer.role == "server":
            self._serve_server(visit)
        else:
            while (request := visit.next_request(Kind.DEAL)) is not None:
                self._deal(visit, request.body)

    # A server

    def _serve_server(self, visit: Visit) -> None:
        request = visit.next_request(Kind.SETUP)
        if request is None:
            return
        model_id = str(request.body["model_id"])
        link = _Link(visit.channel, self._set_up(visit, request))
        with self._lock:
            self._links[model_id] = link
            self._lock.notify_all()
        try:
            self._watch(visit, link)
        finally:
            with self._lock:
                if self._links.get(model_id) is link:
                    del self._links[model_id]

    def _set_up(self, visit: Visit, request: Control) -> _Model:
        """Takes A from a server unless it is here already."""
        channel, model_id = visit.channel, str(request.body["model_id"])
        fields = {"model_id": model_id, "graph_hash": self._graph_hash}
        self._check_graph(request.body)
        with self._lock:
            known = self._models.get(model_id)
        if known is not None and known.server != visit.peer_name:
            raise RefusedRequest(ErrorCode.MODEL, "this model belongs to another server")
        if known is None:
            channel.send_control(Kind.SETUP_NEEDED, **fields)
            pads: dict[str, Weight] = {}
            for step in self._program.linear_steps:
                shape = weight_shape(step)
                received = channel.recv_array(Kind.WEIGHT_PAD, 8 * prod(shape), layer=step.index)
                pads[step.name] = pack(step, received.view("<i8").reshape(shape))
            known = _Model(visit.peer_name, pads)
            with self._lock:
                # A server serves one model; what it served before is kept by a link that still lives, and else gone.
                self._models = {key: model for key, model in self._models.items() if model.server != visit.peer_name}
                self._models[model_id] = known
        channel.send_control(Kind.SETUP_DONE, **fields)
        log.info("%s is set up", channel.peer)
        return known

    @staticmethod
    def _watch(visit: Visit, link: _Link) -> None:
        """Returns when the server has gone; until then the channel is used by those who deal."""
        while not visit.ended:
            with visit.idle():
                if not link.channel.poll(_LINK_CHECK_S):
                    continue
            with link.lock:
                # With the lock nobody deals, so anything that comes is the end.
                if link.channel.poll(0.0):
                    link.channel.recv_control(Kind.BYE)
                    return

    # A client

    def _deal(self, visit: Visit, body: Body) -> None:
        self._check_graph(body)
        client, model_id = visit.channel, str(body["model_id"])
        bundle_id, batch = str(body["bundle_id"]), int(body["batch"])
        size = BundleLayout(self._program, batch).total_bytes
        check_bundle_bytes(batch, size, self._max_bundle_bytes)
        seed = Seed(client.recv_array(Kind.BUNDLE_SEED, SEED_BYTES).tobytes())
        pads = BundlePads(seed, bytes.fromhex(bundle_id), bytes.fromhex(self._graph_hash), batch)
        # Half of what the client waits for the whole: it must hear the reason before it gives up.
        patience_s = (self._timeouts.read_s + size / self._timeouts.min_rate_bytes_s) / 2
        with self._link(model_id, patience_s) as link:
            try:
                link.channel.send_control(
                    Kind.MATERIAL,
                    bundle_id=bundle_id,
                    batch=batch,
                    client=visit.peer_name,
                    model_id=model_id,
                    graph_hash=self._graph_hash,
                )
                clock = StepClock()
                for part in deal(self._program, link.model.pads, pads, _own_stream(pads), self._threads):
                    kind = Kind.LINEAR_SHARE if part.step.kind == "linear" else Kind.GATE_SHARE
                    link.channel.send_stream(kind, part.nbytes, part.pieces, layer=part.step.index)
                    clock.tick(part.step)
                self.step_seconds = clock.seconds
                expect(link.channel, Kind.STORED, bundle_id=bundle_id)
            except RemoteProtocolError as error:
                log.info("%s: %s", link.channel.peer, error)
                raise RefusedRequest(ErrorCode.BUSY, "the server went away while it was dealt to; try again") from error
        client.send_control(Kind.DEALT, bundle_id=bundle_id)
        log.info("%s: dealt %d images, %d bytes", client.peer, batch, size)

    @contextmanager
    def _link(self, model_id: str, patience_s: float) -> Iterator[_Link]:
        """The living connection to the server of a model, for this thread alone.

        Waits connect_s for the server to come, and ``patience_s`` for its turn behind other bundles.
        """
        started = time.monotonic()
        while True:
            with self._lock:
                left_s = max(started + self._timeouts.connect_s - time.monotonic(), 0.0)
                came = self._lock.wait_for(lambda: model_id in self._links, left_s)
                link = self._links.get(model_id)
            if not came or link is None:
                raise RefusedRequest(ErrorCode.BUSY, "the server of this model is not connected to the dealer")
            if not link.lock.acquire(timeout=max(started + patience_s - time.monotonic(), 0.0)):
                raise RefusedRequest(
                    ErrorCode.BUSY, f"other bundles keep the dealer busy for more than {patience_s:.3g} s; try again"
                )
            try:
                if not link.channel.poll(0.0):
                    yield link
                    return
            finally:
                link.lock.release()
            # It has ended: its own thread takes it off the list, and the server comes back.
            time.sleep(_RETRY_S)

    def _check_graph(self, body: Body) -> None:
        if body["graph_hash"] != self._graph_hash:
            raise RefusedRequest(ErrorCode.MODEL, "the dealer knows another public graph; give it the model's own")


def _own_stream(pads: BundlePads) -> Stream:
    """The dealer's own generator for one bundle: alpha and opening masks.

    The label is there for a dealer whose system generator repeats, as after a snapshot: its bundles still differ.
    """
    label = Label(
        bundle_id=pads.bundle_id,
        graph_hash=pads.graph_hash,
        role="dealer",
        image=0,
        layer="",
        purpose="alpha and masks",
    )
    return Seed.fresh().stream(label)
