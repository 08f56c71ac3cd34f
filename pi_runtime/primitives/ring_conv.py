"""Exact convolutions and matrix products mod 2^64: public or own integer weights times uniform ring elements.

Weights and elements are cut into balanced 16-bit digits. Products of digits that fall beyond 2^64 are left out; of the
rest only those at 2^0 and 2^16 need exact sums, the others may wrap at 32 bits (`kernels_madd`). Weights of up to 16
bits are one digit, which makes four products an element, and in runs whose absolute values stay below 2^16 plain sums
do; weights uniform mod 2^64, as offline, make twelve.

A 3x3 convolution at stride 1, of eight channels or more, whose weights are all multiples of 4 runs as Winograd's F(2x2,
3x3): 1/2.25 of the products, the same exact result. So quantise such a layer's weights to multiples of 4 with two more
fraction bits than wanted, and truncate by those two bits more.

Legend: B batch, C input channels, O output channels, H, W input size, H', W' output size.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi_runtime.errors import LocalProtocolError
from pi_runtime.primitives.kernels_conv import direct_blocks, split_digits
from pi_runtime.primitives.kernels_madd import ROWS, STEP_TERMS, STEP_WORDS
from pi_runtime.primitives.kernels_winograd import winograd_blocks
from pi_runtime.primitives.ring import I64, as_signed

_QUADS = 4
"""Groups of four positions in a block: the panel of a 3x3 layer of 512 channels, 295 KB, then fits a core's L2."""
_MAX_WORDS = 65535
"""Two-digit words of a sum: the accumulators of `kernels_madd` hold that many."""
_WINOGRAD_2G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int64)


@dataclass(frozen=True, kw_only=True, repr=False)
class PackedConv:
    """Weights of a convolution, laid out once for the kernels. `repr` shows the geometry only."""

    words: NDArray[np.int32]
    """[groups, places, digits, row groups of four channels, words]; places: 16 of a Winograd patch, or 1."""
    group_words: int
    """Words a row whose products cannot leave 32 bits."""
    narrow_steps: int
    """Steps whose sums cannot leave 32 bits, for weights of one digit; 0 where a single step may."""
    shape: tuple[int, int, int, int]
    """O, C / groups, kernel height and width."""
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Zeros at top, left, bottom, right."""
    groups: int

    def __repr__(self) -> str:
        return f"PackedConv(shape={self.shape}, stride={self.stride}, pads={self.pads}, groups={self.groups})"

    @property
    def winograd(self) -> bool:
        """Whether the layer runs as Winograd's F(2x2, 3x3)."""
        return bool(self.words.shape[1] == 16)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """H', W' for an input of H, W.

        Raises:
            LocalProtocolError: an input smaller than the kernel.
        """
        top, left, bottom, right = self.pads
        high, wide = height + top + bottom - self.shape[2], width + left + right - self.shape[3]
        if min(high, wide) < 0:
            raise LocalProtocolError(
                f"x must be at least as large as the kernel {self.shape[2:]} with its pads {self.pads}, "
                f"got {height} x {width}; the network is made for larger images"
            )
        return high // self.stride[0] + 1, wide // self.stride[1] + 1


