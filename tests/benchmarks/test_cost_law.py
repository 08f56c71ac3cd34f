"""The cost law: rows of a known law give it back, and points that it never saw are predicted as by that law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.cost_law import cost_laws, predictions
from benchmarks.errors import MeasureError
from benchmarks.link_fit import PLAIN, LinkedPoint, fit_factors
from benchmarks.links import Link, link_in, link_of, link_seconds, serial_bytes
from benchmarks.schema import LayerRow, LinkRecord, ReluLayer, Results, SentBytes
from tests.benchmarks.conftest import make_row, make_subject

COUNTS = (6000, 15000, 30000, 50000, 100000)
ROUNDS = 17
NETWORKS = {"loopback": (0.0, float("inf")), "lan": (0.5e-3, 125e6), "bandwidth_mbps=50,rtt_ms=20": (0.02, 6.25e6)}
"""By name: round-trip seconds and bytes a second."""


def sent(count: int) -> SentBytes:
    return SentBytes(client=30_000 + 8 * count, server=5_000 + 3 * count, dealer=0)


def latency(backend: str, count: int, network: str) -> float:
    """0.03 s, 0.2 us a ReLU, and the link: `preset` waits for all bytes, another for those of the busier direction."""
    rtt_s, bytes_per_s = NETWORKS[network]
    carried = sent(count).client + (sent(count).server if backend == "preset" else 0)
    return 0.03 + 2e-7 * count + ROUNDS * rtt_s + carried / bytes_per_s


def measured(
    results: Results,
    cost: Callable[[str, int, str], float],
    networks: tuple[str, ...],
    carried: Callable[[int], SentBytes] = sent,
) -> Results:
    subjects = tuple(make_subject(str(count), count, mask="random") for count in COUNTS)
    rows = [
        make_row(backend, str(count), "online", cost(backend, count, network), carried(count), ROUNDS).model_copy(
            update={"network": network}
        )
        for network in networks
        for backend in ("preset", "other")
        for count in COUNTS
    ]
    return results.model_copy(update={"subjects": subjects, "rows": tuple(rows), "layers": (), "relu_layers": ()})


@pytest.mark.parametrize("networks", [("loopback",), tuple(NETWORKS), ("lan", "bandwidth_mbps=50,rtt_ms=20")])
def test_rows_of_a_law_give_the_law(results: Results, networks: tuple[str, ...]) -> None:
    found = {law.backend: law for law in cost_laws(measured(results, latency, networks))}
    assert found.keys() == {"preset", "other"}
    for entry in found.values():
        assert entry.law.fixed_s == pytest.approx(0.03)
        assert entry.law.relu_s == pytest.approx(2e-7)
        assert entry.law.fitted_on == (("loopback",) if "loopback" in networks else networks)
        assert len(entry.residuals) == len(COUNTS) * len(networks)
        for residual in entry.residuals:
            assert residual.residual_s == pytest.approx(0, abs=1e-9)
            assert residual.error == pytest.approx(0, abs=1e-9)


def test_what_the_law_does_not_explain_is_a_residual(results: Results) -> None:
    """10 ms more a WAN inference: loopback rows alone fix a and b, so that the others show it whole."""

    def cost(backend: str, count: int, network: str) -> float:
        return latency(backend, count, network) + (0.01 if network == "lan" else 0.0)

    (entry, _) = cost_laws(measured(results, cost, ("loopback", "lan")))
    for residual in entry.residuals:
        expected = 0.01 if residual.point.network == "lan" else 0.0
        assert residual.residual_s == pytest.approx(expected, abs=1e-9)
        assert residual.error == pytest.approx(-expected / residual.point.seconds)


def test_waits_bytes_and_overlap_of_a_backend_are_found_and_predict_what_was_held_back(results: Results) -> None:
    """Two round trips a round, a tenth more for each byte; and work of which three quarters hide behind the link."""

    def cost(backend: str, count: int, network: str) -> float:
        rtt_s, bytes_per_s = NETWORKS[network]
        carried = sent(count).client + (sent(count).server if backend == "preset" else 0)
        work_s, link_s = 0.03 + 2e-7 * count, 2 * ROUNDS * rtt_s + 1.1 * carried / bytes_per_s
        return max(work_s, link_s) + 0.25 * min(work_s, link_s)

    document = measured(results, cost, tuple(NETWORKS))
    for entry in cost_laws(document):
        factors = entry.law.factors
        assert (factors.per_round, factors.per_byte, factors.overlap) == pytest.approx((2.0, 1.1, 0.75), rel=0.03)
    for held_back in predictions(document):
        assert held_back.error == pytest.approx(0, abs=0.01)


def test_a_link_on_which_work_takes_longer_has_a_factor_of_its_own(results: Results) -> None:
    """Half more work on the LAN alone, as where its relay shares the cores or its minutes were slow ones."""

    def cost(backend: str, count: int, network: str) -> float:
        more_s = 0.5 * (0.03 + 2e-7 * count) if network == "lan" else 0.0
        return latency(backend, count, network) + more_s

    document = measured(results, cost, tuple(NETWORKS))
    for entry in cost_laws(document):
        work = entry.law.factors.work
        assert work.keys() == NETWORKS.keys() - {"loopback"}
        assert work["lan"] == pytest.approx(1.5, abs=0.05)
        assert work["bandwidth_mbps=50,rtt_ms=20"] == pytest.approx(1.0, abs=0.05)
    for held_back in predictions(document):
        assert held_back.error == pytest.approx(0, abs=0.02)


def test_one_link_alone_leaves_the_plain_sum() -> None:
    point = LinkedPoint(network="lan", work_s=1.0, waits_s=0.5, carries_s=0.5, seconds=9.0)
    assert fit_factors([point, point]) == PLAIN
    assert PLAIN.seconds("lan", 1.0, 0.25, 0.5) == 1.75


def test_each_count_is_predicted_by_a_law_that_never_saw_it(results: Results) -> None:
    """The measurement at 30,000 is 50 ms off; its own prediction does not know, those of the others do."""

    def cost(backend: str, count: int, network: str) -> float:
        return latency(backend, count, network) + (0.05 if count == 30000 else 0.0)

    made = predictions(measured(results, cost, tuple(NETWORKS)))
    assert len(made) == 2 * len(COUNTS) * len(NETWORKS)
    for entry in made:
        exact = latency(entry.backend, entry.relu_count, entry.network)
        assert entry.outside == (entry.relu_count in (min(COUNTS), max(COUNTS)))
        if entry.relu_count == 30000:
            assert entry.predicted_s == pytest.approx(exact)
            assert entry.measured_s == pytest.approx(exact + 0.05)
            assert entry.error == pytest.approx(exact / (exact + 0.05) - 1)
        else:
            assert entry.predicted_s != pytest.approx(exact, rel=1e-6)


def in_steps(count: int) -> SentBytes:
    """80 bytes a ReLU, and four times as many of those above 50,000: no line through all counts."""
    return SentBytes(client=30_000 + 80 * count + 240 * max(0, count - 50_000), server=0, dealer=0)


def latency_in_steps(backend: str, count: int, network: str) -> float:
    rtt_s, bytes_per_s = NETWORKS[network]
    return 0.03 + 2e-7 * count + ROUNDS * rtt_s + in_steps(count).client / bytes_per_s


def test_bytes_that_grow_in_steps_are_predicted_between_neighbours(results: Results) -> None:
    """They are straight between 6,000 and 50,000."""
    made = predictions(measured(results, latency_in_steps, tuple(NETWORKS), in_steps))
    inside = [entry for entry in made if entry.relu_count in (15000, 30000)]
    assert len(inside) == 2 * 2 * len(NETWORKS)
    for entry in inside:
        assert entry.error == pytest.approx(0, abs=1e-3)


def test_bytes_of_the_public_graph_are_known_of_a_count_beyond_all(results: Results) -> None:
    """Of 100,000 the line through the others has too few."""
    made = predictions(measured(results, latency_in_steps, tuple(NETWORKS), in_steps))
    slowest = list(NETWORKS)[-1]
    errors = {entry.backend: entry.error for entry in made if (entry.relu_count, entry.network) == (100_000, slowest)}
    assert errors["preset"] == pytest.approx(0, abs=1e-3)
    assert errors["other"] < -0.4


def with_material(document: Results, material: Callable[[int], int]) -> Results:
    """The offline layers of the document's rows: one that keeps all ReLUs, and one of a convolution."""
    layers = tuple(
        LayerRow(
            backend=row.backend,
            subject=row.subject,
            network=row.network,
            phase="offline",
            sweep=0,
            layer=layer,
            op=layer,
            relu_count=count,
            seconds=(0.1,),
            sent_bytes=SentBytes(client=1, server=2, dealer=sent_bytes - 3),
            messages=1,
            rounds=1,
        )
        for row in document.rows
        for layer, count, sent_bytes in (
            ("relu", int(row.subject), material(int(row.subject))),
            ("conv", 0, 4_000_000),
        )
    )
    return document.model_copy(update={"layers": layers})


