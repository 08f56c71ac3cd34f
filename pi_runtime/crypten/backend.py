"""The `crypten` backend: CrypTen 0.4.1 as three real processes over TCP on loopback addresses.

Roles. The *server* (CrypTen's party 0) alone opens the model; its parameters are shared among the parties. The *client*
(party 1) holds the images and alone learns the logits; it knows the public graph. The *dealer* is CrypTen's trusted
third party, a process of its own that sees neither shares nor graph, only the shapes of the material it is asked for.
CrypTen's default provider is a trusted *first* party, which would tell the server everything; it is never used.

Threat model. Semi-honest parties, no collusion, dealer included. What this backend measures is CrypTen as it is, and
CrypTen is research code: its masks come from torch's Mersenne Twister, which is not a cryptographic generator and takes
in 32 bits of a seed at most. Each process draws its seeds from the operating system (CrypTen does so for the parties;
for the dealer it does not, so that is done here). Requests to the dealer are pickled by CrypTen and read by its
restricted unpickler; messages are neither encrypted nor authenticated, which is why everything stays on loopback.

Phases.

- ``setup``: starting the processes, connecting, sharing the parameters. CrypTen shares with seeds that both parties
  hold, so parameters and inputs cost no traffic.
- ``offline``: the dealer makes the material of one inference, known from public shapes alone
  (:mod:`pi_runtime.crypten.material`). The server asks and receives; client and dealer expand the client's part, and
  most of the server's, from seeds.
- ``online``: from the client's input to its logits; the dealer is idle.

Bytes are read at the sockets (:mod:`pi_runtime.crypten.meter`). Rounds are those that CrypTen's communicator counts at
the server: online, one a collective call; offline, three a request (question, length, answer). Fixed point has 16
fraction bits in a ring of 64.
"""

from __future__ import annotations

import json
import socket
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pi_runtime.backend import ROLES, Backend, Cost, LayerCost, RunCost, sum_costs
from pi_runtime.child.process import Answer, Process, ask, close_all
from pi_runtime.crypten.cost import Mark, layer_costs, setup_cost
from pi_runtime.errors import BackendError, ConfigError, LocalProtocolError
from pi_runtime.graph import Graph, parse_public
from pi_runtime.net.hosts import LOOPBACK_HOSTS, Hosts

_MODULE = "pi_runtime.crypten.party"
_START_TIMEOUT_S = 180.0
_RUN_TIMEOUT_S = 1800.0


