"""The innermost loop of the ring convolution: products of 16-bit digits, four rows by eight columns, in registers.

One step multiplies pairs: acc[column] += w[2k] * x[2k][column] + w[2k+1] * x[2k+1][column], 16 bits times 16 bits into
32. Numba's own vectoriser does not form the instruction for it, so the loop is written as LLVM code, without any
target's name in it; on x86 LLVM makes vpmaddwd of the pattern, or vpdpwssd where there is VNNI.

A sum of more than a few products of full 16-bit digits leaves 32 bits. Where only the sum mod 2^32 is needed it may
wrap (`wrapping_products`). Where the exact sum is needed (`exact_products`), groups of products that cannot leave 32
bits are summed to V, with two accumulators: total += V, which wraps, and high += V >> 16, which does not. The sum is
then 2^16 * high + ((total - 2^16 * high) mod 2^32), because the part of each V below 2^16 adds up to less than 2^32.

The sums are then shifted to their place and added to 64-bit results.

Where the rows' digits are small enough that whole runs of steps stay inside 32 bits, and there is one digit a row,
`narrow_products` does all four digits of an element at once with plain sums, which takes a third less time.

A word is two 16-bit digits, of the indices 2k (low half) and 2k+1, in an int32. A step is 8 indices, so four words.
Rows: int32 words [steps][4 words][4 rows]. Columns: int32 words [steps][4 words][2 vectors][8 columns]; a vector is two
neighbouring digits of four elements: 0 and 1 in the first vector, 2 and 3 in the second.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4
LANES = 8
STEP_WORDS = 4
STEP_TERMS = 2 * STEP_WORDS

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I32, LANES)
_RESULTS = ir.VectorType(_I64, LANES // 2)
_HALVES = ir.VectorType(ir.IntType(16), 2 * LANES)
_WIDE = ir.VectorType(_I32, 2 * LANES)
_EVEN = ir.Constant(_VECTOR, [2 * lane for lane in range(LANES)])
_ODD = ir.Constant(_VECTOR, [2 * lane + 1 for lane in range(LANES)])


_variable: Any = cgutils.alloca_once_value


def _splat(builder: Any, value: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_VECTOR, [0] * LANES))


def _narrow_half(builder: Any, vector: Any, half: int) -> Any:
    """Four of the eight lanes."""
    lanes = ir.Constant(ir.VectorType(_I32, LANES // 2), list(range(LANES // 2 * half, LANES // 2 * (half + 1))))
    return builder.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), lanes)


def _wide_splat(builder: Any, value: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_RESULTS, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES // 2), [0] * (LANES // 2))
    return builder.shuffle_vector(vector, ir.Constant(_RESULTS, ir.Undefined), zeros)


def _wide_constant(value: int) -> Any:
    return ir.Constant(_RESULTS, [value] * (LANES // 2))


def _half(builder: Any, vector: Any, half: int) -> Any:
    """Four of the eight lanes, widened to 64 bits."""
    return builder.sext(_narrow_half(builder, vector, half), _RESULTS)


def _pair_products(builder: Any, row: Any, columns: Any) -> Any:
    """row[0] * columns[0] + row[1] * columns[1] of the 16-bit halves, for each lane."""
    wide_row = builder.sext(builder.bitcast(row, _HALVES), _WIDE)
    wide_columns = builder.sext(builder.bitcast(columns, _HALVES), _WIDE)
    product = builder.mul(wide_row, wide_columns)
    undefined = ir.Constant(_WIDE, ir.Undefined)
    return builder.add(
        builder.shuffle_vector(product, undefined, _EVEN), builder.shuffle_vector(product, undefined, _ODD)
    )


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any, argument: int, start: Any) -> Any:
    array = context.make_array(signature.args[argument])(context, builder, arguments[argument])
    return builder.gep(array.data, [start])


def _at(builder: Any, base: Any, offset: int, kind: Any) -> Any:
    return builder.bitcast(builder.gep(base, [ir.Constant(_I64, offset)]), ir.PointerType(kind))


def _accumulate(builder: Any, slot: Any, value: Any) -> None:
    builder.store(builder.add(builder.load(slot), value), slot)


def _products(group_words: int | None) -> Callable[..., Any]:
    """The loop as a numba intrinsic; `group_words` words a row make a V, None keeps wrapping sums only.

    A single word may give exactly 2^31 (all four digits -2^15), which wraps to -2^31 and would spoil V >> 16; no other
    value comes near, so groups of one word shift V - 1 instead, and the reader of `high` adds what that takes away.
    """

    def products(
        _context: Any,
        rows: Any,
        row_start: Any,
        columns: Any,
        column_start: Any,
        steps: Any,
        results: Any,
        stride: Any,
        start: Any,
        shift0: Any,
        shift1: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        integers = [types.int64] * 4
        signature = types.void(rows, types.int64, columns, types.int64, types.int64, results, *integers)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def pointer(argument: int, start: Any) -> Any:
                return _pointer(context, builder, signature, arguments, argument, start)

            row_base, column_base = pointer(0, arguments[1]), pointer(2, arguments[3])
            zero = ir.Constant(_VECTOR, None)
            totals = [_variable(builder, zero) for _ in range(ROWS)]
            highs = [_variable(builder, zero) for _ in range(ROWS if group_words else 0)]
            with cgutils.for_range(builder, arguments[4], intp=_I64) as loop:
                words = builder.gep(row_base, [builder.mul(loop.index, ir.Constant(_I64, ROWS * STEP_WORDS))])
                vectors = builder.gep(column_base, [builder.mul(loop.index, ir.Constant(_I64, 2 * STEP_WORDS * LANES))])
                loaded = [
                    builder.load(_at(builder, vectors, 2 * LANES * k, _VECTOR), align=4) for k in range(STEP_WORDS)
                ]
                for row in range(ROWS):
                    group = None
                    for k in range(STEP_WORDS):
                        word = builder.load(_at(builder, words, ROWS * k + row, _I32))
                        product = _pair_products(builder, _splat(builder, word), loaded[k])
                        if group_words is None:
                            _accumulate(builder, totals[row], product)
                            continue
                        group = product if group is None else builder.add(group, product)
                        if (k + 1) % group_words == 0:
                            _accumulate(builder, totals[row], group)
                            if group_words == 1:
                                group = builder.add(group, ir.Constant(_VECTOR, [-1] * LANES))
                            _accumulate(builder, highs[row], builder.ashr(group, ir.Constant(_VECTOR, [16] * LANES)))
                            group = None
            taken = builder.mul(arguments[4], ir.Constant(_I64, STEP_WORDS if group_words == 1 else 0))
            for row in range(ROWS):
                for half in range(2):
                    value = _half(builder, builder.load(totals[row]), half)
                    if group_words:
                        high = builder.shl(_half(builder, builder.load(highs[row]), half), _wide_constant(16))
                        away = _wide_splat(builder, taken)
                        low = builder.sub(builder.sub(value, away), high)
                        low = builder.and_(low, _wide_constant(0xFFFFFFFF))
                        value = builder.add(builder.add(high, low), away)
                    # By halves, because a shift by all 64 bits at once is undefined.
                    shift = _wide_splat(builder, builder.lshr(arguments[8 + half], ir.Constant(_I64, 1)))
                    value = builder.shl(builder.shl(value, shift), shift)
                    start = builder.add(arguments[7], builder.mul(arguments[6], ir.Constant(_I64, row)))
                    target = builder.bitcast(pointer(5, start), ir.PointerType(_RESULTS))
                    builder.store(builder.add(builder.load(target, align=8), value), target, align=8)
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(products)


def _narrow_products(
    _context: Any,
    rows: Any,
    _row_start: Any,
    columns: Any,
    _column_start: Any,
    _steps: Any,
    results: Any,
    _stride: Any,
    _start: Any,
) -> tuple[Any, Callable[..., Any]]:
    """As a numba intrinsic: all four digits' sums of four rows and four elements stay in eight registers."""
    signature = types.void(rows, types.int64, columns, types.int64, types.int64, results, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(argument: int, start: Any) -> Any:
            return _pointer(context, builder, signature, arguments, argument, start)

        row_base, column_base = pointer(0, arguments[1]), pointer(2, arguments[3])
        sums = [[_variable(builder, ir.Constant(_VECTOR, None)) for _ in range(2)] for _ in range(ROWS)]
        count = builder.mul(arguments[4], ir.Constant(_I64, STEP_WORDS))
        # One word a turn: with more, LLVM loads ahead what the registers cannot hold.
        with cgutils.for_range(builder, count, intp=_I64) as loop:
            words = builder.gep(row_base, [builder.mul(loop.index, ir.Constant(_I64, ROWS))])
            vectors = builder.gep(column_base, [builder.mul(loop.index, ir.Constant(_I64, 2 * LANES))])
            pair = [builder.load(_at(builder, vectors, LANES * upper, _VECTOR), align=4) for upper in range(2)]
            for row in range(ROWS):
                word = _splat(builder, builder.load(_at(builder, words, row, _I32)))
                for upper in range(2):
                    _accumulate(builder, sums[row][upper], _pair_products(builder, word, pair[upper]))
        for row in range(ROWS):
            lower, upper = builder.load(sums[row][0]), builder.load(sums[row][1])
            low = builder.add(_half(builder, lower, 0), builder.shl(_half(builder, lower, 1), _wide_constant(16)))
            sixteen = ir.Constant(ir.VectorType(_I32, LANES // 2), [16] * (LANES // 2))
            high = builder.add(_narrow_half(builder, upper, 0), builder.shl(_narrow_half(builder, upper, 1), sixteen))
            value = builder.add(low, builder.shl(builder.zext(high, _RESULTS), _wide_constant(32)))
            place = builder.add(arguments[7], builder.mul(arguments[6], ir.Constant(_I64, row)))
            target = builder.bitcast(pointer(5, place), ir.PointerType(_RESULTS))
            builder.store(builder.add(builder.load(target, align=8), value), target, align=8)
        return context.get_dummy_value()

    return signature, generate


wrapping_products = _products(None)
"""(rows, row_start, columns, column_start, steps, results, stride, start, shift0, shift1): add one vector's products
mod 2^32, its halves shifted by shift0 and shift1, to flat `results` int64 at start + stride * row. Shifts are even,
0 to 64."""
exact_products_4 = _products(4)
"""The same with exact sums, rows' digits below 2^13 in size."""
exact_products_2 = _products(2)
"""The same with exact sums, rows' digits below 2^14 in size."""
exact_products_1 = _products(1)
"""The same with exact sums of any digits."""
narrow_products: Callable[..., Any] = intrinsic(_narrow_products)
"""(rows, row_start, columns, column_start, steps, results, stride, start): add the products of four elements, all
digits, mod 2^64, to flat `results` int64 at start + stride * row.

The absolute values of a row's digits in these steps add up to less than 2^16, so that sums with the digits 0 and 1 stay
inside 32 bits. Those with 2 and 3 may wrap: they count mod 2^32.
"""
