"""Memory for backends that are open together. Oracle: a machine whose memory is counted in open backends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_bench import Bench, open_after, timed

from benchmarks.room import Room, available_memory


@pytest.fixture
def bench(tmp_path: Any) -> Bench:
    return Bench(tmp_path)


SIZES = {"small": 10}


def memory_for(count: int, bench: Bench) -> Callable[[], int]:
    """What is available where ``count`` backends fit beside what stays free, of 100 bytes where SIZES has none."""

    def available() -> int:
        taken = sum(open_after(entry) * SIZES.get(entry.split()[1], 100) for entry in bench.journal)
        return 100 * (count + 1) - taken

    return available


def most_open(bench: Bench) -> int:
    return max(itertools.accumulate(map(open_after, bench.journal)))


def test_a_backend_that_does_not_fit_beside_the_first_follows_it_with_all_its_subjects(bench: Bench) -> None:
    said: list[str] = []
    results = bench.run("a", "b", memory=memory_for(3, bench), progress=lambda what, *_: said.append(what))
    warm_up, both_ways = ["a full", "a model"], ["a model", "a full", "a full", "a model"] * 2 + ["a model", "a full"]
    assert timed(bench.journal) == [
        *(*warm_up, "b full", *both_ways),  # from a first warm-up of b it is seen that two would not fit
        *(turn.replace("a", "b", 1) for turn in (*warm_up, *both_ways)),
    ]
    assert most_open(bench) <= 3
    assert "b: later, as memory is short" in said
    assert {(row.backend, row.subject, len(row.seconds)) for row in results.rows if row.phase == "online"} == {
        (backend, subject, 5) for backend in "ab" for subject in ("full", "linearized")
    }
    assert {(entry.backend, entry.subject) for entry in results.secure} == {
        (backend, subject) for backend in "ab" for subject in ("full", "linearized")
    }


def test_a_smaller_backend_takes_the_room_that_is_too_small_for_another(bench: Bench) -> None:
    bench.run("a", "b", "small", memory=memory_for(3, bench))
    turns = [turn.split()[0] for turn in timed(bench.journal)]
    assert turns[:5] == ["a", "a", "b", "small", "small"], "warm-ups"
    assert (set(turns[5:25]), set(turns[25:])) == ({"a", "small"}, {"b"})
    assert bench.journal.count("prepare b full") == bench.journal.count("close b full") == 2
    assert "prepare b model" not in bench.journal[: bench.journal.index("prepare small full")]


def test_a_backend_that_does_not_fit_by_itself_is_divided(bench: Bench) -> None:
    results = bench.run("a", memory=memory_for(1, bench))
    assert timed(bench.journal) == ["a full"] * 6 + ["a model"] * 6
    assert most_open(bench) == 1
    assert {row.subject for row in results.rows} == {"full", "linearized"}


def test_one_backend_is_open_however_short_memory_is(bench: Bench) -> None:
    bench.run("a", memory=memory_for(0, bench))
    assert timed(bench.journal) == ["a full"] * 6 + ["a model"] * 6


def test_with_memory_enough_all_are_open_together(bench: Bench) -> None:
    bench.run("a", "b", memory=memory_for(4, bench))
    assert most_open(bench) == 4


def test_where_the_system_does_not_say_everything_fits() -> None:
    room = Room(lambda: None)
    room.took("a")
    assert room.fits("a", 1000)
    assert room.fits("b", 1)


def test_a_sixteenth_stays_free() -> None:
    left = iter([1600, *[1300] * 4])
    room = Room(lambda: next(left))
    room.took("a")
    assert room.fits("a", 4), "1300 less 4 times 300 is the sixteenth of 1600"
    assert not room.fits("a", 5)
    assert room.fits("b", 9), "of one that was not seen yet one is opened, to see what it takes"


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system has no /proc/meminfo")
def test_linux_says_what_is_available() -> None:
    """Oracle: all memory, by another call; a program of this size leaves some of it."""
    available = available_memory()
    assert available is not None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < available < total
