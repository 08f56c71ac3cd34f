"""What can be seen of secrets. Oracles: chi-square of what leaves each role, and a search of all that is printed."""

from __future__ import annotations

import numpy as np
import pytest

from pi_runtime.net.channel import Channel
from pi_runtime.net.messages import Kind
from pi_runtime.net.wire import as_bytes

SECRET = (
    Kind.WEIGHT_PAD,
    Kind.CLIENT_SHARE,
    Kind.LINEAR_SHARE,
    Kind.GATE_SHARE,
    Kind.INPUT,
    Kind.SERVER_OPEN,
    Kind.CLIENT_ANSWER,
)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_what_leaves_each_role_is_uniform_for_any_input(idle_parties, monkeypatch, value):
    captured = {kind: bytearray() for kind in SECRET}
    send_array = Channel.send_array

    def tap(channel, kind, *buffers, **options):
        if kind in captured:
            captured[kind] += b"".join(bytes(as_bytes(buffer)) for buffer in buffers)
        send_array(channel, kind, *buffers, **options)

    monkeypatch.setattr(Channel, "send_array", tap)
    idle_parties.start_dealer()
    idle_parties.start_server()
    client, _ = idle_parties.client()
    client.infer(np.full((64, 1, 8, 8), value, np.float32))
    for kind, data in captured.items():
        counts = np.bincount(np.frombuffer(bytes(data), np.uint8), minlength=256)
        assert len(data) > 5 * 256, kind.name
        expected = len(data) / 256
        # Chi-square of 255 degrees of freedom has deviation 22.6: six of them, one false alarm in 10^8 or so.
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 22.6, kind.name
