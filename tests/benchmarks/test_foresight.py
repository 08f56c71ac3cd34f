"""A rehearsal in turn with the measurement: when it runs, what is kept of it, and what it predicts.

Oracles: the journal of the fake backends and their seconds, bytes and rounds of the public graph, sums by hand.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fake_bench import ONLINE_S, open_after
from fake_links import NetBench

from benchmarks.errors import MeasureError
from benchmarks.foresight import foresight
from benchmarks.harness import BenchSettings
from benchmarks.law_view import law_view
from benchmarks.raw_tables import law_tables
from benchmarks.report import write_report
from benchmarks.results_file import load_results
from benchmarks.schema import LOOPBACK, LayerRow, Phase, Rehearsed, RehearsedLayer, Results, SentBytes
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.estimate import estimate
from pi_runtime.preset.latency import CARRYING_S_A_BYTE, MOST_WAKING_S


@pytest.fixture
def bench(tmp_path: Path) -> NetBench:
    found = NetBench(tmp_path)
    found.settings = BenchSettings(runs=2, warmup=1, sweeps=1, accuracy_batch=50, rehearse=True)
    return found


def turns(bench: NetBench) -> list[str]:
    """Which backend each inference of one image was of, in their order."""
    return [entry.split()[1].removesuffix("@loopback") for entry in bench.journal if entry.endswith(" 1")]


def test_a_rehearsal_takes_its_turns_at_the_other_end(bench: NetBench) -> None:
    bench.run("preset", "other", subjects=bench.subjects[:1])
    there = ["preset", "other", "rehearsal"]
    assert turns(bench)[:3] == ["preset", "rehearsal", "other"], "warm-ups, a backend after the other"
    assert turns(bench)[3:] == [*reversed(there), *there]


def test_short_memory_parts_no_rehearsal_from_what_it_takes_turns_with(bench: NetBench) -> None:
    """Three of the four fit; a subject's two are together all the same."""
    bench.run("preset", memory=lambda: 100 * (4 - sum(map(open_after, bench.journal))))
    opened = [entry.split()[1:] for entry in bench.journal if entry.startswith("prepare")]
    both = ["preset@loopback", "rehearsal@loopback"]
    assert opened == [[name, subject] for subject in ("full", "model") for name in both]
    assert max(itertools.accumulate(map(open_after, bench.journal))) == 2


def test_what_is_kept_of_a_rehearsal_are_its_seconds_and_what_the_public_graph_declares(bench: NetBench) -> None:
    results = bench.run("preset", subjects=bench.subjects[:1])
    exact = estimate(load_onnx(bench.full), 1)
    offline, online = results.rehearsed
    assert (offline.phase, offline.seconds) == ("offline", (0.25, 0.25))
    (relu,) = offline.layers
    assert (relu.layer, relu.seconds, relu.sent_bytes.dealer) == ("relu1", (0.25, 0.25), 4000)
    assert online.layers == ()
    assert (online.phase, online.seconds) == ("online", tuple(4 * second for second in ONLINE_S[1:3]))
    for entry, volume in ((offline, exact.offline), (online, exact.online)):
        assert (entry.sent_bytes.model_dump(), entry.rounds) == (volume.sent_bytes, volume.rounds)
    assert {row.backend for row in results.rows} == {"preset"}, "a rehearsal is no row"
    assert len(results.rows) == 3, "a phase each"
    assert [entry.backend for entry in results.secure] == ["preset"], "its logits mean nothing and are not compared"
    assert load_results(bench.path) == results


def test_a_rehearsal_that_was_made_is_not_made_again(bench: NetBench) -> None:
    first = bench.run("preset", subjects=bench.subjects[:1])
    bench.journal.clear()
    assert bench.run("preset", "other", subjects=bench.subjects[:1]).rehearsed == first.rehearsed
    assert set(turns(bench)) == {"other"}


def test_it_is_made_on_loopback_where_preset_itself_is_measured_elsewhere_alone(bench: NetBench) -> None:
    results = bench.run("preset", networks=("wan",), subjects=bench.subjects[:1])
    assert {(row.backend, row.network) for row in results.rows} == {("preset", "wan")}
    assert set(turns(bench)) == {"preset@wan", "rehearsal"}
    assert {(entry.network, entry.phase) for entry in foresight(results)} == {("wan", "online"), ("wan", "offline")}


def test_without_being_asked_for_there_is_none(bench: NetBench) -> None:
    bench.settings = BenchSettings(runs=2, sweeps=1)
    results = bench.run("preset", subjects=bench.subjects[:1])
    assert results.rehearsed == () == foresight(results)
    assert set(turns(bench)) == {"preset"}


def test_a_rehearsal_is_one_of_preset(bench: NetBench) -> None:
    with pytest.raises(MeasureError, match="a rehearsal is one of preset, which backends must name; got other"):
        bench.run("other")
    assert bench.journal == []


