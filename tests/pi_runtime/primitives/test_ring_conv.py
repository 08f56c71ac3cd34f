"""Convolutions mod 2^64: equal to torch's int64 convolution and to Python integers, on random and on extreme values."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pi_runtime.errors import LocalProtocolError
from pi_runtime.primitives.ring_conv import conv2d_ring, linear_ring, pack_linear, pack_weights

SYMMETRIC = (1, 1, 1, 1)
# Largest weight of each way to sum: groups of eight, four, two terms, two weight digits, three, four.
LIMITS = [2**13 - 1, 2**14 - 1, 2**15, 2**16, 2**40, 2**63 - 1]


def torch_conv(x: NDArray[Any], weights: NDArray[Any], stride: Any, pads: Any, groups: int) -> NDArray[Any]:
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    output = torch.nn.functional.conv2d(
        torch.from_numpy(padded), torch.from_numpy(weights), stride=stride, groups=groups
    )
    result: NDArray[Any] = output.numpy()
    return result


def ring_elements(rng: np.random.Generator, *shape: int) -> NDArray[np.int64]:
    return rng.integers(-(2**63), 2**63 - 1, shape, endpoint=True)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_geometry_equals_torch_int64(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = draw(st.tuples(*(st.integers(0, 2) for _ in range(4))))
    height, width = (draw(st.integers(size, size + 8)) for size in kernel)
    batch, inputs, outputs = (draw(st.integers(1, high)) for high in (3, 9, 9))
    limit = draw(st.sampled_from(LIMITS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = ring_elements(rng, batch, groups * inputs, height, width)
    weights = rng.integers(-limit, limit, (groups * outputs, inputs, *kernel), endpoint=True)
    output = conv2d_ring(x, pack_weights(weights, stride, pads, groups), threads=draw(st.integers(1, 3)))
    np.testing.assert_array_equal(output, torch_conv(x, weights, stride, pads, groups))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_winograd_of_any_size_equals_torch_int64(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 2))
    pads = draw(st.tuples(*(st.integers(0, 2) for _ in range(4))))
    batch, inputs, outputs, height, width = (
        draw(st.integers(low, high)) for low, high in ((1, 3), (8, 17), (1, 9), (3, 11), (3, 11))
    )
    limit = draw(st.sampled_from([200, 2**12, 2**31, 2**61 - 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = ring_elements(rng, batch, groups * inputs, height, width)
    weights = 4 * rng.integers(-limit, limit, (groups * outputs, inputs, 3, 3), endpoint=True)
    packed = pack_weights(weights, pads=pads, groups=groups)
    output = conv2d_ring(x, packed, threads=draw(st.integers(1, 3)))
    np.testing.assert_array_equal(output, torch_conv(x, weights, (1, 1), pads, groups))


@pytest.mark.parametrize(
    "weight",
    [-(2**63), 2**63 - 1, -(2**15), 2**15 - 1, 1 - 2**14, 1 - 2**13, -(2**31), -32768 * 0x100010001, 4 - 2**63],
)
@pytest.mark.parametrize("element", [-(2**63), 2**63 - 1, -0x7FFF7FFF7FFF8000, 0x7FFF7FFF7FFF7FFF, -1])
def test_extremes_equal_python_integers(weight: int, element: int) -> None:
    """Constant inputs; -0x7FFF7FFF7FFF8000 has all digits at -2^15, where a pair of products leaves 32 bits."""
    x = np.full((1, 40, 3, 3), element, np.int64)
    expected = (weight * element * 40 * 9 + 2**63) % 2**64 - 2**63
    output = conv2d_ring(x, pack_weights(np.full((5, 40, 3, 3), weight, np.int64)))
    assert output.reshape(-1).tolist() == [expected] * 5


@pytest.mark.parametrize("total", [2**16 - 1, 2**16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("element", [-0x8000800080008000, 0x7FFF7FFF7FFF7FFF, -0x8000, 0x7FFF])
def test_sums_at_the_edge_of_32_bits_equal_python_integers(total: int, sign: int, element: int) -> None:
    # Runs of the plain sums: a row whose absolute values add up to `total` in its first step, and again in later ones.
    step = [8192, 8191, 8192, 8192, 8192, 8192, 8192, total - 57343]
    row = np.array([(step + [0] * 8) * 5 + step], np.int64) * sign
    packed = pack_linear(row)
    assert packed.narrow_steps == (2 if total < 2**16 else 0)
    x = np.full((1, row.size), np.array(element & (2**64 - 1), np.uint64).view(np.int64))
    expected = int(row.sum()) * element & (2**64 - 1)
    assert int(linear_ring(x, packed)[0, 0]) & (2**64 - 1) == expected


def test_long_sums_at_extremes_equal_python_integers() -> None:
    """The most terms a sum may have, each the largest: the accumulators' bound."""
    terms = 131_064
    for weight in (-(2**15), 2**13 - 1):
        packed = pack_linear(np.full((1, terms), weight, np.int64))
        for element in (-0x7FFF7FFF7FFF8000, 0x7FFF7FFF7FFF7FFF):
            expected = (weight * element * terms + 2**63) % 2**64 - 2**63
            assert linear_ring(np.full((1, terms), element, np.int64), packed).tolist() == [[expected]]


