"""The ReLU gate: exhaustive on tiny rings, boundaries and random values above, uniform halves, one-time use."""

import copy
import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.primitives import kernels_gate, ring
from pi_runtime.primitives.prg import Stream
from pi_runtime.primitives.relu_gate import (
    BLOCK_BYTES,
    CLIENT,
    SERVER,
    GateLayout,
    GateMaterial,
    gate_deal,
    gate_expand,
    gate_finish,
    gate_layout,
    gate_load,
    gate_open,
    join_gates,
)

CLIENT_KEY = b"client half key."
TINY = [(4, c) for c in [(2, 1), (1, 2), (1, 1, 1)]]
TINY += [(5, c) for c in [(2, 2), (3, 1), (2, 1, 1), (1, 1, 2)]]
TINY += [(6, c) for c in [(3, 2), (1, 4), (2, 2, 1), (1, 3, 1)]]
TINY += [(7, c) for c in [(3, 3), (2, 2, 2), (4, 1, 1)]]
TINY += [(8, c) for c in [(4, 3), (2, 5), (3, 2, 2), (1, 2, 4)]]


def dealt(layout: GateLayout, alpha: Any, masks: Any) -> tuple[GateMaterial, GateMaterial]:
    """Both parties' material for chosen alpha and mask bits, which `gate_deal` draws itself."""
    alpha = np.asarray(alpha, np.uint64)
    client = gate_expand(layout, len(alpha), Stream(CLIENT_KEY))
    stream = Stream(CLIENT_KEY)
    words = stream.words(len(alpha), layout.word_count)
    tables = stream.octets(len(alpha) * layout.table_bytes).reshape(len(alpha), layout.table_bytes)
    masks, chunks = np.asarray(masks, np.uint8), np.array(layout.chunks)
    kernels_gate.subtract_from_true_words(alpha, masks, chunks, words)
    kernels_gate.xor_true_tables(alpha, masks, chunks, tables)
    return GateMaterial(layout, SERVER, words, tables, alpha), client


def deal(layout: GateLayout, client_share: NDArray[Any], key: bytes = CLIENT_KEY) -> bytes:
    """The server's material as it is sent and stored, of a dealer whose own stream is fixed."""
    return b"".join(gate_deal(layout, client_share, Stream(key), Stream(b"dealer's own key")))


