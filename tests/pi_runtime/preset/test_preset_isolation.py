"""Three roles in three network namespaces, each pair joined by a wire of its own, routed to the README's ports alone.

Oracles: the kernel's tables of sockets, a port that must not be reachable, and onnxruntime.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pi_runtime.backend import ROLES
from pi_runtime.inference import softmax
from pi_runtime.net.certs import make_certificates
from pi_runtime.net.messages import Identity

README = Path(__file__).parents[3] / "README.md"
WIRES = (("server", "client", 1), ("dealer", "client", 2), ("dealer", "server", 3))
LISTENING, ESTABLISHED = "0A", "01"
COMMAND = [sys.executable, "-c", "from pi_runtime.cli.main import main; main()"]


def readme_port(verb):
    """The port on which ``verb`` listens in the README."""
    (port,) = re.findall(rf"pi-pipeline {verb} .*--listen 0\.0\.0\.0:(\d+)", README.read_text())
    return int(port)


SERVER_PORT, DEALER_PORT = readme_port("serve"), readme_port("deal")
# What may be sent from each namespace: to a port, or from one.
ROUTED = {
    "client": (f"dport {SERVER_PORT}", f"dport {DEALER_PORT}"),
    "server": (f"sport {SERVER_PORT}", f"dport {DEALER_PORT}"),
    "dealer": (f"sport {DEALER_PORT}",),
}


class Machines:
    """A namespace a role. A process keeps each alive, so that all goes with the test, however it ends."""

    def __init__(self, stack):
        self.holders = {}
        for role in ROLES:
            holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
            stack.callback(holder.communicate)
            stack.callback(holder.kill)
            self.holders[role] = holder
            self._wait_apart(holder)
        for first, second, net in WIRES:
            self.ip(first, "link", "add", second, "type", "veth", "peer", "name", first, "netns", self._pid(second))
            for role, peer, host in ((first, second, 1), (second, first, 2)):
                self.ip(role, "address", "add", f"10.77.{net}.{host}/24", "dev", peer)
                self.ip(role, "link", "set", peer, "up")
        for role, routed in ROUTED.items():
            for rule in routed:
                self.ip(role, "rule", "add", "pref", "100", "ipproto", "tcp", *rule.split(), "lookup", "main")
            self.ip(role, "rule", "add", "pref", "200", "prohibit")

    @staticmethod
    def address(role, seen_from):
        """Of ``role``, as ``seen_from`` calls it."""
        (net,) = (net for first, second, net in WIRES if (first, second) == (role, seen_from))
        return f"10.77.{net}.1"

    def command(self, role, *arguments):
        return ["nsenter", f"--net=/proc/{self._pid(role)}/ns/net", *map(str, arguments)]

    def ip(self, role, *arguments):
        done = subprocess.run(self.command(role, "ip", *arguments), capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ip {' '.join(arguments)} is not possible here: {done.stderr.strip()}")

    def sockets(self, role):
        """State, own port and peer's port of each TCP socket in the namespace."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self._pid(role)}/net/{table}").read_text().splitlines()[1:]:
                own, peer, state = line.split()[1:4]
                found.add((state, *(int(address.split(":")[1], 16) for address in (own, peer))))
        return found

    def _pid(self, role):
        return str(self.holders[role].pid)

    @staticmethod
    def _wait_apart(holder):
        deadline = time.monotonic() + 10
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            assert time.monotonic() < deadline, "unshare does nothing"
            time.sleep(0.01)


@pytest.fixture
def machines():
    if missing := [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)} (iproute2, util-linux)")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make network namespaces")
    with ExitStack() as stack:
        yield Machines(stack)


@pytest.fixture
def homes(preset_graph, tmp_path):
    """What each machine has on its disk: its own key, the CA's certificate, and its own part of the model."""
    make_certificates(tmp_path / "all", [Identity(role, role) for role in ROLES])
    for role in ROLES:
        home = tmp_path / role
        home.mkdir()
        for name in ("ca.pem", f"{role}-{role}.pem", f"{role}-{role}.key"):
            shutil.copy(tmp_path / "all" / name, home)
    shutil.copy(tmp_path / "m.onnx", tmp_path / "server")
    preset_graph.save_public(tmp_path / "dealer" / "m.public.json")
    np.save(tmp_path / "client" / "a.npy", np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32))
    return tmp_path


def test_three_machines_need_the_two_ports_of_the_readme_and_no_other(machines, homes):
    def start(role, verb, *arguments):
        access = ("--certs", homes / role, "--state", homes / role / "state")
        command = machines.command(role, *COMMAND, verb, *arguments, *access)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def refuses(port):
        probe = f"import socket; socket.create_connection(({machines.address('server', 'client')!r}, {port}), 3)"
        done = subprocess.run(machines.command("client", sys.executable, "-c", probe), capture_output=True, text=True)
        return "Permission denied" in done.stderr

    server_for_client = f"{machines.address('server', 'client')}:{SERVER_PORT}"
    dealer_for = {role: f"{machines.address('dealer', role)}:{DEALER_PORT}" for role in ("client", "server")}
    dealer = start("dealer", "deal", "--public", homes / "dealer/m.public.json", "--listen", f"0.0.0.0:{DEALER_PORT}")
    server = start(
        *("server", "serve", "--model", homes / "server/m.onnx", "--listen", f"0.0.0.0:{SERVER_PORT}"),
        *("--dealer", dealer_for["server"], "--dealer-name", "dealer"),
    )
    image = homes / "client" / "a.npy"
    client = start("client", "infer", "--server", server_for_client, "--dealer", dealer_for["client"], image)
    seen = {role: set() for role in ROLES}
    try:
        while client.poll() is None:
            for role, sockets in seen.items():
                sockets |= machines.sockets(role)
            time.sleep(0.02)
        out, err = client.communicate()
        assert client.returncode == 0, err
        assert refuses(SERVER_PORT + 2), "the routes let through what they should not"
    finally:
        for process in (server, dealer):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)

    listening = {role: {own for state, own, _ in found if state == LISTENING} for role, found in seen.items()}
    assert listening == {"client": set(), "server": {SERVER_PORT}, "dealer": {DEALER_PORT}}
    reached = {role: {(own, peer) for state, own, peer in seen[role] if state == ESTABLISHED} for role in ROLES}
    assert {peer for _, peer in reached["client"]} == {SERVER_PORT, DEALER_PORT}
    for own, peer in reached["server"]:
        assert own == SERVER_PORT or peer == DEALER_PORT
    assert {own for own, _ in reached["dealer"]} == {DEALER_PORT}

    plain = onnxruntime.InferenceSession(str(homes / "m.onnx")).run(None, {"input": np.load(image)[None]})[0]
    scores = softmax(plain)[0]
    for found in json.loads(out.splitlines()[-1])["images"][0]["labels"]:
        # Under 64 roundings of one unit at 12 fraction bits reach a logit, and a score moves by less than a logit.
        assert found["score"] == pytest.approx(scores[int(found["label"])], abs=64 * 2.0**-12)
