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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pi_runtime import errors
from pi_runtime.child.control import Array, Control
from pi_runtime.errors import BackendError, RemoteProtocolError

# How long a dying process may take until its end is noticed, and one that was told to end until it is killed.
_GRACE_S = 1.0
_LAST_WORDS_BYTES = 2000


class Answer(NamedTuple):
    """What a process sent back."""

    header: dict[str, Any]
    arrays: list[Array]


class Process:
    """One role's process and the control socket to it.

    It runs ``<interpreter> <module> <descriptor of the control socket> <role> <threads>``.

    interpreter: what runs a module by its name, this Python unless told otherwise.
    """

    def __init__(
        self,
        module: str,
        role: str,
        *,
        threads: int,
        inherit: Sequence[int] = (),
        interpreter: Sequence[str] = (sys.executable, "-m"),
    ) -> None:
        self.role = role
        ours, theirs = socket.socketpair()
        self.control = Control(ours)
        # A file, not a pipe: nobody has to drain it, and it is whole when the process is gone.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        with theirs:
            self._popen = subprocess.Popen(
                [*interpreter, module, str(theirs.fileno()), role, str(threads)],
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
        """One line on how the process ended, with its last words; None if it lives after ``wait_s`` seconds."""
        try:
            code = self._popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the {self.role} process {how}: {self._last_words() or 'it left no message'}"

    def _last_words(self) -> str:
        """The end of what the process said on stderr, as one line of at most ``_LAST_WORDS_BYTES`` bytes."""
        length = self._stderr.seek(0, os.SEEK_END)
        start = self._stderr.seek(max(length - _LAST_WORDS_BYTES, 0))
        text = self._stderr.read().decode(errors="replace")
        if start:  # in the middle of a line
            text = text.partition("\n")[2] or text
        return " | ".join(line.strip() for line in text.splitlines() if line.strip())

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


@contextmanager
def blaming_the_dead(processes: Mapping[str, Process]) -> Iterator[None]:
    """Inside the block this process is itself a peer of ``processes``.

    Raises:
        BackendError: the block raised RemoteProtocolError, and one of them is dead: how it ended, its last words, and
            what was seen of it here. Where all live, the block's own error goes on.
    """
    try:
        yield
    except RemoteProtocolError as error:
        if death := _first_death(list(processes.values())):
            raise BackendError(f"{death} ({error})") from error
        raise


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
    """How a process ended that may be to blame, else ``fallback``."""
    return _first_death(processes) or fallback


def _first_death(processes: Sequence[Process]) -> str | None:
    """Names the process that died by a signal, else one that died on its own; None if all live."""
    deaths = [death for process in processes if (death := process.death(_GRACE_S / len(processes)))]
    deaths.sort(key=lambda death: "by signal" not in death)
    return deaths[0] if deaths else None
