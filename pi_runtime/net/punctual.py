"""Real-time scheduling for what stands in for a wire, or measures one: neither waits for a processor."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PR_SET_TIMERSLACK = 29


@contextmanager
def punctual() -> Iterator[None]:
    """Inside the block this thread runs when it can and wakes when it is due; where it may not, all stays as it is."""
    before = None
    with suppress(OSError, AttributeError):  # not permitted, or not Linux
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, *before)
            with suppress(AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 0, 0, 0, 0)  # back to what it was at first