def shrinking(count: int) -> int:
    """Bytes of the material of so many ReLUs: 300 each, but 200 of those above 50,000."""
    return 300 * count - 100 * max(0, count - 50_000)


def test_online_a_relu_counts_by_its_material(results: Results) -> None:
    """0.8 ns a byte of material: no line over the counts, yet a count beyond all others is predicted."""

    def cost(backend: str, count: int, network: str) -> float:
        return 0.03 + 8e-10 * shrinking(count)

    bare = measured(results, cost, ("loopback",))
    document = with_material(bare, shrinking)
    (entry, _) = cost_laws(document)
    mean = sum(map(shrinking, COUNTS)) / sum(COUNTS)
    assert (entry.law.fixed_s, entry.law.relu_s) == pytest.approx((0.03, 8e-10 * mean))
    for residual in entry.residuals:
        count = residual.point.relu_count
        assert residual.point.relu_work == pytest.approx(shrinking(count) / mean)
        assert residual.residual_s == pytest.approx(0, abs=1e-12)
    (last,) = (p for p in predictions(document) if (p.backend, p.relu_count) == ("preset", 100_000))
    assert last.error == pytest.approx(0, abs=1e-9)
    (last,) = (p for p in predictions(bare) if (p.backend, p.relu_count) == ("preset", 100_000))
    assert last.error > 0.05


