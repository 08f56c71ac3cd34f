"""What a channel carried, by tag: bytes, messages and rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pi_runtime.net.wire import HEADER_BYTES


@dataclass(slots=True)
class Counts:
    """Traffic under one tag, as one side saw it.

    payload_*: bytes of the messages themselves. framing_*: bytes of the frame headers before them (16 a frame).
    tls_sent_bytes: what TLS records added to what this side sent. messages_*: messages, however many frames each took.
    rounds: how often this side, having sent, waited for a message under this tag.
    """

    payload_sent_bytes: int = 0
    payload_received_bytes: int = 0
    framing_sent_bytes: int = 0
    framing_received_bytes: int = 0
    tls_sent_bytes: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    rounds: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Traffic:
    """A snapshot of all counts of a channel; subtract an earlier one to get what happened between.

    Example:
        >>> before = channel.traffic()
        >>> ...
        >>> (channel.traffic() - before).by_tag["relu3.open"].payload_sent_bytes
    """

    by_tag: Mapping[str, Counts] = field(default_factory=dict)

    def __sub__(self, earlier: Traffic) -> Traffic:
        zero = Counts()
        spent = {tag: counts - earlier.by_tag.get(tag, zero) for tag, counts in self.by_tag.items()}
        return Traffic({tag: counts for tag, counts in spent.items() if counts != zero})

    @property
    def total(self) -> Counts:
        """The sum over all tags."""
        total = Counts()
        for counts in self.by_tag.values():
            total = total + counts
        return total


class Meter:
    """Counts the messages of one channel as they pass."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._spoke_last = False

    def traffic(self) -> Traffic:
        """A snapshot of the counts up to now."""
        return Traffic({tag: counts + Counts() for tag, counts in self._counts.items()})

    def sent(self, tag: str, nbytes: int, *, frames: int, tls_bytes: int) -> None:
        """One message of ``nbytes`` bytes has left in so many frames; TLS added ``tls_bytes``."""
        counts = self._of(tag)
        counts.payload_sent_bytes += nbytes
        counts.framing_sent_bytes += frames * HEADER_BYTES
        counts.tls_sent_bytes += tls_bytes
        counts.messages_sent += 1
        self._spoke_last = True

    def received(self, tag: str, nbytes: int, *, frames: int) -> None:
        """One message of ``nbytes`` bytes has come in so many frames."""
        counts = self._of(tag)
        counts.payload_received_bytes += nbytes
        counts.framing_received_bytes += frames * HEADER_BYTES
        counts.messages_received += 1
        counts.rounds += self._spoke_last
        self._spoke_last = False

    def _of(self, tag: str) -> Counts:
        counts = self._counts.get(tag)
        if counts is None:
            counts = self._counts[tag] = Counts()
        return counts
