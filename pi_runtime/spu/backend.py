"""The backends `spu-cheetah` and `spu-semi2k`: SecretFlow's SPU 0.9.5, a peer, as two real processes over TCP.

Roles. The *client* is SPU's party 0 and owns the images, the *server* is party 1 and owns the parameters; each operand
is private to its owner, and the client alone learns the logits. Both know the public graph. There is no dealer. SPU's
Python has no onnx (:mod:`pi_runtime.spu.interpreter`), so this process reads the model for the server and hands the
parameters to its process; nothing else of it goes to the client's.

What is run. The whole graph as one jax function (:mod:`pi_runtime.spu.jax_graph`), compiled by SPU, in a ring of 64
bits with SPU's 18 fraction bits. SPU computes a convolution as a matrix product over unfolded windows.

Threat model. Semi-honest parties. What that is worth differs:

- ``spu-cheetah``: homomorphic encryption and oblivious transfer between the two, with no third role to trust; more than
  our dealer gives.
- ``spu-semi2k``: its triples come from SPU's *trusted first party*, its default: party 0 holds the seeds of both
  parties' triples, and so could read the server's parameters off what it is sent. It is a figure for the online part of
  such a protocol, and not a secure one; a deployment takes a third party for it, whose traffic is not in the figures.
  Our dealer is apart from both parties, and its work and bytes are counted (``offline``).

SPU's messages are neither encrypted nor authenticated as they are set up here, which is why all stays on loopback
addresses. No pickle crosses a socket: SPU's distributed helper, which sends them, is not used.

Phases. ``setup``: starting, connecting, registering operands, keys and base transfers (by a small product and
comparison of ones), and compiling the graph. Nothing of the parameters is kept in shared form: what SPU sends of them,
it sends with each inference. SPU has no offline phase: all that an inference takes is *online*, and the offline figures
are zero. Cheetah makes oblivious transfers in large lots and keeps what is left of one, so single inferences differ by
a lot. The graph runs as one program, so no layers are told apart.

Bytes are read at the sockets, with all of SPU's framing (:mod:`pi_runtime.net.tcp_info`). Messages and rounds are
counted in SPU's trace of its link (:mod:`pi_runtime.spu.link_log`); the rounds are the client's.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pi_runtime.backend import ROLES, Backend, Cost, RunCost
from pi_runtime.child.process import Answer, Process, ask, close_all
from pi_runtime.errors import BackendError, ConfigError, LocalProtocolError
from pi_runtime.graph import Graph
from pi_runtime.net.hosts import LOOPBACK_HOSTS, Hosts
from pi_runtime.net.tcp_info import tcp_info_works
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.spu.interpreter import party_command

_MODULE = "pi_runtime.spu.party"
_PARTIES = ("client", "server")
"""In the order of SPU's ranks."""

_START_TIMEOUT_S = 600.0
_IMAGE_TIMEOUT_S = 3600.0


