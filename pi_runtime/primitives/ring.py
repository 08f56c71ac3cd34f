"""Arithmetic of Z_2^64: views, fixed point, signed reading of low bits, and elements of n bits packed into bytes.

An element is a numpy uint64 (or the int64 with the same bits: addition, subtraction and multiplication mod 2^64 do not
tell them apart). A real number v stands as round(v * 2**frac_bits), negative ones as their two's complement.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.primitives.kernels_ring import add_and_shift, pack_bits, unpack_bits

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
MAX_PACKED_BITS = 32


def as_unsigned(values: NDArray[Any]) -> U64:
    """The same 64 bits an element read as uint64; a view, any shape.

    Raises:
        LocalProtocolError: elements of another kind than int64 or uint64.
    """
    return _as_word(values).view(np.uint64)


def as_signed(values: NDArray[Any]) -> I64:
    """The same 64 bits an element read as int64; a view, any shape.

    Raises:
        LocalProtocolError: elements of another kind than int64 or uint64.
    """
    return _as_word(values).view(np.int64)


def _as_word(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype not in (np.uint64, np.int64):
        raise LocalProtocolError(f"ring elements must be int64 or uint64, got {values.dtype}; convert them first")
    return values


def low_bits(values: NDArray[Any], bits: int) -> U64:
    """`values` mod 2**bits, as uint64 of the same shape; 1 <= bits <= 64."""
    return as_unsigned(values) & np.uint64((1 << bits) - 1)


def signed_low_bits(values: NDArray[Any], bits: int) -> I64:
    """`values` mod 2**bits read as a signed number in [-2**(bits-1), 2**(bits-1)), as int64; 1 <= bits <= 64."""
    spare = np.uint64(64 - bits)
    return (as_unsigned(values) << spare).view(np.int64) >> np.int64(64 - bits)


def encode(values: NDArray[Any], frac_bits: int) -> I64:
    """Real numbers as fixed point, round(values * 2**frac_bits) (ties to even), int64 of the same shape.

    Raises:
        LocalProtocolError: a value that is no number, or beyond what 63 bits hold at this scale.
    """
    scaled = np.rint(np.ldexp(np.asarray(values, dtype=np.float64), frac_bits))
    if not bool(np.all(np.abs(scaled) < 2.0**63)):  # also catches NaN, which compares false
        raise LocalProtocolError(
            f"values must be finite and below 2**{63 - frac_bits} in size at frac_bits={frac_bits}, "
            "got one that is not; normalise the input or use fewer fraction bits"
        )
    return scaled.astype(np.int64)


def decode(values: NDArray[Any], frac_bits: int) -> F64:
    """Fixed point read back as real numbers, values / 2**frac_bits, float64 of the same shape."""
    return np.ldexp(as_signed(values).astype(np.float64), -frac_bits)


def add_then_truncate(product: I64, share: NDArray[np.int64], shift: int) -> None:
    """product = (product + share) >> shift, arithmetic and elementwise, in place; both int64 of one shape, C order."""
    assert product.flags.c_contiguous, "a copy would be shifted instead"
    if product.shape != share.shape:
        raise LocalProtocolError(f"share must have the shape {product.shape} of the product, got {share.shape}")
    add_and_shift(product.reshape(-1), np.require(share, np.int64, ["C", "A"]).reshape(-1), shift)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` elements of `bits` bits take when packed: ceil(count * bits / 8)."""
    return (count * bits + 7) // 8


def pack(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Elements mod 2**bits packed without gaps, little endian: element i at bits [i*bits, (i+1)*bits), rest zero.

    Args:
        values: uint64, int64 or uint8, any shape, read in C order; only the low `bits` bits of each are sent.
        bits: 1 to 32.

    Returns:
        uint8 [packed_bytes(values.size, bits)].
    """
    _check_packed_bits(bits)
    words = values.astype(np.uint64) if values.dtype == np.uint8 else as_unsigned(values)
    packed = np.empty(packed_bytes(words.size, bits), np.uint8)
    pack_bits(np.ascontiguousarray(words).reshape(-1), bits, packed)
    return packed


def unpack(packed: bytes | bytearray | memoryview | NDArray[np.uint8], count: int, bits: int) -> U64:
    """The inverse of `pack`: uint64 [count], each below 2**bits.

    Raises:
        RemoteProtocolError: not exactly the bytes that `count` elements take, or padding bits that are not zero.
    """
    _check_packed_bits(bits)
    data = np.frombuffer(packed, np.uint8)
    if data.size != packed_bytes(count, bits):
        raise RemoteProtocolError(
            f"{count} elements of {bits} bits must take {packed_bytes(count, bits)} bytes, got {data.size}; "
            "the peer speaks another version or runs another model"
        )
    used = count * bits % 8
    if used and int(data[-1]) >> used:
        raise RemoteProtocolError("the padding bits after packed elements must be zero; the message is damaged")
    values = np.empty(count, np.uint64)
    unpack_bits(data, bits, values)
    return values


def _check_packed_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_PACKED_BITS:
        raise LocalProtocolError(f"bits must be 1 to {MAX_PACKED_BITS}, got {bits}; send whole words instead")
