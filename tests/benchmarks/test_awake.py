"""Oracle: the system's own account of which processes run in the idle class, on which core."""

import os
from pathlib import Path

import pytest

from benchmarks.awake import cores_awake
from benchmarks.errors import MeasureError

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux has the idle scheduling class")


def idle_children() -> list[set[int]]:
    """The cores of each child of this process that the kernel schedules as idle."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    idle = [int(child) for child in children if os.sched_getscheduler(int(child)) == os.SCHED_IDLE]
    return [os.sched_getaffinity(child) for child in idle]


def session_weights() -> list[str]:
    """What the kernel says of each child's session, where it shares cores between sessions."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    files = [Path(f"/proc/{child}/autogroup") for child in children]
    return [file.read_text().split(" ", 1)[1].strip() for file in files if file.exists()]


def test_one_idle_loop_a_core_and_none_afterwards() -> None:
    before = idle_children()
    with cores_awake():
        inside, weights = idle_children(), session_weights()
    assert sorted(map(sorted, inside)) == [[core] for core in sorted(os.sched_getaffinity(0))]
    assert set(weights) <= {"nice 19"}
    assert idle_children() == before == []


def test_nothing_runs_where_it_is_not_wanted() -> None:
    with cores_awake(wanted=False):
        assert idle_children() == []


def test_a_failing_block_leaves_no_loop() -> None:
    with pytest.raises(KeyError), cores_awake():
        raise KeyError
    assert idle_children() == []


def test_a_system_without_the_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "SCHED_IDLE")
    with pytest.raises(MeasureError, match="--keep-awake"), cores_awake():
        pass
