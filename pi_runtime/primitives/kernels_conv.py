"""Compiled loops of the ring convolution around the products of digits (`kernels_madd`).

An element x of Z_2^64 is d0 + 2^16 d1 + 2^32 d2 + 2^48 d3 with digits in [-2^15, 2^15). A block is `quads` groups of
four output positions. Its panel is int32 words [quads][K/2 words][2 vectors][8 columns]: the digits 0 and 1 of a quad's
positions, whose sums must be exact, then the digits 2 and 3, whose sums wrap.

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
    narrow_products,
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
    rows: Any,
    row_start: int,
    row_words: int,
    digits: int,
    digit_words: int,
    group_words: int,
    narrow_steps: int,
    panel: Any,
    quads: int,
    tile: Any,
) -> None:
    """Add one row group's products with all its digits to `tile`, flat int64 [4 rows, quads, 4 positions].

    Digit w of the rows starts at row_start + w * digit_words. narrow_steps: steps whose sums stay inside 32 bits, or 0.
    """
    steps = row_words // (ROWS * STEP_WORDS)
    vector_words = 2 * LANES * STEP_WORDS
    stride = 4 * quads
    for quad in range(quads):
        column = quad * steps * vector_words
        if narrow_steps > 0:
            for first in range(0, steps, narrow_steps):
                count = min(narrow_steps, steps - first)
                row = row_start + first * ROWS * STEP_WORDS
                narrow_products(rows, row, panel, column + first * vector_words, count, tile, stride, 4 * quad)
            continue
        for digit in range(digits):
            row = row_start + digit * digit_words
            for upper in range(2):
                place = digit + 2 * upper
                if place > 3:
                    continue
                start, low, high = column + LANES * upper, 16 * place, 16 * place + 16
                if upper == 1 or digit >= 2:
                    wrapping_products(rows, row, panel, start, steps, tile, stride, 4 * quad, low, high)
                elif group_words == 4:
                    exact_products_4(rows, row, panel, start, steps, tile, stride, 4 * quad, low, high)
                elif group_words == 2:
                    exact_products_2(rows, row, panel, start, steps, tile, stride, 4 * quad, low, high)
                else:
                    exact_products_1(rows, row, panel, start, steps, tile, stride, 4 * quad, low, high)


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
            start = quad * words * 2 * LANES + LANES * (digit >> 1) + 4 * (digit & 1)
            base = digit * digit_size
            o0 = base + position_offsets[4 * quad]
            o1 = base + position_offsets[4 * quad + 1]
            o2 = base + position_offsets[4 * quad + 2]
            o3 = base + position_offsets[4 * quad + 3]
            if o1 == o0 + 1 and o2 == o0 + 2 and o3 == o0 + 3:
                for k in range(term_offsets.size):
                    source = o0 + term_offsets[k]
                    target = start + k * 2 * LANES
                    for i in range(4):
                        panel[target + i] = padded[source + i]
            else:
                for k in range(term_offsets.size):
                    offset = term_offsets[k]
                    target = start + k * 2 * LANES
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
    narrow_steps: int,
    first_block: int,
    last_block: int,
    first_row: int,
    last_row: int,
    output: Any,
) -> None:
    """Blocks of positions times row groups of one channel group, to `output` int64 [O, positions].

    `weights` int32 [digits, row groups, K/8 steps * 16 words]; `position_offsets` covers whole blocks.
    """
    digits, row_groups, row_words = weights.shape
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
            start, digit_words = row * row_words, row_groups * row_words
            add_products(flat, start, row_words, digits, digit_words, group_words, narrow_steps, panel, quads, tile)
            for r in range(min(ROWS, output.shape[0] - ROWS * row)):
                for i in range(count):
                    output[ROWS * row + r, block * size + i] = tile[r * size + i]
