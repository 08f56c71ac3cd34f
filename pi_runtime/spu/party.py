"""One process of the SPU backends, under SPU's Python; started by the backend alone (:mod:`pi_runtime.spu.bootstrap`).

It takes commands on the control socket (:mod:`pi_runtime.child.control`) whose descriptor is its first argument, and
talks SPU's protocol with its peer over TCP. When the control socket closes, the backend is gone, however it went, and
the process ends at once.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from pi_runtime.child.control import Array, Control
from pi_runtime.child.leash import end_with_backend
from pi_runtime.errors import PiError
from pi_runtime.graph import parse_public
from pi_runtime.net.tcp_info import SocketMeter
from pi_runtime.spu.engine import CLIENT, SERVER, Engine
from pi_runtime.spu.link_log import LinkLog

RANKS = {"client": CLIENT, "server": SERVER}

Answer = tuple[dict[str, Any], list[Array]]


class Party:
    """The client or the server."""

    def __init__(self, role: str, threads: int) -> None:
        self._rank = RANKS[role]
        self._threads = threads
        self._sockets = SocketMeter()
        self._log = LinkLog(self._rank)
        self._engine: Engine

    def connect(self, header: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Joins the other party."""
        self._engine = Engine(
            self._rank, header["protocol"], header["addresses"], threads=self._threads, wait_s=header["wait_s"]
        )
        return {}, []

    def load(self, header: dict[str, Any], arrays: list[Array]) -> Answer:
        """Takes the public graph and, at the server, the parameters."""
        self._engine.load(parse_public(header["public"], origin="the public graph"), arrays)
        return {}, []

    def compile(self, header: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Makes ready for a batch."""
        self._engine.compile(int(header["batch"]))
        return {}, []

    def infer(self, header: dict[str, Any], arrays: list[Array]) -> Answer:
        """One inference; the client's answer carries the logits."""
        logits = self._engine.infer(int(header["batch"]), arrays[0] if arrays else None)
        return {}, [] if logits is None else [logits]

    def read(self, _header: dict[str, Any], _arrays: list[Array]) -> Answer:
        """What this party sent since it started."""
        counts = self._log.read()
        sent, _ = self._sockets.read()
        return {"sent_bytes": sent, "messages": counts.messages, "rounds": counts.rounds}, []

    def serve(self, control: Control) -> None:
        """Answers commands until the backend closes the control socket."""
        commands = {
            "connect": self.connect,
            "load": self.load,
            "compile": self.compile,
            "infer": self.infer,
            "read": self.read,
        }
        while True:
            header, arrays = control.receive()
            control.send(*commands[header["command"]](header, arrays))


def main() -> None:
    """Runs the role named in the second argument over the control descriptor in the first."""
    descriptor, role, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    control = Control(socket.socket(fileno=descriptor))
    end_with_backend(control)
    try:
        Party(role, threads).serve(control)
    except EOFError:
        os._exit(0)
    except PiError as error:
        control.send({"error": type(error).__name__, "message": str(error)})
    except RuntimeError as error:
        # SPU reports everything this way, a lost peer too; the backend decides whose fault it was.
        reason = str(error).splitlines()[0]
        print(reason, file=sys.stderr)
        control.send({"error": "RuntimeError", "message": reason})
    # Skips the end of SPU's threads, which would wait for a peer that may be gone.
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
