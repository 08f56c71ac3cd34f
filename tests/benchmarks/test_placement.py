"""Networks in the harness, on fake links and backends: what is measured where, what is modelled, and that it goes on.

Oracles: the declared formula of a modelled row, and a journal of what was opened.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fake_links import GOOD, NetBench

from benchmarks.errors import MeasureError
from benchmarks.harness import BenchSettings
from benchmarks.placement import link_line, link_problem, place
from benchmarks.results_file import load_results
from benchmarks.schema import LinkRecord
from benchmarks.summary import phase_cost
from pi_runtime.errors import BackendError
from pi_runtime.net.link_check import LinkCheck

SUBJECTS = ("full", "linearized")


@pytest.fixture
def bench(tmp_path: Path) -> NetBench:
    return NetBench(tmp_path)


def kinds(results: Any) -> set[tuple[str, str, str]]:
    return {(row.backend, row.network, row.kind) for row in results.rows}


def test_each_backend_is_measured_where_it_can_be_and_modelled_elsewhere(bench: NetBench) -> None:
    results = bench.run("near", "apart", "alone", networks=("wan", "lan"))
    assert kinds(results) == {
        ("near", "wan", "measured"),
        ("near", "lan", "measured"),
        ("apart", "loopback", "measured"),  # what the model is made from
        ("apart", "wan", "modelled"),
        ("apart", "lan", "modelled"),
        ("alone", "loopback", "measured"),
    }
    assert {entry.backend for entry in results.secure} == {"near", "apart", "alone"}
    assert {(row.backend, row.network) for row in results.layers} == {
        ("near", "wan"),
        ("near", "lan"),
        ("apart", "loopback"),
        ("alone", "loopback"),
    }
    assert load_results(bench.path) == results


def test_a_network_may_have_runs_of_its_own(bench: NetBench) -> None:
    """Five runs in two sweeps, 3 and 2; one on the WAN, which only the first sweep visits."""
    bench.settings = BenchSettings(runs=5, warmup=1, sweeps=2, accuracy_batch=50, runs_on={"wan": 1})
    results = bench.run("near", networks=("loopback", "wan"))
    runs = {(row.network, row.sweep): len(row.seconds) for row in results.rows if row.phase == "online"}
    assert runs == {("loopback", 0): 3, ("loopback", 1): 2, ("wan", 0): 1}
    assert results.schedule.runs_on == {"wan": 1}
    done = len(bench.journal)
    assert bench.run("near", networks=("loopback", "wan")) == results
    assert len(bench.journal) == done, "nothing is left to measure"


def test_modelled_seconds_are_those_of_loopback_and_rounds_and_bytes_of_the_link(bench: NetBench) -> None:
    results = bench.run("apart", networks=("loopback", "wan", "bandwidth_mbps=8,rtt_ms=10"))
    for subject, relus in (("full", 4), ("linearized", 2)):
        # 4 rounds, and the client's 100 bytes a ReLU are more than the server's 14.
        for network, added in (("wan", 4 * 0.040 + 100 * relus / 12.5e6), ("bandwidth_mbps=8,rtt_ms=10", None)):
            added = 4 * 0.010 + 100 * relus / 1e6 if added is None else added
            bare = phase_cost(results, "apart", subject, "online")
            model = phase_cost(results, "apart", subject, "online", network=network, kind="modelled")
            assert bare is not None
            assert model is not None
            assert model.latency_s.median == pytest.approx(bare.latency_s.median + added, rel=1e-9)
            assert (model.sent_bytes, model.rounds) == (bare.sent_bytes, bare.rounds)
    assert {link.network: link.shaping for link in results.links} == {
        "wan": "none",
        "bandwidth_mbps=8,rtt_ms=10": "none",
    }
    assert "link wan" not in bench.journal


def test_bytes_that_follow_one_another_are_all_counted(bench: NetBench) -> None:
    bench.links.reach = lambda backend, network: "modelled"  # type: ignore[method-assign]
    results = bench.run("preset", networks=("wan",))
    bare = phase_cost(results, "preset", "full", "online")
    model = phase_cost(results, "preset", "full", "online", network="wan", kind="modelled")
    assert bare is not None
    assert model is not None
    assert model.latency_s.median == pytest.approx(bare.latency_s.median + 0.160 + (400 + 14) / 12.5e6, rel=1e-9)


def test_links_are_made_once_recorded_and_closed(bench: NetBench) -> None:
    bench.settings = BenchSettings(runs=2, warmup=0, sweeps=2, accuracy_batch=50)
    results = bench.run("near", networks=("loopback", "wan"))
    assert [entry for entry in bench.journal if "link " in entry] == ["link wan", "unlink wan"]
    assert results.links == (
        LinkRecord(
            network="wan",
            shaping="relay",
            rtt_ms=40.0,
            bandwidth_mbps=100.0,
            measured_rtt_ms=(40.5,),
            measured_bandwidth_mbps=(99.0, 101.0),
        ),
    )
    assert link_problem(results.links[0]) is None
    assert link_line(results.links[0]) == (
        "wan: 100 Mbit/s, RTT 40 ms; by the relay, measured 99 to 101 Mbit/s, RTT 40.5 ms, 0 packets lost"
    )


def test_networks_of_one_stop_come_one_after_the_other_and_comparisons_on_loopback(bench: NetBench) -> None:
    bench.run("near", networks=("loopback", "wan"))
    assert bench.timed() == ["near@loopback", "near@wan"]
    steps = [entry for entry in bench.journal if entry.startswith(("prepare", "close"))]
    assert steps[:4] == [
        f"{step} near@{network} full" for network in ("loopback", "wan") for step in ("prepare", "close")
    ]
    compared = [entry for entry in bench.journal if entry.startswith("infer") and not entry.endswith(" 1")]
    assert {entry.split()[1] for entry in compared} == {"near@loopback"}


def test_a_backend_across_networks_takes_turns_on_them_and_the_others_come_after(bench: NetBench) -> None:
    """Three repetitions to and fro over both networks; the WAN's one run is in the first. Then `near`, as ever."""
    bench.settings = BenchSettings(
        runs=3, warmup=0, sweeps=1, accuracy_batch=50, runs_on={"wan": 1}, across_networks=("far",)
    )
    results = bench.run("near", "far", networks=("loopback", "wan"), subjects=bench.subjects[:1])
    assert [entry for entry in bench.journal if not entry.endswith(" 2")] == [
        *("link wan", "prepare far@loopback full", "prepare far@wan full"),
        *("infer far@loopback full 1", "infer far@wan full 1", *["infer far@loopback full 1"] * 2),
        *("close far@wan full", "close far@loopback full"),
        *("prepare near@loopback full", *["infer near@loopback full 1"] * 3, "close near@loopback full"),
        *("prepare near@wan full", "infer near@wan full 1", "close near@wan full", "unlink wan"),
    ]
    assert results.schedule.across_networks == ("far",)
    assert {(entry.backend, entry.images) for entry in results.secure} == {("near", 2), ("far", 2)}
    done = len(bench.journal)
    assert bench.run("near", "far", networks=("loopback", "wan"), subjects=bench.subjects[:1]) == results
    assert len(bench.journal) == done, "nothing is left to measure"


