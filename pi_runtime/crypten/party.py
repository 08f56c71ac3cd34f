"""One process of the `crypten` backend: ``python -m pi_runtime.crypten.party``, started by the backend alone.

It takes commands on the control socket (:mod:`pi_runtime.child.control`) whose descriptor is its first argument, and
talks CrypTen's protocol with the other two over TCP. When the control socket closes, the backend is gone, however it
went, and the process ends at once.

Ranks: the server is CrypTen's party 0, which alone speaks with the dealer (so its link carries the triples), the client
is party 1, the dealer comes last. The server alone reads the model; the client gets the public graph.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.rendezvous import register_rendezvous_handler

from pi_runtime.child.control import Array, Control
from pi_runtime.child.leash import end_with_backend
from pi_runtime.crypten.crypten_graph import build_crypten_graph, round_to_encoder, run_node
from pi_runtime.crypten.library import import_crypten
from pi_runtime.crypten.material import Request, StockedProvider, install_provider, planning
from pi_runtime.crypten.meter import Meter, Reading
from pi_runtime.crypten.unmasked import build_unmasked_graph
from pi_runtime.errors import PiError
from pi_runtime.graph import Graph, parse_public
from pi_runtime.onnx_graph import load_onnx

crypten = import_crypten()

from crypten.mpc.provider.ttp_provider import TTP_FUNCTIONS, TTPServer  # noqa: E402 (after the import that makes it work)

RANKS = {"server": 0, "client": 1, "dealer": 2}
INPUT, OUTPUT = "input", "output"
_CONNECT_TIMEOUT = timedelta(seconds=60)


class Party:
    """The client or the server: its half of every phase."""

    def __init__(self, role: str, control: Control, meter: Meter) -> None:
        self.role = role
        self.control = control
        self.meter = meter
        self.graph: Graph
        self.model: Any
        self.provider: StockedProvider
        self.plans: dict[int, list[list[Request]]] = {}

    def load(self, header: dict[str, Any]) -> dict[str, Any]:
        """Reads the model (server) or takes the public graph (client); answers with the public graph (server)."""
        if self.role == "server":
            self.graph = load_onnx(Path(header["model"]))
            return {"public": self.graph.public_json()}
        self.graph = parse_public(header["public"], origin="the server's public graph")
        return {}

    def connect(self, header: dict[str, Any]) -> dict[str, Any]:
        """Joins the other processes and shares the parameters."""
        _join(self.role, header)
        crypten.init()
        self.meter.watch(crypten.communicator.get())
        self.provider = install_provider()
        build = build_unmasked_graph if header["whole_layers"] else build_crypten_graph
        self.model = build(self.graph)
        self.model.encrypt(src=RANKS["server"])
        return {}

    def plan(self, header: dict[str, Any]) -> dict[str, Any]:
        """Finds out which material an inference of this batch size takes, a layer."""
        batch = int(header["batch"])
        layers: list[list[Request]] = []
        with planning(self.provider) as requests:
            done = 0
            for _ in self._forward(crypten.cryptensor(torch.zeros(batch, *self.graph.input_shape))):
                layers.append(requests[done:])
                done = len(requests)
        self.plans[batch] = layers
        return {"requests": [len(layer) for layer in layers]}

    def offline(self, header: dict[str, Any]) -> dict[str, Any]:
        """Fetches the material of one inference of ``batch`` images."""
        marks = [self._mark()]
        for layer in self.plans[int(header["batch"])]:
            self.provider.fetch(layer)
            marks.append(self._mark())
        return {"marks": marks}

    def infer(self, header: dict[str, Any], images: list[Array]) -> tuple[dict[str, Any], list[Array]]:
        """One inference; the client's answer carries the logits."""
        shape = (int(header["batch"]), *self.graph.input_shape)
        marks = [self._mark()]
        plain = round_to_encoder(torch.from_numpy(images[0].copy())) if images else torch.zeros(shape)
        x = crypten.cryptensor(plain, src=RANKS["client"])
        marks.append(self._mark())
        for wire, value in self._forward(x):
            x = value if wire == self.graph.output else x
            marks.append(self._mark())
        logits = x.get_plain_text(dst=RANKS["client"])
        marks.append(self._mark())
        return {"marks": marks}, [logits.numpy()] if self.role == "client" else []

    def read(self, _header: dict[str, Any]) -> dict[str, Any]:
        return {"reading": asdict(self.meter.read()), "byte_source": self.meter.byte_source}

    def _forward(self, x: Any) -> Iterator[tuple[str, Any]]:
        """Yields each node's wire and its value, in order; a wire is dropped after its last reader."""
        wires = {self.graph.input: x}
        last = {wire: position for position, node in enumerate(self.graph.nodes) for wire in node.inputs}
        last[self.graph.output] = len(self.graph.nodes)
        with crypten.no_grad():
            for position, node in enumerate(self.graph.nodes):
                wires[node.output] = run_node(self.model, node, wires)
                for wire in set(node.inputs):
                    if last[wire] == position:
                        del wires[wire]
                yield node.output, wires[node.output]

    def _mark(self) -> dict[str, Any]:
        return {"seconds": time.perf_counter(), **asdict(self.meter.read())}

    def serve(self) -> None:
        """Answers commands until the backend closes the control socket."""
        steps = {"load": self.load, "connect": self.connect, "plan": self.plan, "offline": self.offline}
        while True:
            header, arrays = self.control.receive()
            name = header["command"]
            if name == "infer":
                self.control.send(*self.infer(header, arrays))
            elif name == "read":
                self.control.send(self.read(header))
            else:
                self.control.send(steps[name](header))