PLACES = (("loopback", "online", 0.25), ("wan", "online", 1.0), ("wan", "offline", 1.0))

DEALT = tuple(
    RehearsedLayer(layer=layer, seconds=(seconds,), sent_bytes=SentBytes(client=0, server=0, dealer=dealer))
    for layer, seconds, dealer in (("conv1", 0.01, 500_000), ("relu1", 0.015, 500_000))
)


@pytest.fixture
def foreseen(results: Results) -> Results:
    """Rows of one network at three places, and rehearsals of it in two sweeps."""
    sent = SentBytes(client=250_000, server=1_000_000, dealer=0)
    rows = tuple(
        results.rows[0].model_copy(
            update={
                "backend": "preset",
                "subject": "linearized",
                "network": network,
                "phase": phase,
                "seconds": (seconds,),
                "sent_bytes": sent,
            }
        )
        for network, phase, seconds in PLACES
    )
    runs: tuple[tuple[Phase, int, tuple[float, ...], int], ...] = (
        ("online", 0, (0.1, 0.2), 10),
        ("online", 1, (0.9,), 10),
        ("offline", 0, (0.03,), 4),
        ("offline", 1, (0.03,), 4),
    )
    rehearsed = tuple(
        Rehearsed(
            subject="linearized",
            phase=phase,
            sweep=sweep,
            seconds=seconds,
            sent_bytes=sent,
            rounds=rounds,
            layers=DEALT if phase == "offline" else (),
        )
        for phase, sweep, seconds, rounds in runs
    )
    return results.model_copy(update={"rows": rows, "rehearsed": rehearsed})


def test_it_predicts_the_link_from_the_profile_and_the_declared_counts(foreseen: Results) -> None:
    """WAN: 100 Mbit/s each way, 40 ms. Online all bytes follow one another; offline they stream while it computes."""
    found = foresight(foreseen)
    assert [(entry.subject, entry.network, entry.phase) for entry in found] == [
        ("linearized", network, phase) for network, phase, _ in PLACES
    ]
    # The median of all three runs; 10 rounds, 1.25 MB. Offline 4 rounds; the link has the first layer after 10 ms and
    # what carrying its 0.5 MB takes of the cores, is busy from then on with 1 MB, and 5 ms are no layer's.
    offline_s = 0.16 + 0.010 + 0.5e6 * CARRYING_S_A_BYTE + 0.08 + 0.005
    assert [entry.predicted_s for entry in found] == pytest.approx(
        [0.2, 0.2 + 0.4 + 10 * MOST_WAKING_S + 0.1, offline_s]
    )
    assert [entry.error for entry in found] == pytest.approx([-0.2, -0.286, offline_s - 1])
    assert {entry.predicted_bytes - entry.measured_bytes for entry in found} == {0}


def test_of_earlier_results_the_rows_on_loopback_say_how_a_rehearsal_was_divided(foreseen: Results) -> None:
    rows = tuple(
        LayerRow(
            backend="preset",
            subject="linearized",
            network=LOOPBACK,
            phase="offline",
            sweep=0,
            layer=layer.layer,
            op="conv",
            relu_count=0,
            seconds=layer.seconds,
            sent_bytes=layer.sent_bytes,
            messages=1,
            rounds=0,
        )
        for layer in DEALT
    )
    elsewhere = tuple(row.model_copy(update={"network": "wan", "seconds": (9.0,)}) for row in rows)
    earlier = tuple(entry.model_copy(update={"layers": ()}) for entry in foreseen.rehearsed)
    results = foreseen.model_copy(update={"rehearsed": earlier, "layers": (*elsewhere, *rows)})
    assert [entry.predicted_s for entry in foresight(results)] == [entry.predicted_s for entry in foresight(foreseen)]


def test_the_report_shows_every_prediction_and_how_many_hold(foreseen: Results, tmp_path: Path) -> None:
    """One of three within a tenth, the others bold; the same figures as a table to download. Offline 466 ms of 1 s."""
    near = tuple(entry.model_copy(update={"seconds": (0.24,)}) for entry in foreseen.rehearsed if entry.sweep == 0)
    results = foreseen.model_copy(update={"rehearsed": near})
    results.save(tmp_path / "results.json")
    page = write_report(tmp_path, gallery=False).read_text(encoding="utf-8")
    section = page.split('id="rehearsed"')[1].split("<h2")[0]
    assert "1 of 3 are within 10 %" in section.replace("\u202f", " ")
    assert section.count("<strong>") == 2
    assert '<a href="#rehearsed">' in page
    (table,) = [table for table in law_tables(law_view(results)) if table.key == "rehearsed"]
    assert [row[table.columns.index("error")] for row in table.rows] == pytest.approx([-0.04, -0.246, -0.534])
