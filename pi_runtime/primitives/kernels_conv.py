"""Compiled loops of the ring convolution around the products of digits (`kernels_madd`).

An element x of Z_2^64 is d0 + 2^16 d1 + 2^32 d2 + 2^48 d3 with digits in [-2^15, 2^15). A block is `quads` groups of
four output positions. Its panel has 2*quads vectors of eight columns, a column being one digit at one position: the
first `quads` vectors hold the digits 0 and 1, whose sums must be exact, the others the digits 2 and 3, whose sums wrap.
In either half the order is digit, quad, position, so that even a block of four positions fills its vectors.

Legend: O output channels, K terms padded to a multiple of 8, rows of four output channels each.
"""

from typing import Any

import numpy as np

from pi_runtime.primitives.kernels import inlined
from pi_runtime.primitives.kernels_madd import (
    LANES,
    ROWS,
    STEP_WORDS,
    exact_products_1,
    exact_products_2,
    exact_products_4,
    wrapping_products,
)

_BIAS = np.int64(0x0000800080008000)  # makes the three lower digits unsigned: d + 2^15
_FLIP = np.int32(-0x7FFF8000)  # 0x80008000: takes that away from both halves of a word again


@inlined
def digit_word(low: Any, high: Any, digit: int) -> Any:
    """Digit `digit` of two elements as the low and high half of an int32 word."""
    word = (((low + _BIAS) >> (16 * digit)) & 0xFFFF) | (((high + _BIAS) >> (16 * digit)) << 16)
    return np.int32(word) ^ (_FLIP if digit < 3 else np.int32(0))


@inlined
def add_products(
    rows: Any, row_start: int, weight_digit: int, group_words: int, panel: Any, quads: int, words: int, tile: Any
) -> None:
    """Add one row group's products with one weight digit to `tile`, flat int64 [4 rows, quads, 4 positions]."""
    steps = words // STEP_WORDS
    stride = 4 * quads
    for vector in range(2 * quads if weight_digit < 2 else quads):
        upper = vector >= quads
        start = vector * words * LANES
        # Digit and quad of the two halves by comparison: a division takes as long as many products here.
        column0 = 2 * (vector - quads if upper else vector)
        column1 = column0 + 1
        place0 = weight_digit + (1 if column0 >= quads else 0) + (2 if upper else 0)
        place1 = weight_digit + (1 if column1 >= quads else 0) + (2 if upper else 0)
        at0 = 4 * (column0 - quads if column0 >= quads else column0)
        at1 = 4 * (column1 - quads if column1 >= quads else column1)
        if place0 > 3:
            continue
        shift0, shift1 = 16 * place0, 16 * place1
        if upper or weight_digit >= 2:
            wrapping_products(rows, row_start, panel, start, steps, tile, stride, at0, shift0, at1, shift1)
        elif group_words == 4:
            exact_products_4(rows, row_start, panel, start, steps, tile, stride, at0, shift0, at1, shift1)
        elif group_words == 2:
            exact_products_2(rows, row_start, panel, start, steps, tile, stride, at0, shift0, at1, shift1)
        else:
            exact_products_1(rows, row_start, panel, start, steps, tile, stride, at0, shift0, at1, shift1)


@inlined
def split_digits(values: Any, padded: Any, top: int, left: int) -> None:
    """Elements [B, C, H, W] int64 to words [4 digits, B, ceil(C/2), H + pads, W + pads] int32 of channel pairs."""
    batch, channels, height, width = values.shape
    for b in range(batch):
        for pair in range(padded.shape[2]):
            second = min(2 * pair + 1, channels - 1)
            kept = np.int64(-1 if 2 * pair + 1 < channels else 0)
            for h in range(height):
                for digit in range(4):
                    for w in range(width):
                        word = digit_word(values[b, 2 * pair, h, w], values[b, second, h, w] & kept, digit)
                        padded[digit, b, pair, top + h, left + w] = word


@inlined
def fill_panel(padded: Any, digit_size: int, term_offsets: Any, position_offsets: Any, quads: int, panel: Any) -> None:
    """The words of a block's positions: `padded` flat, an offset for each of K/2 words and for each position."""
    words = panel.size // (2 * quads * LANES)
    for digit in range(4):
        for quad in range(quads):
            column = (digit & 1) * quads + quad
            start = ((digit >> 1) * quads + column // 2) * words * LANES + 4 * (column & 1)
            base = digit * digit_size
            o0 = base + position_offsets[4 * quad]
            o1 = base + position_offsets[4 * quad + 1]
            o2 = base + position_offsets[4 * quad + 2]
            o3 = base + position_offsets[4 * quad + 3]
            if o1 == o0 + 1 and o2 == o0 + 2 and o3 == o0 + 3:
                for k in range(term_offsets.size):
                    source = o0 + term_offsets[k]
                    target = start + k * LANES
                    for i in range(4):
                        panel[target + i] = padded[source + i]
            else:
                for k in range(term_offsets.size):
                    offset = term_offsets[k]
                    target = start + k * LANES
                    panel[target] = padded[offset + o0]
                    panel[target + 1] = padded[offset + o1]
                    panel[target + 2] = padded[offset + o2]
                    panel[target + 3] = padded[offset + o3]


@inlined
def direct_blocks(
    padded: Any,
    digit_size: int,
    term_offsets: Any,
    position_offsets: Any,
    quads: int,
    weights: Any,
    group_words: int,
    first_block: int,
    last_block: int,
    first_row: int,
    last_row: int,
    output: Any,
) -> None:
    """Blocks of positions times row groups of one channel group, to `output` int64 [O, positions].

    `weights` int32 [digits, row groups, K/8 steps * 16 words]; `position_offsets` covers whole blocks.
    """
    digits, _, row_words = weights.shape
    words = row_words // ROWS
    flat = weights.reshape(-1)
    panel = np.zeros(2 * quads * words * LANES, np.int32)
    tile = np.empty(ROWS * 4 * quads, np.int64)
    size = 4 * quads
    for block in range(first_block, last_block):
        fill_panel(padded, digit_size, term_offsets, position_offsets[block * size : (block + 1) * size], quads, panel)
        count = min(size, output.shape[1] - block * size)
        for row in range(first_row, last_row):
            tile[:] = 0
            for digit in range(digits):
                start = (digit * weights.shape[1] + row) * row_words
                add_products(flat, start, digit, group_words, panel, quads, words, tile)
            for r in range(min(ROWS, output.shape[0] - ROWS * row)):
                for i in range(count):
                    output[ROWS * row + r, block * size + i] = tile[r * size + i]
