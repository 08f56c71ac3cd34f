"""The `preset` backend: client, server and dealer as three real processes over TCP on 127.0.0.1.

The client is this process, with the same code as ``pi-pipeline infer``; server and dealer are children that run the
same code as ``pi-pipeline serve`` and ``deal``. Bundles go through real stores on disk, one-time marks included.

Phases.

- ``setup``: starting the processes, connecting, giving the dealer A of every linear layer, the client D as a seed.
- ``offline``: making a bundle, storing it on both sides, and opening it: both sides mark it spent and expand or map
  what they will need. Nothing of it depends on the input.
- ``online``: from the client's input to its logits.

Bytes are those handed to the sockets: payload, frame headers and what TLS adds.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pi_runtime.backend import Backend, Cost, LayerCost, RunCost
from pi_runtime.child.process import Answer, Process, ask, blaming_the_dead, close_all
from pi_runtime.errors import ConfigError, LocalProtocolError
from pi_runtime.net.certs import make_certificates
from pi_runtime.net.hosts import LOOPBACK_HOSTS, Hosts
from pi_runtime.net.messages import Identity
from pi_runtime.net.shaping import parse_profile
from pi_runtime.net.traffic import Counts, Traffic
from pi_runtime.preset.client import PresetClient
from pi_runtime.preset.costs import Reading, offline_layers, online_layers, phase_cost
from pi_runtime.preset.input_range import check_images
from pi_runtime.preset.roles import Access, open_client
from pi_runtime.preset.stand_in import load_served

_MODULE = "pi_runtime.preset.party"
_START_TIMEOUT_S = 180.0
_READ_TIMEOUT_S = 120.0


class PresetBackend(Backend):
    """The protocol of ``pi_runtime/PROTOCOL.md``; see the module.

    port: of the server, the dealer takes the one above; 0 takes free ones. threads: of each party.
    profile: the network that is imitated between the parties, by name or numbers (:mod:`pi_runtime.net.shaping`).
    hosts: where the roles live, this process's client included; all on 127.0.0.1 unless told otherwise.
    tls: mutual TLS with certificates made for this backend alone; plain TCP otherwise.
    random_weights: for clocks alone: weights of the graph's shapes in the place of its own, which it need not have then
        (:mod:`pi_runtime.preset.rehearse`). Logits mean nothing.
    """

    name = "preset"
    byte_source = "channel"

    def __init__(
        self,
        *,
        port: int = 0,
        threads: int = 1,
        profile: str = "loopback",
        tls: bool = False,
        hosts: Hosts = LOOPBACK_HOSTS,
        random_weights: bool = False,
    ) -> None:
        if not 0 <= port <= 65534:
            raise ConfigError(f"port must be between 0 and 65534 (0: a free one), got {port}")
        if threads < 1:
            raise ConfigError(f"threads must be >= 1, got {threads}")
        parse_profile(profile)
        self._port = port
        self._threads = threads
        self._profile = profile
        self._tls = tls
        self._hosts = hosts
        self._random_weights = random_weights
        self._processes: dict[str, Process] = {}
        self._stack = ExitStack()
        self._client: PresetClient | None = None
        self._setup = Cost()
        self._stock: defaultdict[int, deque[tuple[Cost, tuple[LayerCost, ...]]]] = defaultdict(deque)

    def prepare(self, model: Path) -> None:
        self.close()
        started = time.perf_counter()
        try:
            with self._hosts.at("client"):
                self._start(model)
            self._setup = phase_cost(self._read().traffic, time.perf_counter() - started)
        except BaseException:
            self.close()
            raise

    def offline(self, batch: int, count: int = 1) -> None:
        if batch < 1 or count < 1:
            raise ConfigError(f"batch and count must be >= 1, got {batch} and {count}")
        client = self._prepared()
        with self._hosts.at("client"), blaming_the_dead(self._processes):
            for _ in range(count):
                before, started = self._read(), time.perf_counter()
                client.prepare(batch)
                seconds = time.perf_counter() - started
                made = self._read()
                spent = made.since(before)
                layers = offline_layers(client.model.graph, client.model.program, spent, made.deal_seconds)
                self._stock[batch].append((phase_cost(spent, seconds), layers))

    def infer(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], RunCost]:
        client = self._prepared()
        with self._hosts.at("client"), blaming_the_dead(self._processes):
            return self._infer(client, images)

    def close(self) -> None:
        self._client = None
        self._stock.clear()
        self._stack.close()

    def _infer(self, client: PresetClient, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], RunCost]:
        model = client.model
        shape = model.program.input_shape
        if images.ndim != 4 or images.shape[1:] != shape or not len(images):
            raise ConfigError(f"images must be [B, {', '.join(map(str, shape))}], got {images.shape}")
        check_images(images, model.program)
        batch = len(images)
        if not self._stock[batch]:
            self.offline(batch)
        made, made_layers = self._stock[batch].popleft()
        before, started = self._read(), time.perf_counter()
        client.reserve(batch)
        opened_s = time.perf_counter() - started
        opened, started = self._read(), time.perf_counter()
        logits = client.infer(images)
        online_s = time.perf_counter() - started
        after = self._read()
        spent = after.since(opened)
        phases = {
            "setup": self._setup,
            "offline": made + phase_cost(opened.since(before), opened_s),
            "online": phase_cost(spent, online_s),
        }
        layers = online_layers(model.graph, model.program, spent, after.step_seconds)
        return logits.astype(np.float32), RunCost(phases=phases, layers=(*made_layers, *layers))

    def _start(self, model: Path) -> None:
        graph = load_served(model, random_weights=self._random_weights)
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pi-preset-")))
        public, certs = directory / "model.public.json", directory / "certs" if self._tls else None
        graph.save_public(public)
        if certs is not None:
            make_certificates(certs, [Identity(role, role) for role in ("client", "server", "dealer")])
        self._stack.callback(self._end_processes)
        for role in ("dealer", "server"):
            with self._hosts.at(role):
                self._processes[role] = Process(_MODULE, role, threads=self._threads)
        start = {"command": "start", "certs": str(certs or ""), "profile": self._profile}
        listen = [
            f"{self._hosts.address(role)}:{self._port and self._port + above}"
            for above, role in enumerate(("server", "dealer"))
        ]
        dealer = self._ask(["dealer"], start | {"graph": str(public), "listen": listen[1]})["dealer"].header["address"]
        options = {"graph": str(model), "listen": listen[0], "dealer": dealer, "state": str(directory / "server")}
        weights = {"random_weights": self._random_weights}
        server = self._ask(["server"], start | options | weights)["server"].header["address"]
        self._ask(["server"], {"command": "set-up", "within_s": _START_TIMEOUT_S})
        access = Access(certs=certs, insecure_loopback=certs is None, state=directory / "client", network=self._profile)
        client = open_client(server, dealer, access=access, threads=self._threads)
        self._client = self._stack.enter_context(client)
        self._client.load_weight_pads()

    def _read(self) -> Reading:
        """What each role has carried up to now, with nothing under way."""
        answers = self._ask(["server", "dealer"], {"command": "read"})
        traffic = {role: _traffic(answer.header["traffic"]) for role, answer in answers.items()}
        traffic["client"] = self._prepared().ledger.traffic()
        return Reading(traffic, *(answers[role].header["step_seconds"] for role in ("server", "dealer")))

    def _prepared(self) -> PresetClient:
        if self._client is None:
            raise LocalProtocolError("the preset backend has no model; call prepare first")
        return self._client

    def _ask(self, roles: Sequence[str], header: Mapping[str, Any]) -> dict[str, Answer]:
        return ask(self._processes, roles, header, timeout_s=_START_TIMEOUT_S)

    def _end_processes(self) -> None:
        close_all(self._processes.values())
        self._processes.clear()


def _traffic(document: Mapping[str, Mapping[str, int]]) -> Traffic:
    return Traffic({tag: Counts(**counts) for tag, counts in document.items()})
