"""Compiled inner loops of the ReLU gate (`relu_gate`), one pass over a layer's elements each.

Layouts, k elements. `tables` [k, table_bytes]: an element's bits, little endian: for each chunk, high to low, the
2**b + 1 bits P[0] .. P[2**b], then its mask bits. `words` [k, words]: for h = 1 and h = 0 the base word (alpha, signed
alpha), then (three chunks) the triple T for both values of opened equal2, then the triples S in the order of the opened
bits below the highest, a triple being (v, v * alpha, v * signed alpha).

Opened bits, a byte an element, bit 0 up: less, equal of the highest chunk, less, equal of the next, ..., less of the
lowest. So two chunks give (less1, equal1, less0), three give (less2, equal2, less1, equal1, less0).
"""

from typing import Any

import numpy as np

from pi_runtime.primitives.kernels import kernel, reads, writes


@kernel(reads("uint64"), reads("int64"), reads("uint8", 2), writes("uint8"))
def open_bits(xhat: Any, chunks: Any, tables: Any, opened: Any) -> None:
    """A party's xor share of the opened bits of each element."""
    count = chunks.shape[0]
    low = 0
    for j in range(count):
        low += chunks[j]
    for i in range(xhat.shape[0]):
        x = xhat[i]
        shift = np.uint64(low)
        start = np.uint64(0)
        bits = np.uint64(0)
        place = np.uint64(0)
        for j in range(count):
            b = np.uint64(chunks[j])
            shift -= b
            size = np.uint64(1) << b
            at = start + ((x >> shift) & (size - np.uint64(1)))
            after = at + np.uint64(1)
            here = np.uint64(tables[i, at >> np.uint64(3)]) >> (at & np.uint64(7))
            less = np.uint64(tables[i, after >> np.uint64(3)]) >> (after & np.uint64(7))
            bits |= (less & np.uint64(1)) << place
            if j < count - 1:
                bits |= ((less ^ here) & np.uint64(1)) << (place + np.uint64(1))
            place += np.uint64(2)
            start += size + np.uint64(1)
        mask_bits = 2 * count - 1
        for j in range(mask_bits):
            at = start + np.uint64(j)
            mask = (np.uint64(tables[i, at >> np.uint64(3)]) >> (at & np.uint64(7))) & np.uint64(1)
            bits ^= mask << np.uint64(j)
        opened[i] = np.uint8(bits)


# A share v turns into total - v where a public bit is set: with mask = -bit that is (total & mask) + (v ^ mask) - mask.
# The bits are coin flips, so branches on them would be mispredicted half of the time.


@kernel(reads("uint64"), reads("uint8"), reads("uint64", 2), "int64", "uint64", writes("uint64"))
def finish_two_chunks(xhat: Any, opened: Any, words: Any, sign_bit: int, one: int, output: Any) -> None:
    """A party's share of the output from the opened (less1, equal1, less0); `one` is 1 for party 0, 0 for party 1."""
    for i in range(xhat.shape[0]):
        x = xhat[i]
        h = (x >> np.uint64(sign_bit)) & np.uint64(1)
        bits = np.uint64(opened[i])
        at = np.uint64(2) + np.uint64(3) * (bits >> np.uint64(1))
        flip = ((h ^ bits) & np.uint64(1)) - np.uint64(1)
        d = (one & flip) + (words[i, at] ^ flip) - flip
        dv = (words[i, np.uint64(1) - h] & flip) + (words[i, at + np.uint64(2) - h] ^ flip) - flip
        output[i] = d * x - dv


@kernel(reads("uint64"), reads("uint8"), reads("uint64", 2), "int64", "uint64", writes("uint64"))
def finish_three_chunks(xhat: Any, opened: Any, words: Any, sign_bit: int, one: int, output: Any) -> None:
    """The same from the opened (less2, equal2, less1, equal1, less0)."""
    for i in range(xhat.shape[0]):
        x = xhat[i]
        h = (x >> np.uint64(sign_bit)) & np.uint64(1)
        bits = np.uint64(opened[i])
        equal2 = (bits >> np.uint64(1)) & np.uint64(1)
        at = np.uint64(8) + np.uint64(3) * (equal2 | ((bits >> np.uint64(2)) & np.uint64(6)))
        total = np.uint64(2) + np.uint64(3) * equal2
        product = np.uint64(2) - h
        other = np.uint64(0) - ((bits >> np.uint64(2)) & np.uint64(1))
        flip = ((h ^ bits) & np.uint64(1)) - np.uint64(1)
        d = (words[i, total] & other) + (words[i, at] ^ other) - other
        d = (one & flip) + (d ^ flip) - flip
        dv = (words[i, total + product] & other) + (words[i, at + product] ^ other) - other
        dv = (words[i, np.uint64(1) - h] & flip) + (dv ^ flip) - flip
        output[i] = d * x - dv