def test_offline_each_relu_counts_as_one(results: Results) -> None:
    document = with_material(measured(results, latency, ("loopback",)), shrinking)
    rows = tuple(row.model_copy(update={"phase": "offline"}) for row in document.rows)
    for entry in cost_laws(document.model_copy(update={"rows": rows})):
        assert [residual.point.relu_work for residual in entry.residuals] == list(COUNTS)
        assert entry.law.relu_s == pytest.approx(2e-7)


def whole_layers(count: int) -> SentBytes:
    """As of a library that compares a whole layer whatever its mask keeps: the same but for the digits of a number."""
    return SentBytes(client=59_000_000 + count % 7, server=0, dealer=0)


@pytest.mark.parametrize("network", ["loopback", "lan"])
def test_relus_that_cost_no_byte_make_no_slope(results: Results, network: str) -> None:
    """1 ms more at 100,000 is scatter then, and none of it is the ReLUs'."""

    def cost(backend: str, count: int, network: str) -> float:
        rtt_s, bytes_per_s = NETWORKS[network]
        link_s = ROUNDS * rtt_s + whole_layers(count).client / bytes_per_s
        return link_s + 0.03 + (1e-3 if count == 100_000 else 0.0)

    document = measured(results, cost, (network,), whole_layers)
    (entry, _) = cost_laws(document)
    assert entry.law.fixed_s == pytest.approx(0.0302)
    assert entry.law.relu_s == 0
    bare_s = cost("preset", 6000, network)
    made = {p.relu_count: p.predicted_s for p in predictions(document) if p.backend == "preset"}
    assert made == pytest.approx(dict.fromkeys(COUNTS, bare_s + 0.00025) | {100_000: bare_s}, rel=1e-6)


