"""Compiled loops over ring elements: bit packing, and the end of a truncated product.

Packed elements have a few bits each, one after the other, little endian in bits and bytes.
"""

from typing import Any

import numpy as np

from pi_runtime.primitives.kernels import kernel, reads, writes


@kernel(reads("uint64"), "int64", writes("uint8"))
def pack_bits(values: Any, bits: int, packed: Any) -> None:
    """Element i of `values` goes to bits i*bits .. (i+1)*bits - 1 of `packed`; what it has above is cut off."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    pending, pending_bits, position = np.uint64(0), 0, 0
    for i in range(values.shape[0]):
        pending |= (values[i] & mask) << np.uint64(pending_bits)
        pending_bits += bits
        while pending_bits >= 8:
            packed[position] = np.uint8(pending & np.uint64(255))
            pending >>= np.uint64(8)
            pending_bits -= 8
            position += 1
    if pending_bits > 0:
        packed[position] = np.uint8(pending & np.uint64(255))


@kernel(reads("uint8"), "int64", writes("uint64"))
def unpack_bits(packed: Any, bits: int, values: Any) -> None:
    """The inverse of `pack_bits`."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    pending, pending_bits, position = np.uint64(0), 0, 0
    for i in range(values.shape[0]):
        while pending_bits < bits:
            pending |= np.uint64(packed[position]) << np.uint64(pending_bits)
            pending_bits += 8
            position += 1
        values[i] = pending & mask
        pending >>= np.uint64(bits)
        pending_bits -= bits


@kernel(writes("int64"), reads("int64"), "int64")
def add_and_shift(product: Any, share: Any, shift: int) -> None:
    """product = (product + share) >> shift, arithmetic, in place: one pass over memory instead of two."""
    for i in range(product.shape[0]):
        product[i] = (product[i] + share[i]) >> shift