def run(server: GateMaterial, client: GateMaterial, xhat: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The opened bits and the sum of both output shares, signed."""
    opened = gate_open(server, xhat) ^ gate_open(client, xhat)
    total = gate_finish(server, xhat, opened) + gate_finish(client, xhat, opened)
    return opened, total.view(np.int64)


def relu_of_low_bits(x: NDArray[Any], bits: int) -> NDArray[np.int64]:
    half = 1 << (bits - 1)
    return np.maximum((x.astype(np.int64) + half) % (2 * half) - half, 0)


@pytest.mark.parametrize(("ring_bits", "chunks"), TINY)
def test_exhaustive_inputs_and_alphas_equal_plain_relu(ring_bits: int, chunks: tuple[int, ...]) -> None:
    layout, size = GateLayout(ring_bits, chunks), 1 << ring_bits
    x, alpha = (grid.reshape(-1).astype(np.uint64) for grid in np.meshgrid(np.arange(size), np.arange(size)))
    masks = np.random.default_rng(0).integers(0, 1 << layout.opened_bits, x.size, dtype=np.uint8)
    _, output = run(*dealt(layout, alpha, masks), (x + alpha) % np.uint64(size))
    np.testing.assert_array_equal(output, relu_of_low_bits(x, ring_bits))


@pytest.mark.parametrize(("ring_bits", "chunks"), [(4, (2, 1)), (4, (1, 1, 1)), (5, (2, 1, 1))])
def test_exhaustive_masks_keep_the_output_and_make_opened_bits_uniform(ring_bits: int, chunks: tuple[int, ...]) -> None:
    layout, size = GateLayout(ring_bits, chunks), 1 << ring_bits
    cases = 1 << layout.opened_bits
    grids = np.meshgrid(np.arange(size), np.arange(size), np.arange(cases), indexing="ij")
    xhat, alpha, masks = (grid.reshape(-1).astype(np.uint64) for grid in grids)
    opened, output = run(*dealt(layout, alpha, masks), xhat)
    np.testing.assert_array_equal(output, relu_of_low_bits(xhat - alpha, ring_bits))
    # For each xhat and alpha the opened value takes every possible value exactly once over the masks.
    per_pair = np.sort(opened.reshape(size * size, cases), axis=1)
    np.testing.assert_array_equal(per_pair, np.broadcast_to(np.arange(cases), per_pair.shape))


@pytest.mark.parametrize("layout", [GateLayout(4, (2, 1)), GateLayout(5, (2, 1, 1))])
def test_server_half_is_the_client_half_reflected_at_a_truth_that_ignores_it(layout: GateLayout) -> None:
    """Their sum is a function of alpha and masks alone, so a uniform client half makes a uniform server half."""
    count = 500
    rng = np.random.default_rng(1)
    alpha = rng.integers(0, 1 << layout.ring_bits, count, dtype=np.uint64)
    masks = rng.integers(0, 1 << layout.opened_bits, count, dtype=np.uint8)
    truths = []
    for _ in range(2):
        words = rng.integers(0, 2**64, (count, layout.word_count), dtype=np.uint64)
        tables = rng.integers(0, 256, (count, layout.table_bytes), dtype=np.uint8)
        server_words, server_tables = words.copy(), tables.copy()
        kernels_gate.subtract_from_true_words(alpha, masks, np.array(layout.chunks), server_words)
        kernels_gate.xor_true_tables(alpha, masks, np.array(layout.chunks), server_tables)
        truths.append((server_words + words, server_tables ^ tables))
    np.testing.assert_array_equal(truths[0][0], truths[1][0])
    np.testing.assert_array_equal(truths[0][1], truths[1][1])
    # Reference for the truth, element by element in Python.
    for i in range(count):
        bits, shift = [], layout.ring_bits - 1
        for width in layout.chunks:
            shift -= width
            chunk = (int(alpha[i]) >> shift) % 2**width
            bits += [int(chunk >= t) for t in range(2**width + 1)]
        bits += [int(masks[i]) >> j & 1 for j in range(layout.opened_bits)]
        assert truths[0][1][i].tobytes() == sum(b << j for j, b in enumerate(bits)).to_bytes(
            layout.table_bytes, "little"
        )


@pytest.mark.parametrize("ring_bits", [18, 24])
def test_bytes_of_either_half_and_opened_bits_are_uniform_by_chi_square(ring_bits: int) -> None:
    layout, count = gate_layout(ring_bits), 4000
    share = np.zeros(count, np.uint64)
    data = deal(layout, share)
    server, client = gate_load(layout, count, data), gate_expand(layout, count, Stream(CLIENT_KEY))
    stored = np.frombuffer(data, np.uint8)
    xhat = server.mask_input(share)
    own, other = gate_open(server, xhat), gate_open(client, xhat)
    samples = [(stored, 8), (own, layout.opened_bits), (other, layout.opened_bits), (own ^ other, layout.opened_bits)]
    for sample, bits in samples:
        expected = sample.size / (1 << bits)
        chi_square = float(((np.bincount(sample, minlength=1 << bits) - expected) ** 2 / expected).sum())
        freedom = (1 << bits) - 1
        assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5  # five deviations; the streams are fixed


@pytest.mark.parametrize("ring_bits", [4, 8, 16, 18, 20, 21, 24, 25, 32])
def test_boundaries_and_random_values_equal_plain_relu(ring_bits: int) -> None:
    layout, half = gate_layout(ring_bits), 1 << (ring_bits - 1)
    edges = [0, 1, 2, half - 1, half, half + 1, 2 * half - 1, 2 * half - 2]
    for width in layout.chunks:
        edges += [1 << width, (1 << width) - 1, half - (1 << width)]
    x, alpha = (grid.reshape(-1) for grid in np.meshgrid(edges, edges))
    rng = np.random.default_rng(ring_bits)
    x = np.concatenate([x, rng.integers(0, 2 * half, 20_000)]).astype(np.uint64)
    alpha = np.concatenate([alpha, rng.integers(0, 2 * half, 20_000)]).astype(np.uint64)
    masks = rng.integers(0, 1 << layout.opened_bits, x.size, dtype=np.uint8)
    _, output = run(*dealt(layout, alpha, masks), ring.low_bits(x + alpha, ring_bits))
    np.testing.assert_array_equal(output, relu_of_low_bits(x, ring_bits))


@pytest.mark.parametrize("ring_bits", [12, 20, 24])
def test_dealt_material_survives_its_bytes_and_gives_plain_relu_of_shares(ring_bits: int) -> None:
    layout, count = gate_layout(ring_bits), 3001
    rng = np.random.default_rng(0)
    x = rng.integers(-(1 << (ring_bits - 1)), 1 << (ring_bits - 1), count)
    client_share = rng.integers(0, 2**64, count, dtype=np.uint64)
    data = deal(layout, client_share)
    assert len(data) == layout.material_bytes(count)
    for stored in (data, memoryview(b"?" + data)[1:]):  # aligned, and not
        server, client = gate_load(layout, count, stored), gate_expand(layout, count, Stream(CLIENT_KEY))
        xhat = server.mask_input(x.view(np.uint64) - client_share)
        assert int(xhat.max()) < 1 << ring_bits
        np.testing.assert_array_equal(run(server, client, xhat)[1], np.maximum(x, 0))


def test_a_gate_heals_a_wrapped_share() -> None:
    """PROTOCOL section 7: after shifts of s bits in all, a wrapped share errs by a multiple of 2**(64 - s)."""
    layout, shifts, count = gate_layout(24), 40, 1000
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**23), 2**23, count)
    client_share = rng.integers(0, 2**64, count, dtype=np.uint64)
    wrap = rng.integers(1, 2**shifts, count, dtype=np.uint64) << np.uint64(64 - shifts)
    server = gate_load(layout, count, deal(layout, client_share))
    wrapped = x.view(np.uint64) - client_share + wrap
    assert not np.any((wrapped + client_share).view(np.int64) == x)
    output = run(server, gate_expand(layout, count, Stream(CLIENT_KEY)), server.mask_input(wrapped))[1]
    np.testing.assert_array_equal(output, np.maximum(x, 0))


def test_sizes_equal_the_published_ones() -> None:
    sizes = {n: gate_layout(n).element_bytes for n in (16, 18, 20, 24)}
    assert sizes == {16: 161, 18: 209, 20: 305, 24: 337}
    assert GateLayout(20, (7, 6, 6)).element_bytes == 289
    assert gate_layout(24).chunks == (8, 8, 7)
    assert gate_layout(18).chunks == (9, 8)
    assert gate_layout(24).to_client_bytes(1000) + gate_layout(24).to_server_bytes(1000) == 3000 + 8000 + 2 * 625
    for ring_bits in range(4, 33):
        assert sum(gate_layout(ring_bits).chunks) == ring_bits - 1


def test_known_answer_of_the_stored_format() -> None:
    data = deal(gate_layout(4), np.arange(2, dtype=np.uint64), bytes(16))
    digest = "69c410e9a9b5f17e45bbef69a01c3a0324f8e6fe2ff9994d77e01927c1627028"
    assert hashlib.sha256(data).hexdigest() == digest


@pytest.mark.parametrize("ring_bits", [18, 24])
def test_many_gates_are_dealt_in_small_pieces_that_equal_the_whole(ring_bits: int) -> None:
    """Oracle: the other half made at once, by the kernels over all elements."""
    layout = gate_layout(ring_bits)
    count = 5 * BLOCK_BYTES // (8 * layout.word_count) + 3
    share = np.arange(count, dtype=np.uint64)
    pieces = list(gate_deal(layout, share, Stream(CLIENT_KEY), Stream(b"dealer's own key")))
    assert max(piece.nbytes for piece in pieces[:-1]) <= BLOCK_BYTES
    assert len(pieces) > 7
    own = Stream(b"dealer's own key")
    alpha = ring.low_bits(own.words(count), ring_bits)
    whole, _ = dealt(layout, alpha, own.octets(count) & np.uint8((1 << layout.opened_bits) - 1))
    tables, words = whole.take_tables(), whole.take_words()
    q = ring.pack(share + alpha, ring_bits)
    assert b"".join(pieces) == words.tobytes() + tables.tobytes() + q.tobytes()


def test_material_is_used_once() -> None:
    layout, xhat = gate_layout(8), np.zeros(3, np.uint64)
    client = gate_expand(layout, 3, Stream(CLIENT_KEY))
    with pytest.raises(LocalProtocolError, match="after its opening"):
        gate_finish(client, xhat, np.zeros(3, np.uint8))
    gate_open(client, xhat)
    with pytest.raises(LocalProtocolError, match="opened before"):
        gate_open(client, xhat)
    gate_finish(client, xhat, np.zeros(3, np.uint8))
    with pytest.raises(LocalProtocolError, match="finished once"):
        gate_finish(client, xhat, np.zeros(3, np.uint8))


def test_client_material_masks_nothing() -> None:
    client = gate_expand(gate_layout(8), 3, Stream(CLIENT_KEY))
    assert client.party == CLIENT
    with pytest.raises(LocalProtocolError, match="xhat comes from the server"):
        client.mask_input(np.zeros(3, np.uint64))


def test_material_hides_and_does_not_copy() -> None:
    client = gate_expand(gate_layout(8), 3, Stream(CLIENT_KEY))
    assert repr(client) == "GateMaterial(GateLayout(ring_bits=8, chunks=(4, 3)), party=1, count=3, <secret>)"
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError, match="may be used once"):
            duplicate(client)


def test_no_gates_are_no_work() -> None:
    layout = gate_layout(24)
    server = gate_load(layout, 0, deal(layout, np.zeros(0, np.uint64)))
    assert run(server, gate_expand(layout, 0, Stream(CLIENT_KEY)), np.zeros(0, np.uint64))[1].shape == (0,)


@pytest.mark.parametrize("extra", [-1, 1])
def test_stored_material_of_another_length_is_refused(extra: int) -> None:
    layout = gate_layout(8)
    with pytest.raises(RemoteProtocolError, match=f"must be {layout.material_bytes(2)} bytes"):
        gate_load(layout, 2, bytes(layout.material_bytes(2) + extra))


def test_opened_bits_out_of_range_are_refused() -> None:
    layout, xhat = gate_layout(8), np.zeros(2, np.uint64)
    client = gate_expand(layout, 2, Stream(CLIENT_KEY))
    gate_open(client, xhat)
    with pytest.raises(RemoteProtocolError, match="opened bits must fit 3 bits"):
        gate_finish(client, xhat, np.array([0, 8], np.uint8))


def test_arguments_of_another_length_are_refused() -> None:
    client = gate_expand(gate_layout(8), 2, Stream(CLIENT_KEY))
    with pytest.raises(LocalProtocolError, match=r"xhat must hold one value for each of 2 gates, got \(3,\)"):
        gate_open(client, np.zeros(3, np.uint64))


@pytest.mark.parametrize("ring_bits", [3, 33])
def test_a_ring_without_a_layout_is_refused(ring_bits: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"ring_bits must be 4 to 32, got {ring_bits}"):
        gate_layout(ring_bits)


@pytest.mark.parametrize("chunks", [(7,), (4, 4), (3, 0, 4), (2, 2, 2, 1)])
def test_chunks_that_do_not_fit_are_refused(chunks: tuple[int, ...]) -> None:
    with pytest.raises(LocalProtocolError, match="two or three positive numbers that sum to ring_bits - 1 = 7"):
        GateLayout(8, chunks)


def test_joined_images_compute_relu_of_each_image() -> None:
    layout, batch, count = gate_layout(18), 3, 5
    rng = np.random.default_rng(5)
    values, client_shares = rng.integers(-(2**16), 2**16, (2, batch, count))
    keys = [bytes([image]) * 16 for image in range(batch)]
    dealt_images = [
        gate_load(layout, count, deal(layout, share, key)) for share, key in zip(client_shares, keys, strict=True)
    ]
    server = join_gates(dealt_images)
    client = join_gates([gate_expand(layout, count, Stream(key)) for key in keys])
    xhat = server.mask_input((values - client_shares).reshape(-1))
    _, total = run(server, client, xhat)
    np.testing.assert_array_equal(total, np.maximum(values, 0).reshape(-1))
    with pytest.raises(LocalProtocolError, match="opened before"):
        dealt_images[0].take_tables()
