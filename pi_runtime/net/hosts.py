"""Where the roles of a measurement live on this machine: all on its loopback, or each in a network namespace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Hosts:
    """A place for each role; this one is the machine's own loopback, the same for all of them.

    interface: the network device by which the roles reach one another; None for whatever loopback is called here.
    """

    interface: str | None = None

    def address(self, role: str) -> str:
        """The IPv4 address of ``role``, which every role reaches; a loopback address, as plain TCP must have."""
        del role
        return "127.0.0.1"

    def at(self, role: str) -> AbstractContextManager[None]:
        """Inside the block this thread is where ``role`` lives: sockets, threads and processes made there stay."""
        del role
        return nullcontext()


LOOPBACK_HOSTS = Hosts()
