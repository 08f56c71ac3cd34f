"""Messages and rounds in SPU's trace of its link. Oracle: counted by hand. Needs no SPU."""

from __future__ import annotations

import pytest

from pi_runtime.errors import BackendError
from pi_runtime.spu.link_log import LinkCounter, LinkCounts

# Rank 1 tells rank 0 its seed; both open; 0 asks twice before 1 answers; 1 says something more.
KEYS = (
    "root:3:GATHER",
    "root:4:ALLGATHER",
    "root:P2P-1:0->1",
    "root-1:P2P-1:0->1",
    "root:P2P-1:1->0",
    "root:P2P-2:1->0",
    "root:5:BARRIER",
)


def counted(rank, keys):
    counter = LinkCounter(rank)
    for key in keys:
        counter.take(
            f"[2026-01-01 00:00:00.000] [trace] [info] [logging.cc:40] [spu link] key={key}, tag=open, value=\n"
        )
    return counter.counts


def test_messages_are_those_that_this_rank_sent_and_rounds_its_waits_after_them():
    assert counted(0, KEYS) == LinkCounts(messages=4, rounds=3)
    # Rank 1 had sent nothing when it was asked, and has sent twice when both meet.
    assert counted(1, KEYS) == LinkCounts(messages=5, rounds=2)


def test_other_lines_of_the_log_count_nothing():
    counter = LinkCounter(0)
    counter.take("CheetahDot uses 3@2 modulus 8192 degree for 64 bit ring\n")
    assert counter.counts == LinkCounts()


def test_what_cannot_be_counted_is_not_passed_over():
    with pytest.raises(BackendError, match="SPU's link did something that cannot be counted: 'root:9:SCATTER'"):
        counted(0, ["root:9:SCATTER"])
