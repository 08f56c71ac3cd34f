"""Child processes and how they are mourned. Oracles: exit codes and messages that the test itself wrote."""

from __future__ import annotations

import pytest

from pi_runtime.child.process import Process, blaming_the_dead, close_all
from pi_runtime.errors import BackendError, RemoteProtocolError


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process that runs the given lines of Python."""
    started = []

    def begin(code):
        (tmp_path / "a_stub.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        started.append(Process("a_stub", "server", threads=1))
        return started[-1]

    yield begin
    close_all(started)


def test_the_last_words_are_bounded_and_one_line(start):
    process = start("import sys\nfor n in range(1000): print('word', n, file=sys.stderr)\nsys.exit(3)")
    death = process.death(20)
    assert death.startswith("the server process ended with code 3: word ")
    assert death.endswith("word 998 | word 999")
    assert "\n" not in death
    assert 1000 < len(death) < 3200, "2,000 bytes, and what stands between the lines"


def test_one_long_line_is_cut_to_its_end(start):
    death = start("import sys\nsys.exit('x' * 100_000 + 'end')").death(20)
    assert death.endswith("xxxend")
    assert len(death) < 2100


def test_a_silent_death_says_so_and_a_living_process_has_none(start):
    assert start("raise SystemExit(7)").death(20) == "the server process ended with code 7: it left no message"
    assert start("import time; time.sleep(60)").death() is None


def test_a_peer_that_went_away_is_explained_by_its_death(start):
    process = start("raise SystemExit('the disk is full')")
    seen = RemoteProtocolError("server 'server' closed the connection")
    words = r"ended with code 1: the disk is full \(server 'server' closed the connection\)$"
    with pytest.raises(BackendError, match=words), blaming_the_dead({"server": process}):
        raise seen
    living = start("import time; time.sleep(60)")
    with pytest.raises(RemoteProtocolError) as caught, blaming_the_dead({"server": living}):
        raise seen
    assert caught.value is seen
