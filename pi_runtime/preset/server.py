"""The server: holds the weights, keeps its part of the bundles, and answers clients.

One-time use (PROTOCOL.md, section 4): OPEN takes a bundle of this client; the server marks it spent, durably, before it
answers OPENED. Nothing that depends on the bundle's material leaves before that, and a connection that breaks ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pi_runtime.closing import Closing
from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.graph import Graph
from pi_runtime.net.channel import Channel
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Body, ErrorCode, Kind
from pi_runtime.preset.assembly import Assembly
from pi_runtime.preset.bundle import DEFAULT_MAX_BUNDLE_BYTES, BundleLayout, load_linear_part, part_bytes
from pi_runtime.preset.dealer_link import DealerLink
from pi_runtime.preset.ledger import Ledger
from pi_runtime.preset.material import load_material
from pi_runtime.preset.model import ServedModel
from pi_runtime.preset.online import ServerMaterial, input_bytes, opening_sizes, run_server
from pi_runtime.preset.program import Step
from pi_runtime.preset.service import RefusedRequest, Service, Visit, check_bundle_bytes, log
from pi_runtime.preset.step_clock import StepClock
from pi_runtime.preset.store import BundleStore
from pi_runtime.preset.warmup import warm_up

DEFAULT_MAX_CLIENTS = 16
DEFAULT_MAX_UNSPENT = 1024
"""Bundles that one client may have here unspent: a large stock, yet who opens none cannot go on for ever."""


class PresetServer(Closing):
    """Serves one model to many clients.

    dealer: its address. dealer_name: the only dealer that will do; any that the CA certified if None.
    state: directory of the model's identity and of the bundles. threads: CPU threads of the linear layers.
    max_clients: connected at a time. max_bundle_bytes: the largest bundle that a client may ask for.
    max_unspent: bundles of this model that one client may have unspent, those being made included.
    """

    def __init__(
        self,
        graph: Graph,
        endpoint: Endpoint,
        *,
        listen: str,
        dealer: str,
        state: Path,
        dealer_name: str | None = None,
        threads: int = 1,
        max_clients: int = DEFAULT_MAX_CLIENTS,
        max_bundle_bytes: int = DEFAULT_MAX_BUNDLE_BYTES,
        max_unspent: int = DEFAULT_MAX_UNSPENT,
    ) -> None:
        """Listens at once, and begins to look for the dealer.

        Raises:
            PiError: the model, the address or the state directory cannot be used.
        """
        self.model = ServedModel(graph, state, threads=threads)
        warm_up(self.model.program, self.model.product)
        self._max_bundle_bytes = max_bundle_bytes
        self.ledger = Ledger()
        self.step_seconds: dict[str, float] = {}
        self._store = BundleStore(state / "bundles", "server")
        self._store.retire(**self.model.public.fields)
        self._assembly = Assembly(self.model, self._store, max_unspent=max_unspent)
        self.link = DealerLink(endpoint, dealer, self.model, self._assembly, name=dealer_name, ledger=self.ledger)
        self._service = Service(
            endpoint, listen, ("client",), self._serve, ledger=self.ledger, max_connections=max_clients
        )
        self.address = self._service.address
        self.link.start()

    def run(self) -> None:
        """Serves until :meth:`stop`."""
        try:
            self._service.run()
        finally:
            self.close()

    def stop(self) -> None:
        """Makes :meth:`run` return; may be called from a signal handler."""
        self._service.stop()

    def wait_idle(self, within_s: float) -> bool:
        """Waits until nothing is under way with any peer, so that the ledger is exact."""
        return self._service.wait_idle(within_s) and self.link.wait_idle(within_s)

    def close(self) -> None:
        """Ends all connections and closes the store."""
        self._service.close()
        self.link.close()
        self._store.close()

    def _serve(self, visit: Visit) -> None:
        channel, public = visit.channel, self.model.public
        kinds = (Kind.GET_MODEL, Kind.GET_GRAPH, Kind.GET_SEED, Kind.PREPARE, Kind.OPEN)
        while (request := visit.next_request(*kinds)) is not None:
            match request.kind:
                case Kind.GET_MODEL:
                    channel.send_control(Kind.MODEL, graph_bytes=len(self.model.graph_text), **public.fields)
                case Kind.GET_GRAPH:
                    channel.send_array(Kind.GRAPH, self.model.graph_text)
                case Kind.GET_SEED:
                    channel.send_array(Kind.WEIGHT_SEED, self.model.weight_seed.reveal())
                case Kind.PREPARE:
                    self._prepare(visit, *self._checked(request.body))
                case _:
                    bundle_id, batch = self._checked(request.body)
                    material = self._open(visit.peer_name, bundle_id, batch)
                    channel.send_control(Kind.OPENED, bundle_id=bundle_id)
                    self._infer(visit, batch, material)

    def _checked(self, body: Body) -> tuple[str, int]:
        """The bundle's id and batch of a request that names the model served."""
        fields = self.model.public.fields
        if {name: body[name] for name in fields} != fields:
            raise RefusedRequest(ErrorCode.MODEL, "another model is served here; connect again to learn which")
        return str(body["bundle_id"]), int(body["batch"])

    def _prepare(self, visit: Visit, bundle_id: str, batch: int) -> None:
        program, channel = self.model.program, visit.channel
        size = BundleLayout(program, batch).total_bytes
        check_bundle_bytes(batch, size, self._max_bundle_bytes)
        with self._assembly.collecting(bundle_id, batch, visit.peer_name) as pending:
            channel.send_control(Kind.PREPARED, bundle_id=bundle_id)
            for step in program.linear_steps:
                part = channel.recv_array(Kind.CLIENT_SHARE, part_bytes(step, batch), layer=step.index)
                pending.add_linear(step, load_linear_part(step, batch, part.data))
            pending.delivered("client")
            timeouts = channel.timeouts
            pending.wait(timeouts.read_s + size / timeouts.min_rate_bytes_s)
        channel.send_control(Kind.STORED, bundle_id=bundle_id)
        log.info("%s prepared a bundle of %d images", channel.peer, batch)

    def _open(self, client: str, bundle_id: str, batch: int) -> ServerMaterial:
        """The material of a bundle that is spent, durably, when this returns."""
        public = self.model.public
        try:
            with self._store.open_material(bundle_id) as lease:
                bundle = lease.bundle
                if bundle.owner != client:
                    raise RefusedRequest(ErrorCode.BUNDLE, f"bundle {bundle_id} belongs to another client")
                if (bundle.model_id, bundle.graph_hash) != (public.model_id, public.graph_hash):
                    raise RefusedRequest(ErrorCode.BUNDLE, f"bundle {bundle_id} is of a model that is gone")
                if bundle.batch != batch:
                    raise RefusedRequest(ErrorCode.MODEL, f"bundle {bundle_id} is for a batch of {bundle.batch}")
                # Spent first: material that cannot be read must not be tried again either.
                self._store.spend(bundle_id)
                return load_material(self.model.program, batch, lease.map())
        except (LocalProtocolError, RemoteProtocolError) as error:
            raise RefusedRequest(ErrorCode.BUNDLE, str(error)) from error

    def _infer(self, visit: Visit, batch: int, material: ServerMaterial) -> None:
        program, channel = self.model.program, visit.channel
        received = visit.next_array(Kind.INPUT, input_bytes(program, batch))
        clock = StepClock()
        masked = received.view("<i8").reshape(batch, *program.input_shape)
        logits = run_server(program, self.model.product, material, masked, _exchange(channel, batch), clock.tick)
        channel.send_array(Kind.LOGITS, logits)
        self.step_seconds = clock.seconds
        log.info("%s: %d images in %.1f ms", channel.peer, batch, 1e3 * sum(clock.seconds.values()))


def _exchange(channel: Channel, batch: int) -> Callable[[Step, bytes], memoryview]:
    def exchange(step: Step, opening: bytes) -> memoryview:
        channel.send_array(Kind.SERVER_OPEN, opening, layer=step.index)
        answer = channel.recv_array(Kind.CLIENT_ANSWER, opening_sizes(step, batch).answer, layer=step.index)
        return answer.data

    return exchange
