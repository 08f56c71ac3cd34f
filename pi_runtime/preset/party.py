"""One role's process of the `preset` backend: ``python -m pi_runtime.preset.party``, started by the backend alone.

It runs the same :class:`PresetServer` or :class:`Dealer` as the command line does, and answers the backend on a control
socket: where it listens, when it is set up, and what it sent. When the control socket closes the process ends.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi_runtime.child.control import Control
from pi_runtime.errors import BackendError, PiError
from pi_runtime.graph import load_public
from pi_runtime.preset.dealer import Dealer
from pi_runtime.preset.roles import Access
from pi_runtime.preset.server import PresetServer
from pi_runtime.preset.stand_in import load_served

_QUIET_S = 60.0


def _start(role: str, threads: int, header: dict[str, Any]) -> PresetServer | Dealer:
    certs = Path(header["certs"]) if header["certs"] else None
    access = Access(certs=certs, insecure_loopback=certs is None, network=str(header["profile"]))
    endpoint = access.endpoint(role)
    graph, listen = Path(header["graph"]), str(header["listen"])
    if role == "dealer":
        return Dealer(load_public(graph), endpoint, listen=listen, threads=threads)
    return PresetServer(
        load_served(graph, random_weights=bool(header["random_weights"])),
        endpoint,
        listen=listen,
        dealer=str(header["dealer"]),
        state=Path(header["state"]),
        threads=threads,
    )


def _reading(party: PresetServer | Dealer) -> dict[str, Any]:
    """Traffic by tag, exact since nothing is under way, and seconds a step of the last bundle or inference."""
    if not party.wait_idle(_QUIET_S):
        raise BackendError(f"something is still under way after {_QUIET_S:.0f} s")
    traffic = {tag: asdict(counts) for tag, counts in party.ledger.traffic().by_tag.items()}
    return {"traffic": traffic, "step_seconds": party.step_seconds}


def _answer(control: Control, role: str, threads: int) -> None:
    """Answers commands until the backend closes the control socket."""
    header, _ = control.receive()
    party = _start(role, threads, header)
    threading.Thread(target=party.run, name="service", daemon=True).start()
    control.send({"address": party.address})
    while True:
        header, _ = control.receive()
        if header["command"] == "set-up":
            if isinstance(party, PresetServer) and not party.link.wait_ready(float(header["within_s"])):
                raise BackendError("the dealer was not set up in time")
            control.send({})
        else:
            control.send(_reading(party))


def main() -> None:
    """Runs the role named in the second argument over the control descriptor in the first."""
    descriptor, role, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    control = Control(socket.socket(fileno=descriptor))
    try:
        _answer(control, role, threads)
    except EOFError:
        os._exit(0)  # the backend is gone: nobody waits for what its peers still send
    except PiError as error:
        control.send({"error": type(error).__name__, "message": str(error)})
        os._exit(1)


if __name__ == "__main__":
    main()
