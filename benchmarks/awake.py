"""Keeps processor cores awake while something is measured.

A party waits for most of an inference. A core that has slept runs slower for its first tens of milliseconds (clock,
caches and a virtual machine's own scheduling), so a figure of 30 ms depends on what the core did before it. A loop on
each core takes that away. It is of the idle scheduling class, and, as Linux may share cores between sessions before it
looks at classes, in a session of its own of the lowest weight: it gives way to the roles, the relay and the kernel's
own threads. Loops take heat and, where a container has a quota of CPU time, of that quota: they are the caller's
choice, and the results say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.errors import MeasureError

# Ends with its parent, also one that was killed.
_LOOP = """
import os, sys
core, parent = map(int, sys.argv[1:])
try:
    with open("/proc/self/autogroup", "w") as weight:
        weight.write("19")
except OSError:
    pass  # this kernel does not group by session
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {core})
print("awake", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def cores_awake(wanted: bool = True) -> Iterator[None]:
    """Runs a loop of the idle class on each core that this process may use, until the block ends.

    Raises:
        MeasureError: this system has no idle scheduling class (it is Linux's), or refuses it.
    """
    if not wanted:
        yield
        return
    if not hasattr(os, "SCHED_IDLE"):
        raise MeasureError("cores can be kept awake on Linux only; leave --keep-awake out")
    loops: list[subprocess.Popen[str]] = []
    try:
        for core in sorted(os.sched_getaffinity(0)):
            arguments = [sys.executable, "-I", "-c", _LOOP, str(core), str(os.getpid())]
            loops.append(
                subprocess.Popen(
                    arguments,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
        for loop in loops:
            assert loop.stdout is not None
            if loop.stdout.readline() != "awake\n":
                raise MeasureError("this system refuses the idle scheduling class; leave --keep-awake out")
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.communicate()
