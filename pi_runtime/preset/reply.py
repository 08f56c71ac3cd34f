"""Replies that must be about what was asked for."""

from __future__ import annotations

from pi_runtime.errors import RemoteProtocolError
from pi_runtime.net.channel import Channel
from pi_runtime.net.messages import ErrorCode, Kind, Scalar


def expect(channel: Channel, kind: Kind, *, within_s: float | None = None, **fields: Scalar) -> None:
    """Takes the reply ``kind`` of the peer, whose fields must be exactly ``fields``.

    within_s: default read_s of the channel.

    Raises:
        RemoteProtocolError: as :meth:`Channel.recv_control`, or the reply is about something else; the peer is told,
            and the channel is closed.
    """
    if channel.recv_control(kind, within_s=within_s).body != fields:
        what = "bundle" if "bundle_id" in fields else "model"
        fault = f"the {channel.peer.role}'s {kind.name} is about another {what} than it was asked for"
        channel.refuse(ErrorCode.PROTOCOL, fault)
        raise RemoteProtocolError(fault)
