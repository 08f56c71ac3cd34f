"""Ends a child process with the backend that started it, however that went, also while a library waits for a peer."""

from __future__ import annotations

import os
import select
import threading

from pi_runtime.child.control import Control


def end_with_backend(control: Control) -> None:
    """From now on this process ends at once, with code 0, when the other end of ``control`` closes."""
    threading.Thread(target=_watch, args=(control.fileno(),), name="leash", daemon=True).start()


def _watch(descriptor: int) -> None:
    poller = select.poll()
    # Only the hang-up: what can be read belongs to the main thread.
    poller.register(descriptor, 0)
    poller.poll()
    os._exit(0)
