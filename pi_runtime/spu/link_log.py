"""What SPU's link did, read in SPU's own trace of it: every message, and who waited for whom.

SPU's Python interface counts nothing, but SPU can log its link: a line as a party sends, and one as it receives, in the
order in which the party does so::

    ... [spu link] key=root:P2P-7:0->1, tag=..., value=      one message from rank 0 to rank 1
    ... [spu link] key=root:12:ALLGATHER, tag=..., value=    one message each way, at the same time; so a BARRIER
    ... [spu link] key=root:3:GATHER, tag=..., value=        one message to rank 0

A round is a wait for the peer after something was sent to it. Where both send at the same time, as nearly always in
`spu-semi2k` (and in CrypTen, whose rounds are counted so too), that takes one way of the link and not a round trip:
rounds times RTT is then up to twice what the link takes, and no floor. Where SPU uses several threads their lines
mingle, and so do their rounds.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from pi_runtime.errors import BackendError

_LINE = re.compile(r"\[spu link\] key=(\S+?), tag=")
_MESSAGE = re.compile(r"P2P-\d+:(\d+)->\d+$")
_EXCHANGES = ("ALLGATHER", "BARRIER")
_NO_ROTATION_BYTES = 1 << 40


@dataclass
class LinkCounts:
    """What one party saw: messages that it sent, and rounds."""

    messages: int = 0
    rounds: int = 0


class LinkLog:
    """The counts of the party with ``rank``; make it before the link, once a process.

    SPU writes into a file that has no name any more, so that none is left behind. What messages hold is not logged.
    """

    def __init__(self, rank: int) -> None:
        self._counter = LinkCounter(rank)
        self._file = _open_trace()

    def read(self) -> LinkCounts:
        """The counts since the process started.

        Raises:
            BackendError: SPU used its link in a way that cannot be counted.
        """
        # SPU's logger leaves its lines in the C library's buffers for seconds.
        ctypes.CDLL(None).fflush(None)
        for line in self._file:
            self._counter.take(line)
        return LinkCounts(self._counter.counts.messages, self._counter.counts.rounds)


class LinkCounter:
    """Counts line by line."""

    def __init__(self, rank: int) -> None:
        self.counts = LinkCounts()
        self._rank = rank
        self._has_sent = False

    def take(self, line: str) -> None:
        """One line of the trace, or something else in the log.

        Raises:
            BackendError: a line of the link that is none of those of the module.
        """
        found = _LINE.search(line)
        if found is None:
            return
        key = found[1]
        kind = key.rpartition(":")[2]
        if message := _MESSAGE.search(key):
            if int(message[1]) == self._rank:
                self._sent()
            else:
                self._received()
        elif kind == "GATHER":
            if self._rank == 0:
                self._received()
            else:
                self._sent()
        elif kind in _EXCHANGES:
            self._sent()
            self._received()
        else:
            raise BackendError(
                f"SPU's link did something that cannot be counted: {key!r}; use the version of the recipe"
            )

    def _sent(self) -> None:
        self.counts.messages += 1
        self._has_sent = True

    def _received(self) -> None:
        self.counts.rounds += self._has_sent
        self._has_sent = False


def _open_trace() -> TextIO:
    """Has SPU log into a file from now on, and opens that to be read."""
    from spu.libspu import logging

    options = logging.LogOptions()
    options.enable_console_logger = False
    options.log_level = logging.LogLevel.WARN
    options.trace_content_length = 0
    options.max_log_file_size = _NO_ROTATION_BYTES
    with TemporaryDirectory() as directory:
        trace = Path(directory, "trace")
        options.system_log_path = os.fspath(Path(directory, "system"))
        options.trace_log_path = os.fspath(trace)
        logging.setup_logging(options)
        return trace.open(encoding="ascii", errors="replace")
