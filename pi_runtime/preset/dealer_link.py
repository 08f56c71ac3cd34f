"""The server's connection to the dealer: set-up, then whatever material the dealer delivers.

A thread keeps the connection: it connects, sets the dealer up unless it still knows the model, and takes deliveries.
When the dealer goes away it starts again, so that either may be started or restarted first.
"""

from __future__ import annotations

import threading

import numpy as np

from pi_runtime.errors import ProtocolError, RemoteProtocolError
from pi_runtime.net.channel import Channel, Control
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Kind
from pi_runtime.preset.assembly import Assembly, PendingBundle
from pi_runtime.preset.bundle import load_linear_part, part_bytes
from pi_runtime.preset.ledger import Ledger
from pi_runtime.preset.model import ServedModel
from pi_runtime.preset.offline import expand_weight_pad
from pi_runtime.preset.program import Step
from pi_runtime.preset.service import Visit, attend, log

_RETRY_S = 1.0


class DealerLink:
    """Keeps the server connected to its dealer; ``name`` is the only one that will do, any of the CA if None."""

    def __init__(
        self,
        endpoint: Endpoint,
        address: str,
        model: ServedModel,
        assembly: Assembly,
        *,
        name: str | None,
        ledger: Ledger,
    ) -> None:
        self._endpoint = endpoint
        self._address = address
        self._name = name
        self._model = model
        self._assembly = assembly
        self._ledger = ledger
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._visit: Visit | None = None
        self._delivering: PendingBundle | None = None
        self._thread = threading.Thread(target=self._keep, name="dealer link", daemon=True)

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._thread.start()

    def wait_ready(self, within_s: float) -> bool:
        """Waits until the dealer is set up; False if it is not in time."""
        return self._ready.wait(within_s)

    def wait_idle(self, within_s: float) -> bool:
        """Waits until no delivery is under way; False if it is not in time."""
        visit = self._visit
        return visit is None or visit.wait_idle(within_s)

    def close(self) -> None:
        """Ends the connection; safe to call twice."""
        self._stop.set()
        if (visit := self._visit) is not None:
            visit.end()
        if self._thread.is_alive():
            self._thread.join(_RETRY_S)

    def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                channel = self._endpoint.connect(self._address, "dealer", self._name)
            except ProtocolError as error:
                log.warning("no dealer: %s", error)
                self._stop.wait(_RETRY_S)
                continue
            self._visit = visit = Visit(channel)
            if self._stop.is_set():
                visit.end()
            with self._ledger.counting(channel):
                attend(visit, self._serve)
            self._ready.clear()
            if self._delivering is not None:
                self._delivering.fail("the dealer went away; try again")
            self._stop.wait(_RETRY_S)

    def _serve(self, visit: Visit) -> None:
        self._set_up(visit.channel)
        self._ready.set()
        log.info("%s is set up", visit.channel.peer)
        while (request := visit.next_request(Kind.MATERIAL)) is not None:
            self._take(visit.channel, request)

    def _set_up(self, channel: Channel) -> None:
        """Gives the dealer A_l = W_l - D_l of every linear layer, unless it has them."""
        public = self._model.public
        channel.send_control(Kind.SETUP, **public.fields)
        answer = channel.recv_control(Kind.SETUP_NEEDED, Kind.SETUP_DONE)
        if answer.kind is Kind.SETUP_NEEDED:
            graph_hash, model_id = bytes.fromhex(public.graph_hash), bytes.fromhex(public.model_id)
            for step in public.program.linear_steps:
                pad = expand_weight_pad(step, self._model.weight_seed, graph_hash, model_id)
                channel.send_array(Kind.WEIGHT_PAD, self._model.weights[step.name][0] - pad, layer=step.index)
            answer = channel.recv_control(Kind.SETUP_DONE)
        if answer.body != public.fields:
            raise RemoteProtocolError("the dealer was set up for another model")

    def _take(self, channel: Channel, request: Control) -> None:
        """Takes the dealer's part of one bundle; drops it where the client has not announced such a bundle."""
        body, public = request.body, self._model.public
        if {name: body[name] for name in public.fields} != public.fields:
            raise RemoteProtocolError("the dealer delivers for another model")
        bundle_id, batch = str(body["bundle_id"]), int(body["batch"])
        pending = self._assembly.find(bundle_id, batch, str(body["client"]))
        self._delivering = pending
        try:
            for step in public.program.steps:
                if step.kind == "linear":
                    self._take_linear(channel, step, batch, pending)
                elif step.kind == "gate":
                    self._take_gates(channel, step, batch, pending)
            channel.send_control(Kind.STORED, bundle_id=bundle_id)
            if pending is not None:
                pending.delivered("provider")
        except BaseException:
            if pending is not None:
                pending.fail("the dealer broke off; try again")
            raise
        finally:
            self._delivering = None

    @staticmethod
    def _take_linear(channel: Channel, step: Step, batch: int, pending: PendingBundle | None) -> None:
        size = part_bytes(step, batch)
        if pending is None:
            channel.recv_stream(Kind.LINEAR_SHARE, size, lambda piece: None, layer=step.index)
        else:
            part = channel.recv_array(Kind.LINEAR_SHARE, size, layer=step.index)
            pending.add_linear(step, load_linear_part(step, batch, part.data))

    @staticmethod
    def _take_gates(channel: Channel, step: Step, batch: int, pending: PendingBundle | None) -> None:
        size = part_bytes(step, batch)
        if pending is None:
            channel.recv_stream(Kind.GATE_SHARE, size, lambda piece: None, layer=step.index)
        else:
            view: np.ndarray[tuple[int], np.dtype[np.uint8]] = pending.gate_view(step)
            channel.recv_into(Kind.GATE_SHARE, view, layer=step.index)
