"""What one process of the `crypten` backend sent, read at its sockets.

Bytes are what the process handed to its sockets (:mod:`pi_runtime.net.tcp_info`), gloo's framing included. Where the
kernel does not tell (macOS, Linux before 4.19) the figure is CrypTen's own estimate and says so (``byte_source``).

Rounds are counted as CrypTen's communicator counts them: one for each of its collective calls. Messages are this
process's sends at the same interface, one a tensor (gloo may cut one into several).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

from pi_runtime.net.tcp_info import SocketMeter, tcp_info_works

ByteSource = Literal["tcp_info", "communicator"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Totals since the process started.

    sent_bytes: handed to TCP sockets; received_bytes: arrived on them (0 where the kernel does not tell).
    messages, rounds: see the module.
    """

    sent_bytes: int
    received_bytes: int
    messages: int
    rounds: int


class Meter:
    """Reads the traffic of this process.

    Create it before the first connection; call :meth:`watch` once CrypTen has its communicator.
    """

    def __init__(self) -> None:
        self.byte_source: ByteSource = "tcp_info" if tcp_info_works() else "communicator"
        self._sockets = SocketMeter()
        self._communicator: Any = None
        self._messages = 0

    def watch(self, communicator: Any) -> None:
        """Counts messages and rounds of ``communicator`` (CrypTen's, its ``verbose`` setting on) from now on."""
        self._communicator = communicator
        rank = communicator.get_rank()

        def sends(name: str, args: tuple[Any, ...]) -> int:
            tensors = len(args[0]) if isinstance(args[0], list) else 1
            match name:
                case "all_reduce":
                    return tensors
                case "reduce" | "gather":
                    return 0 if args[1] == rank else tensors
                case "broadcast":
                    return tensors if args[1] == rank else 0
                case "send_obj":
                    return 2  # its length, then the object
            return 1

        for name in ("all_reduce", "reduce", "gather", "broadcast", "send", "isend", "send_obj"):
            setattr(communicator, name, self._counted(getattr(communicator, name), name, sends))

    def read(self) -> Reading:
        """The totals up to now."""
        rounds, estimate = 0, 0
        if self._communicator is not None:
            rounds = int(self._communicator.comm_rounds)
            # Both directions are in CrypTen's figure; in its two-party collectives they are equal.
            estimate = int(self._communicator.comm_bytes) // 2
        if self.byte_source == "communicator":
            return Reading(sent_bytes=estimate, received_bytes=0, messages=self._messages, rounds=rounds)
        sent, received = self._sockets.read()
        return Reading(sent_bytes=sent, received_bytes=received, messages=self._messages, rounds=rounds)

    def _counted(
        self, method: Callable[..., Any], name: str, sends: Callable[[str, tuple[Any, ...]], int]
    ) -> Callable[..., Any]:
        @wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._messages += sends(name, args)
            return method(*args, **kwargs)

        return counted