def pack_weights(
    weights: NDArray[Any],
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    groups: int = 1,
) -> PackedConv:
    """Integer weights [O, C / groups, kh, kw] (any integers mod 2^64) packed for `conv2d_ring`.

    Raises:
        LocalProtocolError: weights that are no integers, groups that do not divide O, or over 131,070 terms a sum.
    """
    if weights.ndim != 4 or weights.dtype.kind not in "iu":
        raise LocalProtocolError(
            f"weights must be integers [O, C/groups, kh, kw], got {weights.dtype} {weights.shape}; quantise them"
        )
    if weights.shape[0] % groups:
        raise LocalProtocolError(f"groups must divide the output channels, got {groups} for {weights.shape[0]}")
    outputs, channels, height, width = weights.shape
    values = weights.astype(np.int64).reshape(groups, 1, outputs // groups, channels, height * width)
    digits = _digits(values)
    # Below eight channels the terms are mostly padding, and transforming the input costs more than the products.
    if (height, width) == (3, 3) and stride == (1, 1) and channels >= STEP_TERMS and not np.any(values & 3):
        patches = _winograd_weights(values >> 2)
        patch_digits = _digits(patches)
        if len(patch_digits) <= len(digits):
            digits = patch_digits
    words = _pack_digits(digits)
    return PackedConv(
        words=words,
        group_words=_group_words(digits),
        narrow_steps=_narrow_steps(words) if len(digits) == 1 else 0,
        shape=(outputs, channels, height, width),
        stride=stride,
        pads=pads,
        groups=groups,
    )


def pack_linear(weights: NDArray[Any]) -> PackedConv:
    """Integer weights [O, F] packed for `linear_ring`; raises as `pack_weights`."""
    return pack_weights(weights[..., None, None])


def conv2d_ring(x: NDArray[Any], packed: PackedConv, threads: int = 1) -> I64:
    """The convolution (as neural networks have it, unflipped) of x with the packed weights, mod 2^64.

    Args:
        x: int64 or uint64 [B, C, H, W], any elements of the ring.
        packed: the weights with stride, pads and groups.
        threads: threads to split the work over; this one is among them.

    Returns:
        int64 [B, O, H', W'].

    Raises:
        LocalProtocolError: x of another shape or kind than the weights ask for.
    """
    outputs, channels = packed.shape[:2]
    if x.ndim != 4 or x.shape[1] != channels * packed.groups:
        raise LocalProtocolError(f"x must be [B, {channels * packed.groups}, H, W], got {x.shape}")
    values = np.ascontiguousarray(as_signed(x))
    size = packed.output_size(*x.shape[2:])
    output = np.empty((packed.groups, x.shape[0], outputs // packed.groups, *size), np.int64)
    if output.size:
        convolve = _winograd if packed.winograd else _direct
        for group in range(packed.groups):
            part = values[:, group * channels : (group + 1) * channels]
            convolve(part, packed, group, output[group], threads)
    return np.ascontiguousarray(output.swapaxes(0, 1)).reshape(x.shape[0], outputs, *size)


def linear_ring(x: NDArray[Any], packed: PackedConv, threads: int = 1) -> I64:
    """x [B, F] int64 or uint64 times the packed weights, int64 [B, O] mod 2^64; raises as `conv2d_ring`."""
    return conv2d_ring(x[..., None, None], packed, threads)[..., 0, 0]


def _digits(values: I64) -> list[NDArray[np.int16]]:
    """The fewest balanced 16-bit digits of `values` mod 2^64, lowest first, at least one."""
    digits: list[NDArray[np.int16]] = []
    while not digits or (len(digits) < 4 and np.any(values)):
        digits.append(values.astype(np.int16))
        values = (values - digits[-1]) >> 16
    return digits


def _winograd_weights(quarters: I64) -> I64:
    """(2G) w (2G)^T of [groups, 1, O, C, 9] as [groups, 16, O, C, 1]."""
    groups, _, outputs, channels, _ = quarters.shape
    taps = quarters.reshape(groups, outputs, channels, 3, 3)
    patches = _WINOGRAD_2G @ taps @ _WINOGRAD_2G.T
    return np.moveaxis(patches.reshape(groups, outputs, channels, 16), 3, 1)[..., None]


def _group_words(digits: list[NDArray[np.int16]]) -> int:
    """Words whose products stay inside 32 bits with elements' digits of up to 2^15 (`kernels_madd`)."""
    largest = int(np.abs(digits[0].astype(np.int32)).max(initial=0))
    if len(digits) > 1 or largest >= 1 << 14:
        return 1
    return 2 if largest >= 1 << 13 else 4


def _narrow_steps(words: NDArray[np.int32]) -> int:
    """Steps of `PackedConv.words` in which no row's absolute values add up to 2^16, so that no sum leaves 32 bits."""
    sizes = np.abs(words.view(np.int16).astype(np.int32))
    steps = int(words.shape[-1]) // (ROWS * STEP_WORDS)
    sizes = sizes.reshape(-1, steps, STEP_WORDS, ROWS, 2).sum((2, 4))
    for parts in range(1, steps + 1):
        length = -(-steps // parts)
        runs = np.add.reduceat(sizes, range(0, steps, length), axis=1)
        if int(runs.max(initial=0)) < 1 << 16:
            return length
    return 0


def _pack_digits(digits: list[NDArray[np.int16]]) -> NDArray[np.int32]:
    """Digits [groups, places, O, C, taps] as `PackedConv.words`; terms in the order channel pair, tap, channel."""
    groups, places, outputs, channels, taps = digits[0].shape
    pairs, row_groups = -(-channels // 2), -(-outputs // ROWS)
    steps = -(-pairs * taps // STEP_WORDS)
    if steps * STEP_WORDS > _MAX_WORDS:
        raise LocalProtocolError(f"a sum may have {2 * _MAX_WORDS} terms, got {channels * taps}; split the layer")
    words = np.zeros((groups, places, len(digits), row_groups, steps * STEP_WORDS, ROWS, 2), np.int16)
    for index, digit in enumerate(digits):
        paired = np.zeros((groups, places, outputs, 2 * pairs, taps), np.int16)
        paired[..., :channels, :] = digit
        terms = paired.reshape(groups, places, outputs, pairs, 2, taps).swapaxes(4, 5)
        rows = np.zeros((groups, places, row_groups * ROWS, steps * STEP_TERMS), np.int16)
        rows[:, :, :outputs, : 2 * pairs * taps] = terms.reshape(groups, places, outputs, -1)
        words[:, :, index] = rows.reshape(groups, places, row_groups, ROWS, steps * STEP_WORDS, 2).swapaxes(3, 4)
    return words.view(np.int32).reshape(groups, places, len(digits), row_groups, -1)


def _direct(x: I64, packed: PackedConv, group: int, output: I64, threads: int) -> None:
    """One channel group by im2col of its digits: `output` [B, O / groups, H', W']."""
    batch, outputs, high, wide = output.shape
    _, channels, kernel_high, kernel_wide = packed.shape
    top, left, bottom, right = packed.pads
    pairs, height, width = -(-channels // 2), x.shape[2] + top + bottom, x.shape[3] + left + right
    padded = np.zeros((4, batch, pairs, height, width), np.int32)
    split_digits(x, padded, top, left)
    terms = _offsets((pairs, height * width), (kernel_high, width), (kernel_wide, 1))
    corners = _offsets((batch, pairs * height * width), (high, packed.stride[0] * width), (wide, packed.stride[1]))
    positions, quads = _whole_blocks(corners)
    flat, words = padded.reshape(-1), packed.words[group, 0]
    result = np.empty((outputs, corners.size), np.int64)

    def blocks(first_block: int, last_block: int, first_row: int, last_row: int) -> None:
        direct_blocks(
            flat,
            padded[0].size,
            terms,
            positions,
            quads,
            words,
            packed.group_words,
            packed.narrow_steps,
            first_block,
            last_block,
            first_row,
            last_row,
            result,
        )

    _split(blocks, positions.size // (4 * quads), words.shape[1], threads)
    output[:] = result.reshape(outputs, batch, high, wide).swapaxes(0, 1)


def _winograd(x: I64, packed: PackedConv, group: int, output: I64, threads: int) -> None:
    """One channel group by Winograd's F(2x2, 3x3): `output` [B, O / groups, H', W']."""
    batch, _, high, wide = output.shape
    tiles_high, tiles_wide = -(-high // 2), -(-wide // 2)
    height, width = 2 * tiles_high + 2, 2 * tiles_wide + 2
    top, left = packed.pads[:2]
    padded = np.zeros((x.shape[1], batch, height, width), np.int64)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x.swapaxes(0, 1)
    corners, quads = _whole_blocks(_offsets((batch, height * width), (tiles_high, 2 * width), (tiles_wide, 2)))
    images, words = padded.reshape(x.shape[1], -1), packed.words[group]

    def blocks(first_block: int, last_block: int, first_row: int, last_row: int) -> None:
        winograd_blocks(
            images,
            corners,
            width,
            tiles_high,
            tiles_wide,
            quads,
            words,
            packed.group_words,
            packed.narrow_steps,
            first_block,
            last_block,
            first_row,
            last_row,
            output,
        )

    _split(blocks, corners.size // (4 * quads), words.shape[2], threads)


@lru_cache(maxsize=512)
def _offsets(*axes: tuple[int, int]) -> I64:
    """Offsets of all index tuples, C order, from a (count, step) for each axis; read-only, for it is kept."""
    total = np.zeros(1, np.int64)
    for count, step in axes:
        total = (total[:, None] + np.arange(count) * step).reshape(-1)
    total.flags.writeable = False
    return total


def _whole_blocks(offsets: I64) -> tuple[I64, int]:
    """Offsets filled up to whole blocks with the last one, and the quads of a block."""
    quads = min(_QUADS, -(-offsets.size // 4))
    missing = -offsets.size % (4 * quads)
    return np.concatenate([offsets, np.repeat(offsets[-1:], missing)]), quads


def _split(blocks: Callable[[int, int, int, int], None], block_count: int, row_count: int, threads: int) -> None:
    """Call `blocks(first block, last block, first row group, last row group)` so that all is covered once.

    Few blocks mean a small map under many weights: then the rows are split, and each thread reads its own weights only.
    """
    if threads == 1:
        blocks(0, block_count, 0, row_count)
        return
    by_blocks = block_count >= 2 * threads
    count = block_count if by_blocks else row_count
    edges = [count * i // threads for i in range(threads + 1)]
    ranges = [
        (start, stop, 0, row_count) if by_blocks else (0, block_count, start, stop) for start, stop in pairwise(edges)
    ]
    others = [_pool(threads - 1).submit(blocks, *part) for part in ranges[1:]]
    blocks(*ranges[0])
    for other in others:
        other.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="ring-conv")
