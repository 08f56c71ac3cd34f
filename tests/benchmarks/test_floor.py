"""The floor of a measurement, by hand from its rounds and bytes."""

from __future__ import annotations

import json

import pytest

from benchmarks.floor import floor_document, floors, layer_floors
from benchmarks.headline import headline
from benchmarks.layer_figures import layer_figures
from benchmarks.schema import LayerRow, Results, SentBytes
from benchmarks.views import backend_views
from tests.benchmarks.conftest import make_row, make_subject

SENT = SentBytes(client=3_000_000, server=2_000_000, dealer=0)
NOTHING = SentBytes(client=0, server=0, dealer=0)
WAN_LINK_S = 17 * 0.04
"""Of the rounds; the bytes of `preset` follow one another: 5 MB at 12.5 MB/s, those of another 3 MB."""


@pytest.fixture
def measured(results: Results) -> Results:
    """`preset` and another on loopback and WAN, and plaintext, of one network; one layer of `preset` on the WAN."""
    rows = [make_row("plaintext", "6000", "online", 0.01, NOTHING, 0)]
    for backend, loopback_s, wan_s in (("preset", 0.05, 1.3), ("crypten", 1.0, 2.0)):
        rows.append(make_row(backend, "6000", "online", loopback_s, SENT, 17))
        rows.append(make_row(backend, "6000", "online", wan_s, SENT, 17).model_copy(update={"network": "wan"}))
    layer = LayerRow(
        backend="preset",
        subject="6000",
        network="wan",
        phase="online",
        sweep=0,
        layer="relu",
        op="relu",
        relu_count=100,
        seconds=(0.06,),
        sent_bytes=SentBytes(client=75_000, server=50_000, dealer=0),
        messages=2,
        rounds=1,
    )
    changes = {"subjects": (make_subject("6000", 6000),), "rows": tuple(rows), "layers": (layer,), "relu_layers": ()}
    return results.model_copy(update=changes)


def test_the_floor_is_the_link_and_plaintext(measured: Results) -> None:
    found = {(floor.backend, floor.network): floor for floor in floors(measured)}
    assert found.keys() == {(b, n) for b in ("preset", "crypten") for n in ("loopback", "wan")}
    preset, crypten = found["preset", "wan"], found["crypten", "wan"]
    assert preset.floor_s == pytest.approx(WAN_LINK_S + 0.4 + 0.01)
    assert preset.ratio == pytest.approx(1.3 / 1.09)
    assert preset.loopback_ratio == pytest.approx(1.3 / (1.08 + 0.05))
    assert crypten.floor_s == pytest.approx(WAN_LINK_S + 0.24 + 0.01)
    bare = found["preset", "loopback"]
    assert (bare.link_s, bare.floor_s, bare.loopback_ratio) == (0, pytest.approx(0.01), None)
    assert bare.ratio == pytest.approx(5)


def test_rounds_that_may_be_one_way_make_a_floor_of_half_the_round_trips(measured: Results) -> None:
    spu = [row.model_copy(update={"backend": "spu-semi2k"}) for row in measured.rows if row.backend == "crypten"]
    found = floors(measured.model_copy(update={"rows": (*measured.rows, *spu)}))
    link_s = {floor.backend: floor.link_s for floor in found if floor.network == "wan"}
    assert link_s["spu-semi2k"] == pytest.approx(WAN_LINK_S / 2 + 0.24)
    assert link_s["crypten"] == pytest.approx(WAN_LINK_S + 0.24)


def test_without_plaintext_the_floor_is_the_links_alone(measured: Results) -> None:
    rows = tuple(row for row in measured.rows if row.backend != "plaintext")
    found = {(f.backend, f.network): f for f in floors(measured.model_copy(update={"rows": rows}))}
    assert found["preset", "wan"].floor_s == pytest.approx(WAN_LINK_S + 0.4)
    assert found["preset", "loopback"].ratio is None


def test_a_layers_floor(measured: Results) -> None:
    (layer,) = layer_floors(measured, "preset", "6000", network="wan")
    assert layer.floor_s == pytest.approx(0.04 + 0.01)
    assert layer.ratio == pytest.approx(1.2)
    assert layer_floors(measured, "preset", "6000", network="moon") == ()


def test_a_layers_floor_has_its_seconds_in_plaintext(measured: Results) -> None:
    """2 ms of plaintext on loopback beside 50 ms of the link; where plaintext tells nothing, the link alone."""
    (relu,) = measured.layers
    plain = {"backend": "plaintext", "network": "loopback", "sent_bytes": NOTHING, "messages": 0, "rounds": 0}
    layers = (
        relu,
        relu.model_copy(
            update={"layer": "conv", "op": "conv", "seconds": (0.004,), "sent_bytes": NOTHING, "rounds": 0}
        ),
        relu.model_copy(update={"layer": "input", "op": "input", "seconds": (0.0,)}),
        relu.model_copy(update={**plain, "seconds": (0.001, 0.002, 0.003)}),
        relu.model_copy(update={**plain, "layer": "conv", "op": "conv", "seconds": (0.001,)}),
    )
    both = measured.model_copy(update={"layers": layers})
    found = {entry.layer: entry for entry in layer_floors(both, "preset", "6000", network="wan")}
    assert (found["relu"].link_s, found["relu"].plaintext_s) == pytest.approx((0.05, 0.002))
    assert found["relu"].ratio == pytest.approx(0.06 / 0.052)
    assert (found["conv"].link_s, found["conv"].floor_s, found["conv"].ratio) == pytest.approx((0, 0.001, 4))
    assert found["input"].plaintext_s is None
    assert found["input"].ratio is None, "no clock told it apart"
    shown = {figure.network: figure for figure in layer_figures(both, "preset")}["wan"]
    assert shown.floors == {name: pytest.approx(entry.floor_s) for name, entry in found.items()}
    (own,) = layer_figures(both, "plaintext")
    assert own.floors == {}
    assert own.note
    (view,) = [view for view in backend_views(both) if view.name == "plaintext"]
    assert view.kinds == (), "a ReLU inside a convolution's kernel would pass for one that takes nothing"
    backends = headline(both)["backends"]
    assert isinstance(backends, dict)
    assert "online_relu_bytes" not in backends["plaintext"]["6000"]
    assert backends["preset"]["6000"]["online_bytes"] == 5_000_000


def test_the_document_is_json_and_tells_computed_from_measured(measured: Results) -> None:
    document = json.loads(json.dumps(floor_document(measured), allow_nan=False))
    (entry,) = [e for e in document if (e["backend"], e["network"]) == ("preset", "wan")]
    assert entry["measured_seconds"] == pytest.approx(1.3)
    assert entry["floor_seconds"] == pytest.approx(1.09)
    assert entry["measured_over_floor"] == pytest.approx(1.3 / 1.09)
