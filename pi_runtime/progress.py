"""Progress of long measurements on stderr: a bar for what is under way, a line for what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Show = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done, and how many there are."""

_LINE_INTERVAL_S = 10.0


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[Show]:
    """Gives a function of (what, done, total); each ``what`` is a bar until it is done, then a line with its seconds.

    Where ``console`` (stderr, if None) is no terminal there are no bars, and a line at most every ten seconds.
    """
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        yield _bars(bars)


def _bars(bars: Progress) -> Show:
    open_tasks: dict[str, tuple[TaskID, float]] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in open_tasks:
            open_tasks[what] = (bars.add_task(what, total=total), time.monotonic())
        task, started = open_tasks[what]
        bars.update(task, completed=done, total=total)
        if done >= total:
            bars.remove_task(task)
            del open_tasks[what]
            bars.console.print(_finished(what, total, started), markup=False)

    return show


def _lines(console: Console) -> Show:
    began: dict[str, float] = {}
    last = [time.monotonic()]

    def show(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        started = began.setdefault(what, now)
        if done >= total:
            del began[what]
            console.print(_finished(what, total, started), markup=False)
        elif now - last[0] > _LINE_INTERVAL_S:
            console.print(f"{what}: {done} of {total}", markup=False)
        else:
            return
        last[0] = now

    return show


def _finished(what: str, total: int, started: float) -> str:
    return f"{what}: {total} in {time.monotonic() - started:.1f} s"
