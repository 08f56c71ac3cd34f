"""Starts the processes of a backend, one a role, asks them, and tells why one died.

The processes inherit one end of a Unix socket pair each and end when it closes, so that none outlives the backend, even
where the backend was killed.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pi_runtime import errors
from pi_runtime.child.control import Array, Control
from pi_runtime.errors import BackendError

# How long a dying process may take until its end is noticed, and one that was told to end until it is killed.
_GRACE_S = 1.0


class Answer(NamedTuple):
    """What a process sent back."""

    header: dict[str, Any]
    arrays: list[Array]


class Process:
    """One role's process and the control socket to it.

    It runs ``python -m <module> <descriptor of the control socket> <role> <threads>``.
    """

    def __init__(self, module: str, role: str, *, threads: int, inherit: Sequence[int] = ()) -> None:
        self.role = role
        ours, theirs = socket.socketpair()
        self.control = Control(ours)
        # A file, not a pipe: nobody has to drain it, and it is whole when the process is gone.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), role, str(threads)],
                pass_fds=(theirs.fileno(), *inherit),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                # The thread pools of torch read it once, at import.
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                # Ctrl-C reaches the backend alone; it then closes the control sockets.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def death(self, wait_s: float = 0.0) -> str | None:
        """One line on how the process ended, or None if it lives after ``wait_s`` seconds."""
        try:
            code = self._popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the {self.role} process {how}: {lines[-1] if lines else 'it left no message'}"

    def close(self, wait_s: float) -> None:
        """Waits until the process is gone, whose control socket was closed; kills it after ``wait_s`` seconds."""
        try:
            self._popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._stderr.close()


def close_all(processes: Iterable[Process]) -> None:
    """Ends processes and waits until they are gone; safe to call twice."""
    ending = list(processes)
    for process in ending:
        process.control.close()
    deadline = time.monotonic() + _GRACE_S
    for process in ending:
        process.close(max(0.0, deadline - time.monotonic()))


def ask(
    processes: Mapping[str, Process],
    roles: Sequence[str],
    header: Mapping[str, Any],
    *,
    timeout_s: float,
    extra: Mapping[str, tuple[Mapping[str, Any], Sequence[Array]]] | None = None,
) -> dict[str, Answer]:
    """Sends a command to the processes of ``roles`` and waits for all answers, by role.

    extra: what one role alone gets besides: more of the header, and arrays.

    Raises:
        GraphError: a process refused the model.
        BackendError: a process died, failed or did not answer within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    answers: dict[str, Answer] = {}
    try:
        for role in roles:
            more, arrays = (extra or {}).get(role, ({}, ()))
            processes[role].control.send({**header, **more}, arrays)
        waiting = {processes[role].control.fileno(): processes[role] for role in roles}
        while waiting:
            poller = select.poll()
            for descriptor in waiting:
                poller.register(descriptor, select.POLLIN)
            ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                names = ", ".join(process.role for process in waiting.values())
                raise BackendError(f"{header['command']}: no answer from {names} within {timeout_s:.0f} s; try again")
            for descriptor, _ in ready:
                process = waiting.pop(descriptor)
                answers[process.role] = _checked(Answer(*process.control.receive()))
    except (EOFError, OSError) as error:
        raise BackendError(
            _obituary(list(processes.values()), fallback=f"a process closed its connection ({error})")
        ) from error
    except _PeerFailedError as error:
        raise BackendError(_obituary(list(processes.values()), fallback=str(error))) from error
    return answers


class _PeerFailedError(Exception):
    """A process reports a failure that a dead peer may have caused."""


def _checked(answer: Answer) -> Answer:
    kind = answer.header.get("error")
    if kind is None:
        return answer
    error = getattr(errors, kind, None)
    if isinstance(error, type) and issubclass(error, errors.PiError):
        raise error(answer.header["message"])
    raise _PeerFailedError(str(answer.header["message"]))


def _obituary(processes: Sequence[Process], *, fallback: str) -> str:
    """Names the process that died by a signal, else one that died on its own, else ``fallback``."""
    deaths = [death for process in processes if (death := process.death(_GRACE_S / len(processes)))]
    deaths.sort(key=lambda death: "by signal" not in death)
    return deaths[0] if deaths else fallback
