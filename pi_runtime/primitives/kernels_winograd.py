"""Compiled loops of the ring convolution by Winograd's minimal filtering F(2x2, 3x3), exact mod 2^64.

Four outputs of a 3x3 filter at stride 1 come from a 4x4 patch d with 16 products instead of 36 (Lavin and Gray, arXiv
1509.09308): y = A^T [(G w G^T) * (B^T d B)] A, where

    B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1],  2G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2],  A^T = [1 1 1 0; 0 1 -1 -1].

G has halves, so this serves a ring only where G w G^T is whole; weights that are multiples of 4 make it so. All else is
sums and differences, which wrap as the ring does. Products of digits and panels are those of `kernels_conv`; a panel's
positions are tiles of 2x2 outputs here, and there is a panel for each of the 16 places of a patch.
"""

from typing import Any

import numpy as np

from pi_runtime.primitives.kernels import inlined
from pi_runtime.primitives.kernels_conv import add_products, digit_word
from pi_runtime.primitives.kernels_madd import LANES, ROWS


@inlined
def transform_patches(image: Any, corners: Any, width: int, patches: Any) -> None:
    """B^T d B at the four `corners` of a flat padded channel `image` int64, into `patches` int64 [16, 4 tiles]."""
    for tile in range(4):
        for row in range(4):
            start = corners[tile] + row * width
            d0, d1, d2, d3 = image[start], image[start + 1], image[start + 2], image[start + 3]
            patches[4 * row, tile] = d0 - d2
            patches[4 * row + 1, tile] = d1 + d2
            patches[4 * row + 2, tile] = d2 - d1
            patches[4 * row + 3, tile] = d1 - d3
    for column in range(4):
        for tile in range(4):
            d0, d1 = patches[column, tile], patches[4 + column, tile]
            d2, d3 = patches[8 + column, tile], patches[12 + column, tile]
            patches[column, tile] = d0 - d2
            patches[4 + column, tile] = d1 + d2
            patches[8 + column, tile] = d2 - d1
            patches[12 + column, tile] = d1 - d3


@inlined
def fill_panels(images: Any, corners: Any, width: int, quads: int, panels: Any) -> None:
    """The panels int32 [16, panel] of a block of 4 * quads tiles from padded `images` int64 [C, pixels]."""
    channels = images.shape[0]
    words = panels.shape[1] // (2 * quads * LANES)
    low, high = np.empty((16, 4), np.int64), np.zeros((16, 4), np.int64)
    for pair in range((channels + 1) // 2):
        for quad in range(quads):
            block = corners[4 * quad : 4 * quad + 4]
            transform_patches(images[2 * pair], block, width, low)
            if 2 * pair + 1 < channels:
                transform_patches(images[2 * pair + 1], block, width, high)
            else:
                high[:] = 0
            start = 2 * LANES * (quad * words + pair)
            for place in range(16):
                # Digit by digit in one turn: so LLVM does the four tiles at once.
                for tile in range(4):
                    pair_low, pair_high = low[place, tile], high[place, tile]
                    panels[place, start + tile] = digit_word(pair_low, pair_high, 0)
                    panels[place, start + 4 + tile] = digit_word(pair_low, pair_high, 1)
                    panels[place, start + 8 + tile] = digit_word(pair_low, pair_high, 2)
                    panels[place, start + 12 + tile] = digit_word(pair_low, pair_high, 3)


@inlined
def store_tiles(products: Any, row: int, first: int, tiles_high: int, tiles_wide: int, output: Any) -> None:
    """A^T M A of a block's tiles from `first` on, four output channels, to output int64 [B, O, H', W']."""
    batch, channels, height, width = output.shape
    count = min(products.shape[2], batch * tiles_high * tiles_wide - first)
    for r in range(min(ROWS, channels - ROWS * row)):
        for i in range(count):
            image, tile = divmod(first + i, tiles_high * tiles_wide)
            top, left = 2 * (tile // tiles_wide), 2 * (tile % tiles_wide)
            for line in range(min(2, height - top)):
                s0, s1 = products[4, r, i], products[5, r, i]
                s2, s3 = products[6, r, i], products[7, r, i]
                if line == 0:
                    s0 += products[0, r, i] + products[8, r, i]
                    s1 += products[1, r, i] + products[9, r, i]
                    s2 += products[2, r, i] + products[10, r, i]
                    s3 += products[3, r, i] + products[11, r, i]
                else:
                    s0 -= products[8, r, i] + products[12, r, i]
                    s1 -= products[9, r, i] + products[13, r, i]
                    s2 -= products[10, r, i] + products[14, r, i]
                    s3 -= products[11, r, i] + products[15, r, i]
                output[image, ROWS * row + r, top + line, left] = s0 + s1 + s2
                if left + 1 < width:
                    output[image, ROWS * row + r, top + line, left + 1] = s1 - s2 - s3


@inlined
def winograd_blocks(
    images: Any,
    corners: Any,
    width: int,
    tiles_high: int,
    tiles_wide: int,
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
    """Blocks of tiles times row groups of one channel group, to `output` int64 [B, O, H', W'].

    `images` int64 [C, padded pixels of the batch]; `corners` covers whole blocks of tiles, `width` is that of a padded
    image; `weights` int32 [16 places, digits, row groups, K/8 steps * 16 words].
    """
    places, digits, row_groups, row_words = weights.shape
    words = row_words // ROWS
    flat = weights.reshape(-1)
    size = 4 * quads
    panels = np.zeros((places, 2 * quads * words * LANES), np.int32)
    products = np.empty((last_row - first_row, places, ROWS * size), np.int64)
    for block in range(first_block, last_block):
        fill_panels(images, corners[block * size : (block + 1) * size], width, quads, panels)
        products[:] = 0
        for place in range(places):
            panel = panels[place]
            for row in range(first_row, last_row):
                tile = products[row - first_row, place]
                start = (place * digits * row_groups + row) * row_words
                digit_words = row_groups * row_words
                add_products(flat, start, row_words, digits, digit_words, group_words, narrow_steps, panel, quads, tile)
        for row in range(first_row, last_row):
            tiles = products[row - first_row].reshape(places, ROWS, size)
            store_tiles(tiles, row, block * size, tiles_high, tiles_wide, output)