class _MeteredDealer(TTPServer):  # type: ignore[misc]
    """CrypTen's trusted third party, with a reading of the meter before each request that it answers."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.marks: list[Reading] = []
        self.ready = threading.Event()

    def run(self) -> None:
        super().__init__()

    def _setup_generators(self) -> None:
        # CrypTen draws the seeds that it sends to the parties from torch's default generator, whose seed is a constant
        # in some versions of torch.
        torch.manual_seed(secrets.randbits(64))
        self.meter.watch(crypten.communicator.get())
        super()._setup_generators()
        self.ready.set()

    def __getattribute__(self, name: str) -> Any:
        if name in TTP_FUNCTIONS:
            self.marks.append(self.meter.read())
        return super().__getattribute__(name)


def serve_dealer(control: Control, meter: Meter) -> None:
    """Answers the backend from this thread while another answers the server's requests for material."""
    dealer = _MeteredDealer(meter)
    while True:
        header, _ = control.receive()
        if header["command"] == "connect":
            _join("dealer", header)
            threading.Thread(target=_run_dealer, args=(dealer,), daemon=True).start()
            dealer.ready.wait()
            control.send({})
        else:
            marks = [*dealer.marks, meter.read()]
            dealer.marks.clear()
            control.send(
                {
                    "reading": asdict(marks[-1]),
                    "byte_source": meter.byte_source,
                    "marks": [asdict(mark) for mark in marks],
                }
            )


def _run_dealer(dealer: _MeteredDealer) -> None:
    try:
        dealer.run()
    finally:
        # Its peers went away or it failed: nothing is left to do in this process.
        os._exit(1)


def _join(role: str, meeting: dict[str, Any]) -> None:
    """Points CrypTen's process group at the store at ``host`` and ``port`` of ``meeting``, over its ``interface``.

    The server hosts the store on the socket that the backend had bound: bound before anybody connects, and to a
    loopback address only, where torch's own ``tcp://`` rendezvous listens on every interface.
    """
    listener = meeting.get("listener")

    def meet(_url: str, **_options: Any) -> Iterator[tuple[Any, int, int]]:
        store = torch._C._distributed_c10d.TCPStore(
            str(meeting["host"]),
            int(meeting["port"]),
            len(RANKS),
            is_master=listener is not None,
            timeout=_CONNECT_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener,
        )
        yield store, RANKS[role], len(RANKS)

    register_rendezvous_handler("loopback", meet)  # type: ignore[no-untyped-call]
    os.environ.update(
        DISTRIBUTED_BACKEND="gloo",
        RENDEZVOUS="loopback://",
        WORLD_SIZE="2",
        RANK=str(RANKS[role]),
        GLOO_SOCKET_IFNAME=str(meeting["interface"]),
    )


def main() -> None:
    """Runs the role named in the second argument over the control descriptor in the first."""
    descriptor, role, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    control = Control(socket.socket(fileno=descriptor))
    end_with_backend(control)
    torch.set_num_threads(threads)
    crypten.cfg.mpc.provider = "TTP"
    crypten.cfg.communicator.verbose = True
    meter = Meter()
    try:
        if role == "dealer":
            serve_dealer(control, meter)
        Party(role, control, meter).serve()
    except EOFError:
        os._exit(0)
    except PiError as error:
        control.send({"error": type(error).__name__, "message": str(error)})
    except RuntimeError as error:
        # gloo reports a lost peer this way; the backend decides whose fault it was.
        control.send({"error": "RuntimeError", "message": str(error).splitlines()[0]})
    # Skips the teardown of process groups, which would wait for peers that may be gone.
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
