"""The legal order of messages, as one table for each pair of roles.

Theory of operation. A connection begins with HELLO from the side that connected and HELLO from the side that accepted;
their roles choose the table. From then on both sides walk the same table, one step a *message* (not a frame), whether
they send or receive it: at any state the table names who may say what, and anything else ends the connection. BYE is
legal from either side wherever nothing is under way (``ready``, ``opened``), ERROR from either side at any time.

Layers. Messages of a bundle or of an inference come in strictly ascending order of their layer, so that no layer can
be opened, answered or delivered twice in one; CLIENT_ANSWER repeats the layer of the SERVER_OPEN that it answers. That
all layers came, and none else, is checked by who knows the graph.

OPEN may come long before INPUT: it is how a client hides the extra round trip of the one-time handshake.
"""

from __future__ import annotations

from collections.abc import Mapping

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.net.messages import LAYERED, Kind
from pi_runtime.net.wire import NO_LAYER

Step = tuple[str, Kind]  # who sends, what
Table = Mapping[str, Mapping[Step, str]]  # state -> step -> next state

GREETING: Table = {
    "start": {("connector", Kind.HELLO): "greeted"},
    "greeted": {("acceptor", Kind.HELLO): "ready"},
    "ready": {},
}

CLIENT_SERVER: Table = {
    "ready": {
        ("client", Kind.GET_MODEL): "model asked",
        ("client", Kind.GET_GRAPH): "graph asked",
        ("client", Kind.GET_SEED): "seed asked",
        ("client", Kind.PREPARE): "prepare asked",
        ("client", Kind.OPEN): "open asked",
    },
    "model asked": {("server", Kind.MODEL): "ready"},
    "graph asked": {("server", Kind.GRAPH): "ready"},
    "seed asked": {("server", Kind.WEIGHT_SEED): "ready"},
    "prepare asked": {("server", Kind.PREPARED): "preparing"},
    "preparing": {
        ("client", Kind.CLIENT_SHARE): "preparing",
        ("server", Kind.STORED): "ready",
    },
    "open asked": {("server", Kind.OPENED): "opened"},
    "opened": {("client", Kind.INPUT): "server's turn"},
    "server's turn": {
        ("server", Kind.SERVER_OPEN): "client's turn",
        ("server", Kind.LOGITS): "ready",
    },
    "client's turn": {("client", Kind.CLIENT_ANSWER): "server's turn"},
}

CLIENT_DEALER: Table = {
    "ready": {("client", Kind.DEAL): "deal asked"},
    "deal asked": {("client", Kind.BUNDLE_SEED): "dealing"},
    "dealing": {("dealer", Kind.DEALT): "ready"},
}

SERVER_DEALER: Table = {
    "ready": {
        ("server", Kind.SETUP): "set-up asked",
        ("dealer", Kind.MATERIAL): "delivering",
    },
    "set-up asked": {
        ("dealer", Kind.SETUP_NEEDED): "setting up",
        ("dealer", Kind.SETUP_DONE): "ready",
    },
    "setting up": {
        ("server", Kind.WEIGHT_PAD): "setting up",
        ("dealer", Kind.SETUP_DONE): "ready",
    },
    "delivering": {
        ("dealer", Kind.LINEAR_SHARE): "delivering",
        ("dealer", Kind.GATE_SHARE): "delivering",
        ("server", Kind.STORED): "ready",
    },
}

TABLES: Mapping[frozenset[str], Table] = {
    frozenset(("client", "server")): CLIENT_SERVER,
    frozenset(("client", "dealer")): CLIENT_DEALER,
    frozenset(("server", "dealer")): SERVER_DEALER,
}

BYE_STATES = frozenset(("ready", "opened"))
CLOSED = "closed"


class Session:
    """Where one connection stands in the table of its pair of roles. It knows no sockets."""

    def __init__(self, *, connector: bool) -> None:
        self._own, self._peer = ("connector", "acceptor") if connector else ("acceptor", "connector")
        self._table = GREETING
        self._layer = -1
        self.state = "start"

    def pair(self, own_role: str, peer_role: str) -> None:
        """After the greeting: the roles are known, and their table holds from now on.

        Raises:
            RemoteProtocolError: these two roles have nothing to say to one another.
        """
        table = TABLES.get(frozenset((own_role, peer_role)))
        if table is None:
            raise RemoteProtocolError(f"a {peer_role} has nothing to say to a {own_role}; check the address")
        self._own, self._peer, self._table = own_role, peer_role, table

    def send(self, kind: Kind, layer: int = NO_LAYER) -> None:
        """Moves on by a message of this side.

        Raises:
            LocalProtocolError: it is not legal now.
        """
        if fault := self._step(self._own, kind, layer):
            raise LocalProtocolError(f"cannot send {fault}")

    def receive(self, kind: Kind, layer: int = NO_LAYER) -> None:
        """Moves on by a message of the peer.

        Raises:
            RemoteProtocolError: it is not legal now.
        """
        if fault := self._step(self._peer, kind, layer):
            raise RemoteProtocolError(f"the {self._peer} sent {fault}")

    def _step(self, sender: str, kind: Kind, layer: int) -> str:
        """Takes one step; returns what is wrong with it, or nothing."""
        if self.state == CLOSED:
            return f"{kind.name} after the end of the session"
        if kind is Kind.ERROR or (kind is Kind.BYE and self.state in BYE_STATES):
            self.state = CLOSED
            return ""
        following = self._table[self.state].get((sender, kind))
        if following is None:
            legal = ", ".join(f"{who}: {what.name}" for who, what in self._table[self.state])
            return f"{kind.name} in state {self.state!r}; legal is {legal or 'nothing'}"
        if kind not in LAYERED:
            self._layer = -1
        elif kind is Kind.CLIENT_ANSWER:
            if layer != self._layer:
                return f"{kind.name} for layer {layer}; layer {self._layer} was opened"
        elif layer <= self._layer:
            return f"{kind.name} for layer {layer} after layer {self._layer}; each layer comes once, in ascending order"
        else:
            self._layer = layer
        self.state = following
        return ""