@pytest.mark.parametrize("limit", [900, 2000, 3600])
@pytest.mark.parametrize(("channels", "size"), [(64, 16), (256, 4)])
def test_layers_of_a_network_equal_torch_int64_on_one_and_two_threads(limit: int, channels: int, size: int) -> None:
    rng = np.random.default_rng(limit)
    x = ring_elements(rng, 1, channels, size, size)
    weights = 4 * rng.integers(-limit, limit, (channels, channels, 3, 3))
    expected = torch_conv(x, weights, (1, 1), SYMMETRIC, 1)
    packed = pack_weights(weights, pads=SYMMETRIC)
    assert packed.winograd
    for threads in (1, 2):
        np.testing.assert_array_equal(conv2d_ring(x, packed, threads), expected)
    direct = pack_weights(weights + 1, pads=SYMMETRIC)
    assert not direct.winograd
    np.testing.assert_array_equal(conv2d_ring(x, direct, 2), torch_conv(x, weights + 1, (1, 1), SYMMETRIC, 1))


def test_linear_equals_python_integers() -> None:
    rng = np.random.default_rng(0)
    x, weights = ring_elements(rng, 3, 21), rng.integers(-(2**20), 2**20, (10, 21))
    expected = [
        [(sum(int(a) * int(b) for a, b in zip(row, w, strict=True)) + 2**63) % 2**64 - 2**63 for w in weights]
        for row in x
    ]
    assert linear_ring(x.view(np.uint64), pack_linear(weights)).tolist() == expected


def test_winograd_is_chosen_only_where_it_is_exact_and_cheaper() -> None:
    fours = np.full((4, 8, 3, 3), 4, np.int64)
    assert pack_weights(fours).winograd
    assert not pack_weights(fours, stride=(2, 2)).winograd
    assert not pack_weights(fours + 2).winograd
    assert not pack_weights(fours[..., :2]).winograd
    assert not pack_weights(fours[:, :7]).winograd
    assert not pack_weights(fours * 8000).winograd  # one digit directly, two after the transform


def test_empty_batches_give_empty_outputs() -> None:
    packed = pack_weights(np.ones((5, 3, 3, 3), np.int64), pads=SYMMETRIC)
    assert conv2d_ring(np.zeros((0, 3, 8, 8), np.int64), packed).shape == (0, 5, 8, 8)


def test_packed_weights_are_not_shown() -> None:
    packed = pack_weights(np.full((4, 2, 1, 1), 12345), stride=(2, 2))
    assert repr(packed) == "PackedConv(shape=(4, 2, 1, 1), stride=(2, 2), pads=(0, 0, 0, 0), groups=1)"


@pytest.mark.parametrize(
    ("weights", "groups", "message"),
    [
        (np.zeros((4, 2, 1, 1)), 1, "weights must be integers"),
        (np.zeros((4, 2), np.int64), 1, "weights must be integers"),
        (np.zeros((4, 2, 1, 1), np.int64), 3, "groups must divide the output channels, got 3 for 4"),
        (np.zeros((1, 131_080, 1, 1), np.int64), 1, "a sum may have 131070 terms, got 131080"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: NDArray[Any], groups: int, message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        pack_weights(weights, groups=groups)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 4, 8, 8), np.int64), r"x must be \[B, 3, H, W\]"),
        (np.zeros((3, 8, 8), np.int64), r"x must be \[B, 3, H, W\]"),
        (np.zeros((1, 3, 8, 8)), "ring elements must be int64 or uint64"),
        (np.zeros((1, 3, 2, 8), np.int64), "x must be at least as large as the kernel"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: NDArray[Any], message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        conv2d_ring(x, pack_weights(np.ones((5, 3, 3, 3), np.int64)))