@kernel(reads("uint64"), reads("uint8"), reads("int64"), writes("uint8", 2))
def xor_true_tables(alpha: Any, masks: Any, chunks: Any, tables: Any) -> None:
    """Turn one party's half of the tables, in place, into the other's: truth xor tables."""
    count = chunks.shape[0]
    low = 0
    for j in range(count):
        low += chunks[j]
    for i in range(alpha.shape[0]):
        shift = np.uint64(low)
        start = np.uint64(0)
        for j in range(count):
            b = np.uint64(chunks[j])
            shift -= b
            size = np.uint64(1) << b
            # P[t] = 1 for t = 0 .. chunk of alpha: a run of ones, whole bytes at once in its middle.
            position = start
            end = start + ((alpha[i] >> shift) & (size - np.uint64(1))) + np.uint64(1)
            while position < end:
                byte = position >> np.uint64(3)
                first = position & np.uint64(7)
                last = min(np.uint64(8), first + end - position)
                run = ((np.uint64(1) << last) - np.uint64(1)) ^ ((np.uint64(1) << first) - np.uint64(1))
                tables[i, byte] ^= np.uint8(run)
                position += last - first
            start += size + np.uint64(1)
        mask = np.uint64(masks[i])
        for j in range(2 * count - 1):
            at = start + np.uint64(j)
            tables[i, at >> np.uint64(3)] ^= np.uint8(((mask >> np.uint64(j)) & np.uint64(1)) << (at & np.uint64(7)))


@kernel(reads("uint64"), reads("uint8"), reads("int64"), writes("uint64", 2))
def subtract_from_true_words(alpha: Any, masks: Any, chunks: Any, words: Any) -> None:
    """Turn one party's half of the words, in place, into the other's: truth - words."""
    count = chunks.shape[0]
    low = 0
    for j in range(count):
        low += chunks[j]
    for i in range(alpha.shape[0]):
        mask = np.uint64(masks[i])
        a = (alpha[i] >> np.uint64(low)) & np.uint64(1)
        signed = alpha[i] - (a << np.uint64(low + 1))
        words[i, 0] = alpha[i] - words[i, 0]
        words[i, 1] = signed - words[i, 1]
        constant = a ^ (mask & np.uint64(1))
        place = np.uint64(2)
        if count == 3:
            for opened in range(2):
                equal2 = np.uint64(opened) ^ (mask >> np.uint64(1)) & np.uint64(1)
                total = np.uint64(1) if equal2 else np.uint64(2) * constant
                words[i, place] = total - words[i, place]
                words[i, place + np.uint64(1)] = total * alpha[i] - words[i, place + np.uint64(1)]
                words[i, place + np.uint64(2)] = total * signed - words[i, place + np.uint64(2)]
                place += np.uint64(3)
        for case in range(4 if count == 2 else 8):
            bits = np.uint64(case)
            if count == 2:
                bits = (bits << np.uint64(1)) ^ mask
                s = constant ^ ((bits >> np.uint64(1)) & (bits >> np.uint64(2)) & np.uint64(1))
            else:
                bits = ((bits & np.uint64(1)) << np.uint64(1) | (bits & np.uint64(6)) << np.uint64(2)) ^ mask
                lower = (bits >> np.uint64(2)) ^ ((bits >> np.uint64(3)) & (bits >> np.uint64(4)))
                s = constant ^ ((bits >> np.uint64(1)) & lower & np.uint64(1))
            words[i, place] = s - words[i, place]
            words[i, place + np.uint64(1)] = s * alpha[i] - words[i, place + np.uint64(1)]
            words[i, place + np.uint64(2)] = s * signed - words[i, place + np.uint64(2)]
            place += np.uint64(3)