def test_equal_material_makes_no_slope_whatever_else_is_sent(results: Results) -> None:
    document = with_material(measured(results, latency, ("loopback",)), lambda count: 59_000_000)
    (entry, other) = cost_laws(document)
    assert entry.law.relu_s == 0
    assert entry.law.fixed_s == pytest.approx(sum(latency("", count, "loopback") for count in COUNTS) / len(COUNTS))
    assert other.law.relu_s == pytest.approx(2e-7)


@pytest.mark.parametrize("count", COUNTS)
def test_one_network_that_lost_whole_layers_is_no_obstacle(results: Results, count: int) -> None:
    """It alone has other bytes, so that the law that never saw it has one number for all others."""

    def carried(at: int) -> SentBytes:
        return SentBytes(client=40_000_000 if at == count else 59_000_000, server=0, dealer=0)

    document = measured(results, latency, tuple(NETWORKS), carried)
    document = with_material(document, lambda at: carried(at).client + 1)
    assert len(predictions(document)) == 2 * len(COUNTS) * len(NETWORKS)
    assert len(cost_laws(document)) == 2


def test_a_network_without_relus_is_a_point(results: Results) -> None:
    document = with_material(measured(results, latency, ("loopback",)), shrinking)
    subjects = tuple(
        subject.model_copy(update={"relu_count": 0} if subject.name == "6000" else {}) for subject in document.subjects
    )
    layers = tuple(
        layer.model_copy(update={"relu_count": 0} if layer.subject == "6000" else {}) for layer in document.layers
    )
    document = document.model_copy(update={"subjects": subjects, "layers": layers})
    for entry in cost_laws(document):
        assert entry.residuals[0].point.relu_work == 0
    assert len(predictions(document)) == 2 * len(COUNTS)


def kept_of(count: int) -> tuple[int, ...]:
    """Kept ReLUs of two layers of 50,000 elements: the second is filled first, and 100,000 are all."""
    return max(0, count - 50_000), min(count, 50_000)


def moved(count: int) -> int:
    """Elements taken out and put back: none of 50,000 or 100,000, where each layer keeps all or nothing."""
    return sum(kept + 50_000 for kept in kept_of(count) if 0 < kept < 50_000)


@pytest.mark.parametrize(("backend", "a_move"), [("spu-semi2k", 1.3), ("spu-cheetah", 0.03), ("crypten", 0.0)])
def test_online_elements_that_spu_moves_count_as_parts_of_a_relu(results: Results, backend: str, a_move: float) -> None:
    """0.2 us a ReLU, and a part of it an element moved: known of a held-back count, whatever the others move."""

    def cost(_backend: str, count: int, network: str) -> float:
        return latency("other", count, network) + 2e-7 * a_move * moved(count)

    document = measured(results, cost, ("loopback",))
    layers = tuple(
        ReluLayer(subject=str(count), layer=str(index), elements=50_000, relu_count=kept)
        for count in COUNTS
        for index, kept in enumerate(kept_of(count))
    )
    rows = tuple(row.model_copy(update={"backend": backend}) for row in document.rows if row.backend == "other")
    document = document.model_copy(update={"rows": rows, "relu_layers": layers})
    (entry,) = cost_laws(document)
    assert (entry.law.fixed_s, entry.law.relu_s) == pytest.approx((0.03, 2e-7))
    for residual in entry.residuals:
        count = residual.point.relu_count
        assert residual.point.relu_work == pytest.approx(count + a_move * moved(count))
    for held_back in predictions(document):
        assert held_back.error == pytest.approx(0, abs=1e-9)
    rows = tuple(row.model_copy(update={"phase": "offline"}) for row in rows)
    for entry in cost_laws(document.model_copy(update={"rows": rows})):
        assert [residual.point.relu_work for residual in entry.residuals] == list(COUNTS)


