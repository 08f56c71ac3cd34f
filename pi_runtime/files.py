"""Files that are whole or absent: written beside their place, flushed, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pi_runtime.errors import ConfigError


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yields a temporary path in the directory of ``path``; when the block ends well it becomes ``path``.

    mode: of the file, less the umask. A block that raises, or a process that dies, leaves ``path`` as it was.

    Raises:
        ConfigError: the directory cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.touch(mode=mode)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose a directory that is writable") from error
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Removes what processes that are no more left behind when they were killed while writing ``path``."""
    for left in path.parent.iterdir():
        name, _, rest = left.name.partition(f".{path.name}.")
        pid = rest.partition(".")[0]
        if name == "" and pid.isdigit() and not _is_alive(int(pid)):
            left.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes UTF-8 text to ``path``, whole or not at all."""
    with replacing(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")
