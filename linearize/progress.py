"""Progress on stderr: bars on a terminal, occasional lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_INTERVAL_S = 10.0


class Task:
    """One bar: `advance` as work is done, `say` what the present figures are."""

    def __init__(self, name: str, total: int, progress: Progress | None, console: Console) -> None:
        self._name, self._total, self._progress, self._console = name, total, progress, console
        self._bar = progress.add_task(name, total=total, note="") if progress else None
        self._done = 0
        self._last_line = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        self._done += steps
        if self._progress is not None and self._bar is not None:
            self._progress.advance(self._bar, steps)
        elif time.monotonic() - self._last_line > _LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            self._console.print(f"{self._name}: {self._done}/{self._total}", markup=False)

    def say(self, note: str) -> None:
        """Show figures behind the bar, or print them as a line where there is no bar."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, note=note)
        else:
            self._last_line = time.monotonic()
            self._console.print(f"{self._name}: {note}", markup=False)


class Reporter:
    """Where stages report to. `quiet` drops everything."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)

    def log(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """A task of so many steps, shown until the block ends."""
        if not self._console.is_terminal or self._console.quiet:
            yield Task(name, total, None, self._console)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            yield Task(name, total, progress, self._console)