def test_a_backend_across_networks_turns_around_at_each_repetition(bench: NetBench) -> None:
    bench.settings = BenchSettings(runs=2, warmup=1, sweeps=1, accuracy_batch=50, across_networks=("near",))
    bench.run("near", networks=("loopback", "lan", "wan"), subjects=bench.subjects[:1])
    order = [entry.split()[1].removeprefix("near@") for entry in bench.journal if entry.endswith(" 1")]
    there = ["loopback", "lan", "wan"]
    assert order == [*there, *reversed(there), *there]


def test_a_network_that_failed_is_gone_on_with_and_what_is_done_is_kept(bench: NetBench) -> None:
    bench.failing = "near@wan"
    with pytest.raises(BackendError, match="the process died"):
        bench.run("near", networks=("loopback", "wan"), subjects=bench.subjects[:1])
    assert bench.journal[-1] == "unlink wan"
    bench.failing = None
    bench.journal.clear()
    results = bench.run("near", networks=("loopback", "wan"), subjects=bench.subjects[:1])
    assert bench.timed() == ["near@wan"]
    assert results.link("wan").measured_rtt_ms == (40.5, 40.5), "one of each time that the link was made"
    bench.journal.clear()
    assert bench.run("near", networks=("loopback", "wan"), subjects=bench.subjects[:1]) == results
    assert bench.journal == []
    more = bench.run("near", networks=("lan",), subjects=bench.subjects[:1])
    assert bench.timed() == ["near@lan"]
    assert more.networks == ("loopback", "wan", "lan")


def test_a_model_is_not_made_twice_and_gives_no_place_to_a_measurement(bench: NetBench) -> None:
    first = bench.run("apart", networks=("wan",))
    assert bench.run("apart", networks=("wan",)) == first
    bench.links.reach = lambda backend, network: "measured"  # type: ignore[method-assign]
    both = bench.run("apart", networks=("wan",))
    assert kinds(both) - kinds(first) == {("apart", "wan", "measured")}
    assert set(first.rows) <= set(both.rows)
    assert both.link("wan").shaping == "relay"


def test_figures_of_one_network_are_not_shaped_in_two_ways(bench: NetBench) -> None:
    bench.run("near", networks=("wan",))
    bench.links.shaping = "channel"
    with pytest.raises(MeasureError, match="shaped by the relay, and here it would be the channel"):
        bench.run("near", "other", networks=("wan",))


@pytest.mark.parametrize(
    ("check", "dropped", "problem"),
    [
        (LinkCheck(rtt_ms=45.0, bandwidth_mbps=(100.0, 100.0)), 0, "off by 12%"),
        (LinkCheck(rtt_ms=40.0, bandwidth_mbps=(100.0, 70.0)), 0, "off by 30%"),
        (GOOD, 3, "3 packets lost; latencies on it hold waits"),
    ],
)
def test_a_link_that_is_not_its_profile_is_told_and_recorded(
    bench: NetBench, caplog: pytest.LogCaptureFixture, check: LinkCheck, dropped: int, problem: str
) -> None:
    bench.links.check, bench.links.dropped = check, dropped
    with caplog.at_level(logging.WARNING):
        results = bench.run("near", networks=("wan",))
    assert problem in caplog.text
    (link,) = results.links
    assert link.measured_rtt_ms == (check.rtt_ms,)
    assert link.dropped_packets == dropped
    assert problem in str(link_problem(link))


def test_a_dead_relay_is_named_where_a_backend_fails_on_it(bench: NetBench) -> None:
    bench.failing, bench.links.dead = "near@wan", True
    with pytest.raises(BackendError, match="the relay process was killed"):
        bench.run("near", networks=("wan",))


def test_a_dead_relay_is_named_among_the_networks_that_are_open_together(bench: NetBench) -> None:
    bench.settings = BenchSettings(runs=2, warmup=0, sweeps=1, across_networks=("near",))
    bench.failing, bench.links.dead = "near@wan", True
    with pytest.raises(BackendError, match="the relay process was killed"):
        bench.run("near", networks=("loopback", "wan"))


def test_no_network_at_all_is_one_line() -> None:
    with pytest.raises(MeasureError, match="networks must name at least one"):
        place(["a"], [], lambda backend, network: "measured")
