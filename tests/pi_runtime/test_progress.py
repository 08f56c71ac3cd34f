"""Progress against known lines, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pi_runtime import progress
from pi_runtime.progress import progress_bars


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_without_a_terminal_there_are_few_plain_lines(clock):
    out = io.StringIO()
    with progress_bars(Console(file=out, force_terminal=False)) as show:
        for step in range(100):
            show("[runs]", step, 100)
            clock.now += 0.5
        show("[runs]", 100, 100)
    assert out.getvalue().splitlines() == [
        "[runs]: 21 of 100",
        "[runs]: 42 of 100",
        "[runs]: 63 of 100",
        "[runs]: 84 of 100",
        "[runs]: 100 in 50.0 s",
    ]


def test_what_comes_again_starts_anew(clock):
    out = io.StringIO()
    with progress_bars(Console(file=out, force_terminal=False)) as show:
        for _ in range(2):
            show("set-up", 0, 1)
            clock.now += 2
            show("set-up", 1, 1)
    assert out.getvalue().splitlines() == ["set-up: 1 in 2.0 s"] * 2


def test_on_a_terminal_what_is_done_leaves_a_line_and_no_bar():
    out = io.StringIO()
    with progress_bars(Console(file=out, force_terminal=True, width=80, highlight=False)) as show:
        show("[runs]", 0, 2)
        show("[runs]", 2, 2)
        show("other", 0, 1)
    text = out.getvalue()
    assert "[runs]: 2 in 0.0 s" in text
    last_frame = text.rpartition("\x1b[2K")[2]  # what stands on the terminal in the end
    assert "other" in last_frame
    assert "[runs]" not in last_frame
