"""The link under a rehearsal. Oracles: sums by hand, a schedule drawn by hand, and limits that any schedule keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_runtime.net.shaping import NetworkProfile, parse_profile
from pi_runtime.preset.estimate import Volume, estimate
from pi_runtime.preset.latency import (
    CARRYING_S_A_BYTE,
    MOST_WAKING_S,
    WAKING_OF_RTT,
    DealtLayer,
    Latency,
    offline_latency,
)
from pi_runtime.preset.rehearse import Rehearsal, latency

SLOW = NetworkProfile("test", bandwidth_mbps=8.0, rtt_ms=100.0)
"""A megabyte a second."""

SENDERS = ("client", "server", "dealer")


def dealt(seconds: float, dealer_bytes: int, client_bytes: int = 0) -> DealtLayer:
    return DealtLayer(
        name="layer", seconds=seconds, sent_bytes={"client": client_bytes, "server": 0, "dealer": dealer_bytes}
    )


def offline(compute_s: float, layers: list[DealtLayer], profile: NetworkProfile = SLOW) -> Latency:
    sent = {
        role: sum(layer.sent_bytes[role] for layer in layers) + more
        for role, more in (("client", 0), ("server", 256), ("dealer", 0))
    }
    return offline_latency(compute_s, layers=layers, rounds=4, sent_bytes=sent, profile=profile)


def test_online_is_the_sum_of_its_terms(preset_graph):
    def volume(client: int, server: int, rounds: int) -> Volume:
        payload, framing = {"client": client, "server": server, "dealer": 0}, dict.fromkeys(SENDERS, 0)
        return Volume(payload_bytes=payload, framing_bytes=framing, messages=2 * rounds, rounds=rounds)

    exact = replace(estimate(preset_graph, 1), online=volume(606_000, 394_000, 18), offline=volume(0, 0, 4))
    rehearsed = Rehearsal(
        linear_s=0, gate_s=0, rest_s=0, online_s=1.0, offline_s=2.0, dealt=(), round_s=None, relu_s=None, runs=3
    )
    modelled = latency(exact, rehearsed, NetworkProfile("test", bandwidth_mbps=100.0, rtt_ms=40.0))
    online = modelled["online"]
    assert online.slowing_s == pytest.approx(18 * MOST_WAKING_S)
    assert (online.compute_s, online.round_trip_s, online.transfer_s) == pytest.approx((1.0, 0.72, 0.08))
    assert online.total_s == pytest.approx(1.8 + 18 * MOST_WAKING_S)
    near = latency(exact, rehearsed, NetworkProfile("near", bandwidth_mbps=100.0, rtt_ms=1.0))["online"]
    assert near.slowing_s == pytest.approx(18 * 1e-3 * WAKING_OF_RTT)
    bare = latency(exact, rehearsed, parse_profile("loopback"))
    assert (bare["online"].total_s, bare["offline"].total_s) == (1.0, 2.0)


def test_the_link_carries_one_layer_while_the_next_is_computed():
    """Computed until 1, 3 and 6 s, carried from 1 to 5, from 5 to 6 and from 6 to 7 s: 1 s more than computing."""
    layers = [dealt(1.0, 4_000_000), dealt(2.0, 1_000_000), dealt(3.0, 1_000_000)]
    found = offline(10.0, layers)
    held_up = CARRYING_S_A_BYTE * 6_000_000
    assert found.slowing_s == pytest.approx(held_up)
    assert (found.round_trip_s, found.transfer_s) == pytest.approx((0.4, 6.0))
    # All that is computed later is carried later, so the last byte comes as much later as the last layer.
    assert found.total_s == pytest.approx(10.0 + 1.0 + 0.4 + held_up)


def test_what_the_link_cannot_keep_up_with_waits():
    """Computed until 1 and 2 s, carried from 1 to 4 and from 4 to 9: the client's 2 MB go beside, and cost cores."""
    found = offline(2.0, [dealt(1.0, 3_000_000, 2_000_000), dealt(1.0, 5_000_000)])
    first = CARRYING_S_A_BYTE * 5_000_000
    assert found.total_s == pytest.approx(9.0 + 0.4 + first)


def test_loopback_is_as_it_was_rehearsed():
    found = offline(2.5, [dealt(1.0, 3_000_000)], parse_profile("loopback"))
    assert (found.total_s, found.slowing_s) == (2.5, 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 5_000_000)), min_size=1, max_size=8),
    st.floats(0, 3),
)
def test_no_schedule_is_shorter_than_its_machines_or_longer_than_both(parts, rest_s):
    layers = [dealt(seconds, size) for seconds, size in parts]
    computing = sum(seconds for seconds, _ in parts)
    carried = sum(size for _, size in parts) / SLOW.bytes_per_s
    found = offline(computing + rest_s, layers)
    held_up = CARRYING_S_A_BYTE * sum(size for _, size in parts)
    assert found.total_s >= rest_s + 0.4 + max(computing, carried) - 1e-9
    assert found.total_s <= rest_s + 0.4 + computing + held_up + max(carried, 256e-6) + 1e-9
