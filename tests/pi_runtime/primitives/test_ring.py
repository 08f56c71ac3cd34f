"""Z_2^64: packing against Python integers, signed reading and fixed point against exact arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.primitives import ring


def packed_by_python(values: list[int], bits: int) -> bytes:
    total = sum((value % 2**bits) << (i * bits) for i, value in enumerate(values))
    return total.to_bytes((len(values) * bits + 7) // 8, "little")


@settings(deadline=None)  # the first example compiles
@given(bits=st.integers(1, 32), values=st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_pack_equals_one_big_python_integer(bits: int, values: list[int]) -> None:
    packed = ring.pack(np.array(values, np.uint64), bits)
    assert packed.tobytes() == packed_by_python(values, bits)
    assert ring.unpack(packed.tobytes(), len(values), bits).tolist() == [value % 2**bits for value in values]


@pytest.mark.parametrize("bits", [3, 5, 8, 16, 18, 20, 24, 25, 32])
def test_unpack_inverts_pack_on_large_arrays(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, 100_003, dtype=np.uint64)
    packed = ring.pack(values, bits)
    assert packed.size == ring.packed_bytes(values.size, bits) == -(-values.size * bits // 8)
    np.testing.assert_array_equal(ring.unpack(packed, values.size, bits), values)


def test_pack_takes_bytes_and_signed_elements() -> None:
    assert ring.pack(np.array([1, 2, 31], np.uint8), 5).tobytes() == packed_by_python([1, 2, 31], 5)
    assert ring.pack(np.array([-1, -2], np.int64), 12).tobytes() == packed_by_python([-1, -2], 12)


@given(value=st.integers(-(2**63), 2**63 - 1), bits=st.integers(1, 64))
def test_signed_low_bits_equals_python_remainder(value: int, bits: int) -> None:
    half = 2 ** (bits - 1)
    expected = (value + half) % 2**bits - half
    assert int(ring.signed_low_bits(np.array([value], np.int64), bits)[0]) == expected
    assert int(ring.low_bits(np.array([value], np.int64), bits)[0]) == value % 2**bits


def test_encode_known_answers_and_round_trip() -> None:
    assert ring.encode(np.array([1.0, -1.0, 0.5, -0.25, 3 / 8192, 1 / 8192]), 12).tolist() == [
        4096,
        -4096,
        2048,
        -1024,
        2,
        0,
    ]
    values = np.random.default_rng(0).normal(size=1000)
    assert np.abs(ring.decode(ring.encode(values, 12), 12) - values).max() <= 2**-13


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**51, -(2.0**51)])
def test_encode_refuses_what_does_not_fit(value: float) -> None:
    with pytest.raises(LocalProtocolError, match=r"finite and below 2\*\*51"):
        ring.encode(np.array([0.0, value]), 12)


def test_views_share_memory_and_refuse_other_kinds() -> None:
    values = np.array([-1], np.int64)
    assert ring.as_unsigned(values)[0] == 2**64 - 1
    assert np.shares_memory(ring.as_signed(ring.as_unsigned(values)), values)
    with pytest.raises(LocalProtocolError, match="must be int64 or uint64, got float64"):
        ring.as_unsigned(np.zeros(1))


@pytest.mark.parametrize("size", [8, 10])
def test_unpack_refuses_a_wrong_length(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="3 elements of 24 bits must take 9 bytes"):
        ring.unpack(bytes(size), 3, 24)


def test_unpack_refuses_padding_that_is_not_zero() -> None:
    assert ring.unpack(b"\x1f", 1, 5).tolist() == [31]
    with pytest.raises(RemoteProtocolError, match="padding bits"):
        ring.unpack(b"\x20", 1, 5)


@pytest.mark.parametrize("bits", [0, 33])
def test_packing_refuses_a_width_it_cannot_pack(bits: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"bits must be 1 to 32, got {bits}"):
        ring.pack(np.zeros(1, np.uint64), bits)