def test_layers_of_some_networks_alone_are_not_taken(results: Results) -> None:
    document = with_material(measured(results, latency, ("loopback",)), shrinking)
    layers = tuple(layer for layer in document.layers if layer.subject != "30000")
    document = document.model_copy(update={"layers": layers})
    for entry in cost_laws(document):
        assert [residual.point.relu_work for residual in entry.residuals] == list(COUNTS)


def test_named_counts_are_held_back_together(results: Results) -> None:
    made = predictions(measured(results, latency, tuple(NETWORKS)), hold_back=(15000, 50000))
    assert {(entry.relu_count, entry.network) for entry in made} == {(n, w) for n in (15000, 50000) for w in NETWORKS}
    for entry in made:
        assert entry.error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("hold_back", "message"),
    [
        ((7000,), r"--hold-back must name measured ReLU counts \(6,000, .*\), got 7,000"),
        (COUNTS[1:], r"a law needs two ReLU counts to be fitted on, --hold-back leaves fewer of 6,000, "),
    ],
)
def test_a_hold_back_that_cannot_be_is_refused(results: Results, hold_back: tuple[int, ...], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        predictions(measured(results, latency, ("loopback",)), hold_back=hold_back)


def test_modelled_rows_and_unknown_links_have_no_part(results: Results) -> None:
    document = measured(results, latency, ("loopback",))
    strangers = [
        row.model_copy(update={"network": network, "kind": kind, "seconds": (99.0,)})
        for row in document.rows
        for network, kind in (("wan", "modelled"), ("moon", "measured"))
    ]
    more = document.model_copy(update={"rows": (*document.rows, *strangers)})
    assert cost_laws(more) == cost_laws(document)
    assert predictions(more) == predictions(document)


def test_two_counts_or_no_traffic_have_no_law(results: Results, sweep_results: Results) -> None:
    assert cost_laws(results) == ()
    assert predictions(results) == ()
    assert {law.backend for law in cost_laws(sweep_results)} == {"preset", "crypten"}


def test_links_by_hand() -> None:
    assert link_of("wan") == Link(rtt_s=0.04, bytes_per_s=12.5e6)
    assert link_of("moon") is None
    loopback = link_of("loopback")
    assert loopback is not None
    assert link_seconds(loopback, 1000, 10**9) == 0
    assert link_seconds(Link(rtt_s=0.04, bytes_per_s=12.5e6), 17, 5_000_000) == pytest.approx(1.08)
    both = SentBytes(client=30, server=20, dealer=0)
    assert serial_bytes("preset", "online", both) == 50
    assert serial_bytes("crypten", "online", both) == 30
    assert serial_bytes("preset", "offline", SentBytes(client=30, server=1, dealer=90)) == 90


def test_a_link_that_was_measured_is_taken_as_measured(results: Results) -> None:
    facts: dict[str, Any] = {"network": "wan", "shaping": "relay", "rtt_ms": 40.0, "bandwidth_mbps": 100.0}
    whole = LinkRecord(**facts, measured_rtt_ms=(41.0, 43.0, 42.0), measured_bandwidth_mbps=(96.0, 95.0, 99.0))
    assert link_in(results.model_copy(update={"links": (whole,)}), "wan") == Link(rtt_s=0.042, bytes_per_s=12e6)
    for document in (results, results.model_copy(update={"links": (LinkRecord(**facts),)})):
        assert link_in(document, "wan") == link_of("wan")