class CryptenBackend(Backend):
    """CrypTen with its trusted third party; see the module.

    port: where the processes meet at the server's address; 0 takes a free one.
    threads: of each of the three processes.
    hosts: where the roles live; all on 127.0.0.1 unless told otherwise.
    byte_source: ``tcp_info`` where bytes are read at the sockets, ``communicator`` where they are CrypTen's estimate;
        known after :meth:`prepare`.
    """

    name = "crypten"
    whole_layers = False

    def __init__(self, *, port: int = 0, threads: int = 1, hosts: Hosts = LOOPBACK_HOSTS) -> None:
        if not 0 <= port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535 (0: a free one), got {port}")
        if threads < 1:
            raise ConfigError(f"threads must be >= 1, got {threads}")
        self.byte_source: str | None = None
        self._port = port
        self._threads = threads
        self._hosts = hosts
        self._processes: dict[str, Process] = {}
        self._graph: Graph | None = None
        self._setup = Cost()
        self._requests: dict[int, list[int]] = {}
        self._stock: defaultdict[int, deque[tuple[Cost, tuple[LayerCost, ...]]]] = defaultdict(deque)

    def prepare(self, model: Path) -> None:
        self.close()
        started = time.perf_counter()
        try:
            self._start(model)
        except BaseException:
            self.close()
            raise
        self._setup = setup_cost(self._totals(), seconds=time.perf_counter() - started)

    def offline(self, batch: int, count: int = 1) -> None:
        if batch < 1 or count < 1:
            raise ConfigError(f"batch and count must be >= 1, got {batch} and {count}")
        graph = self._prepared()
        requests = self._plan(batch)
        for _ in range(count):
            started = time.perf_counter()
            answers = self._ask(("server", "client"), {"command": "offline", "batch": batch})
            seconds = time.perf_counter() - started
            marks: dict[str, Sequence[Mark]] = {role: answer.header["marks"] for role, answer in answers.items()}
            # The parties mark layers, the dealer requests.
            dealer = self._ask(("dealer",), {"command": "report"})["dealer"].header["marks"]
            marks["dealer"] = [dealer[end] for end in accumulate(requests, initial=0)]
            layers = layer_costs(graph.nodes, "offline", marks)
            self._stock[batch].append((replace(sum_costs(layer.cost for layer in layers), seconds=seconds), layers))

    def infer(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], RunCost]:
        graph = self._prepared()
        if images.ndim != 4 or images.shape[1:] != graph.input_shape or not len(images):
            raise ConfigError(f"images must be [B, {', '.join(map(str, graph.input_shape))}], got {images.shape}")
        batch = len(images)
        if not self._stock[batch]:
            self.offline(batch)
        offline, offline_layers = self._stock[batch].popleft()
        started = time.perf_counter()
        answers = self._ask(
            ("server", "client"),
            {"command": "infer", "batch": batch},
            extra={"client": ({}, [images.astype(np.float32)])},
        )
        seconds = time.perf_counter() - started
        layers = layer_costs(graph.nodes, "online", {role: answer.header["marks"] for role, answer in answers.items()})
        online = replace(sum_costs(layer.cost for layer in layers), seconds=seconds)
        phases = {"setup": self._setup, "offline": offline, "online": online}
        return answers["client"].arrays[0], RunCost(phases=phases, layers=(*offline_layers, *layers))

    def close(self) -> None:
        close_all(self._processes.values())
        self._processes.clear()
        self._stock.clear()
        self._requests.clear()
        self._graph = None

    def _start(self, model: Path) -> None:
        with _bound(self._hosts, self._port) as listener:
            host, port = listener.getsockname()
            meeting = {"host": host, "port": port, "interface": self._hosts.interface or _loopback_interface()}
            for role in ROLES:
                inherit = [listener.fileno()] if role == "server" else []
                with self._hosts.at(role):
                    self._processes[role] = Process(_MODULE, role, threads=self._threads, inherit=inherit)
            loaded = self._ask(("server",), {"command": "load", "model": str(model)}, _START_TIMEOUT_S)
            public = json.loads(loaded["server"].header["public"])
            self._graph = parse_public(public, origin=str(model))
            self._ask(("client",), {"command": "load", "public": public}, _START_TIMEOUT_S)
            self._ask(
                ROLES,
                {"command": "connect", "whole_layers": self.whole_layers, **meeting},
                _START_TIMEOUT_S,
                extra={"server": ({"listener": listener.fileno()}, ())},
            )

    def _plan(self, batch: int) -> list[int]:
        """How many requests to the dealer each layer makes at this batch size; worked out once, without traffic."""
        if batch not in self._requests:
            answers = self._ask(("server", "client"), {"command": "plan", "batch": batch})
            self._requests[batch] = answers["server"].header["requests"]
        return self._requests[batch]

    def _totals(self) -> dict[str, Mark]:
        """What each process counted since it started."""
        answers = self._ask(ROLES, {"command": "read"})
        sources = {answer.header["byte_source"] for answer in answers.values()}
        self.byte_source = "tcp_info" if sources == {"tcp_info"} else "communicator"
        return {role: answer.header["reading"] for role, answer in answers.items()}

    def _prepared(self) -> Graph:
        if self._graph is None:
            raise LocalProtocolError("the crypten backend has no model; call prepare first")
        return self._graph

    def _ask(
        self,
        roles: Sequence[str],
        header: Mapping[str, Any],
        timeout_s: float = _RUN_TIMEOUT_S,
        extra: Mapping[str, tuple[Mapping[str, Any], Sequence[npt.NDArray[Any]]]] | None = None,
    ) -> dict[str, Answer]:
        try:
            return ask(self._processes, roles, header, timeout_s=timeout_s, extra=extra)
        except BaseException:
            # Half a step done leaves the processes out of step: there is nothing to go on with.
            self.close()
            raise


class UnmaskedCryptenBackend(CryptenBackend):
    """The same, as CrypTen's users would run a linearized network: each ReLU layer compared whole, then masked.

    What gathering the kept elements saves is the difference to ``crypten`` (:mod:`pi_runtime.crypten.unmasked`).
    """

    name = "crypten-unmasked"
    whole_layers = True


def _bound(hosts: Hosts, port: int) -> socket.socket:
    """A listening socket at the server's address; the server inherits it, so that nobody else can take the port."""
    address = hosts.address("server")
    with hosts.at("server"):
        listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise BackendError(
            f"port {port} on {address} cannot be used ({error.strerror}); give another --port, or 0 for a free one"
        ) from error
    return listener


def _loopback_interface() -> str:
    """What this machine calls it."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
