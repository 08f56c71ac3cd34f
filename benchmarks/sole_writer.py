"""One measurement at a time writes a results file, and the networks beside it.

Two would take each other's cores, and each would write over what the other has measured, or is measuring.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import MeasureError
from pi_runtime.errors import ConfigError


@contextmanager
def sole_writer(results_path: Path) -> Iterator[None]:
    """Holds a lock beside ``results_path``; the system releases it when the process ends, however it ends.

    Raises:
        ConfigError: the directory cannot be written.
        MeasureError: another process holds it.
    """
    try:
        results_path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(results_path.with_name(f".{results_path.stem}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write {results_path} ({error.strerror}); name another directory") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeasureError(
                f"another process is measuring into {results_path}; wait for it or name another directory"
            ) from None
        yield
    finally:
        os.close(lock)