class SpuBackend(Backend):
    """SPU under the protocol of a subclass; see the module.

    threads: of each of the two processes, for SPU's computation; its network library has its own.
    hosts: where the roles live; all on 127.0.0.1 unless told otherwise.
    """

    protocol: str
    byte_source = "tcp_info"

    def __init__(self, *, threads: int = 1, hosts: Hosts = LOOPBACK_HOSTS) -> None:
        if threads < 1:
            raise ConfigError(f"threads must be >= 1, got {threads}")
        self._threads = threads
        self._hosts = hosts
        self._processes: dict[str, Process] = {}
        self._graph: Graph | None = None
        self._setup = Cost()
        self._counted = Cost()

    def prepare(self, model: Path) -> None:
        self.close()
        graph = load_onnx(model)
        started = time.perf_counter()
        try:
            self._start(graph)
            self._compile(1)
            self._setup = self._charge(time.perf_counter() - started)
        except BaseException:
            self.close()
            raise
        self._graph = graph

    def offline(self, batch: int, count: int = 1) -> None:
        """Nothing is made ahead but the program for this batch, once, on no clock."""
        if batch < 1 or count < 1:
            raise ConfigError(f"batch and count must be >= 1, got {batch} and {count}")
        self._prepared()
        self._compile(batch)

    def infer(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], RunCost]:
        graph = self._prepared()
        if images.ndim != 1 + len(graph.input_shape) or images.shape[1:] != graph.input_shape or not len(images):
            raise ConfigError(f"images must be [B, {', '.join(map(str, graph.input_shape))}], got {images.shape}")
        batch = len(images)
        self._compile(batch)
        started = time.perf_counter()
        answers = self._ask(
            {"command": "infer", "batch": batch},
            _IMAGE_TIMEOUT_S * batch,
            extra={"client": ({}, [np.ascontiguousarray(images, np.float32)])},
        )
        online = self._charge(time.perf_counter() - started)
        phases = {"setup": self._setup, "offline": Cost(), "online": online}
        return answers["client"].arrays[0], RunCost(phases=phases)

    def close(self) -> None:
        close_all(self._processes.values())
        self._processes.clear()
        self._graph = None
        self._counted = Cost()

    def _start(self, graph: Graph) -> None:
        if not tcp_info_works():
            raise BackendError(f"{self.name} is measured at the sockets of Linux 4.19 or later, which this is not")
        interpreter = party_command()
        addresses = [_free_address(self._hosts, role) for role in _PARTIES]
        for role in _PARTIES:
            with self._hosts.at(role):
                self._processes[role] = Process(_MODULE, role, threads=self._threads, interpreter=interpreter)
        meeting = {"protocol": self.protocol, "addresses": addresses, "wait_s": _IMAGE_TIMEOUT_S}
        self._ask({"command": "connect", **meeting}, _START_TIMEOUT_S)
        params = [node.params[name] for node in graph.nodes for name in sorted(node.param_shapes)]
        self._ask(
            {"command": "load", "public": json.loads(graph.public_json())},
            _START_TIMEOUT_S,
            extra={"server": ({}, params)},
        )

    def _compile(self, batch: int) -> None:
        self._ask({"command": "compile", "batch": batch}, _START_TIMEOUT_S)

    def _charge(self, seconds: float) -> Cost:
        """What both parties counted since the last charge; each has what was sent to it, so nothing is under way."""
        readings = {role: answer.header for role, answer in self._ask({"command": "read"}, _START_TIMEOUT_S).items()}
        before = self._counted
        self._counted = Cost(
            sent_bytes={role: readings[role]["sent_bytes"] if role in readings else 0 for role in ROLES},
            messages=sum(reading["messages"] for reading in readings.values()),
            rounds=readings["client"]["rounds"],
        )
        return Cost(
            seconds=seconds,
            sent_bytes={role: self._counted.sent_bytes[role] - before.sent_bytes[role] for role in ROLES},
            messages=self._counted.messages - before.messages,
            rounds=self._counted.rounds - before.rounds,
        )

    def _prepared(self) -> Graph:
        if self._graph is None:
            raise LocalProtocolError(f"the {self.name} backend has no model; call prepare first")
        return self._graph

    def _ask(
        self,
        header: Mapping[str, Any],
        timeout_s: float,
        extra: Mapping[str, tuple[Mapping[str, Any], Sequence[npt.NDArray[Any]]]] | None = None,
    ) -> dict[str, Answer]:
        try:
            return ask(self._processes, _PARTIES, header, timeout_s=timeout_s, extra=extra)
        except BaseException:
            # Half a step done leaves the processes out of step: there is nothing to go on with.
            self.close()
            raise


class SpuCheetahBackend(SpuBackend):
    """SPU's implementation of Cheetah (Huang et al., USENIX Security 2022)."""

    name = "spu-cheetah"
    protocol = "cheetah"


class SpuSemi2kBackend(SpuBackend):
    """SPU's semi-honest additive sharing with triples of a trusted first party."""

    name = "spu-semi2k"
    protocol = "semi2k"


def _free_address(hosts: Hosts, role: str) -> str:
    """``host:port`` that nobody listens on. SPU binds it itself, and a moment later: who is faster makes it fail."""
    with hosts.at(role), socket.socket() as probe:
        probe.bind((hosts.address(role), 0))
        return f"{hosts.address(role)}:{probe.getsockname()[1]}"
