"""Attention over short ragged series on a CPU: one compiled pass over the projected tokens, without copies of them.

Series are too short (tens of steps) for a library's matrix product to reach its rate, and around it softmax and the
rearranging of heads would cost more than the arithmetic. Here the queries of a head lie side by side in the lanes of
the vector registers, so that keys and values are read where they are and softmax never sums across lanes. Two small
pieces are written as LLVM instructions, because they only pay if they stay in registers: a tile of a product, and the
transposition of 8 x 8 values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

ROWS = 6
"""Rows of a tile: with 16 lanes each, six sums fill the 16 registers of AVX2, and AVX-512 can hide its latency."""
LANES = 8
"""The lanes of a pixel's queries are rounded up to a multiple of this."""
LOG2E = np.float32(np.log2(np.e))
FLOAT, WORD, INDEX = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FUSE = ("contract",)  # multiply and add in one instruction


def kernel(function: Kernel) -> Kernel:
    """Compile for the CPU; the GIL is released, so that batches run side by side."""
    return cast("Kernel", numba.njit(nogil=True, fastmath=True, cache=True, error_model="numpy")(function))


def instruction(function: Callable[..., Any]) -> Any:
    """Make a function that numba writes out as LLVM instructions."""
    return intrinsic(function)


def _data(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    """Return the pointer to the values of an array that was given as an argument."""
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def _vectors(builder: Any, data: Any, first: Any, step: Any, n: int, lanes: int) -> list[Any]:
    """Return pointers to n vectors that begin at data[first + k * step]."""
    places = (builder.add(first, builder.mul(step, INDEX(k))) for k in range(n))
    return [builder.bitcast(builder.gep(data, [at]), ir.VectorType(FLOAT, lanes).as_pointer()) for at in places]


def _tile(n_rows: int, lanes: int) -> Any:
    """Make `tile(a, a0, a_row, a_k, b, b0, b_k, n_k, c, c0, c_row)`: c[row, lane] = sum over k of a[row, k] b[k, lane].

    Arrays are flat; every index is `x0 + row * x_row + k * x_k`.
    """
    vector = ir.VectorType(FLOAT, lanes)
    spread = ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, c = (_data(context, builder, signature, args, k) for k in (0, 4, 8))
        _, a0, a_row, a_k, _, b0, b_k, n_k, _, c0, c_row = args
        rows = [builder.add(a0, builder.mul(a_row, INDEX(row))) for row in range(n_rows)]
        before = builder.block
        loop, after = (builder.append_basic_block(f"tile.{name}") for name in ("loop", "after"))
        builder.branch(loop)
        builder.position_at_end(loop)
        k, *sums = (builder.phi(kind) for kind in (INDEX, *[vector] * n_rows))
        (at,) = _vectors(builder, b, builder.add(b0, builder.mul(k, b_k)), INDEX(0), 1, lanes)
        right, shift = builder.load(at, align=4), builder.mul(k, a_k)
        k_next, sums_next = builder.add(k, INDEX(1)), []
        for row, total in zip(rows, sums, strict=True):
            left = builder.load(builder.gep(a, [builder.add(row, shift)]))
            left = builder.insert_element(ir.Constant(vector, ir.Undefined), left, WORD(0))
            left = builder.shuffle_vector(left, ir.Constant(vector, ir.Undefined), spread)
            sums_next.append(builder.fadd(builder.fmul(left, right, flags=FUSE), total, flags=FUSE))
        for phi, value in zip((k, *sums), (k_next, *sums_next), strict=True):
            phi.add_incoming(ir.Constant(phi.type, None), before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", k_next, n_k), loop, after)
        builder.position_at_end(after)
        for at, value in zip(_vectors(builder, c, c0, c_row, n_rows, lanes), sums_next, strict=True):
            builder.store(value, at, align=4)
        return context.get_dummy_value()

    @instruction
    def tile(
        typing: Any, a: Any, a0: Any, a_row: Any, a_k: Any, b: Any, b0: Any, b_k: Any, n_k: Any, c: Any, c0: Any,
        c_row: Any,
    ) -> Any:  # fmt: skip
        i = types.intp
        return types.void(a, i, i, i, b, i, i, i, c, i, i), generate

    return tile


_wide_tile, _tile_8, _wide_row, _row_8 = _tile(ROWS, 16), _tile(ROWS, LANES), _tile(1, 16), _tile(1, LANES)


@instruction
def _transpose_block(typing: Any, a: Any, a0: Any, a_row: Any, b: Any, b0: Any, b_row: Any) -> Any:
    """Set b[b0 + j * b_row + i] = a[a0 + i * a_row + j], for i and j below 8."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (a, b), (_, a0, a_row, _, b0, b_row) = (_data(context, builder, signature, args, k) for k in (0, 3)), args
        rows = [builder.load(at, align=4) for at in _vectors(builder, a, a0, a_row, 8, 8)]
        pairs = ([0, 8, 1, 9, 2, 10, 3, 11], [4, 12, 5, 13, 6, 14, 7, 15])
        masks = [ir.Constant(ir.VectorType(WORD, 8), pair) for pair in pairs]
        for _ in range(3):  # to interleave the two halves three times turns rows into columns
            rows = [builder.shuffle_vector(rows[k // 2], rows[k // 2 + 4], masks[k % 2]) for k in range(8)]
        for at, row in zip(_vectors(builder, b, b0, b_row, 8, 8), rows, strict=True):
            builder.store(row, at, align=4)
        return context.get_dummy_value()

    i = types.intp
    return types.void(a, i, i, b, i, i), generate


@instruction
def _power_of_two(typing: Any, exponent: Any) -> Any:
    """Return 2 ** exponent, for exponents from -126 to 127, by writing the bits of the number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(args[0], WORD(127)), WORD(23)), FLOAT)

    return types.float32(types.int32), generate


@kernel
def attend(qkv: Floats, query_bias: Floats, log_counts: Floats, offsets: Integers, n_heads: int, out: Floats) -> None:
    """Attend within each pixel, head by head.

    Parameters
    ----------
    qkv : ndarray, shape (M, 3d)
        Queries, keys and values of all tokens. Queries come times log2(e) / sqrt(d / n_heads): see `softmax_columns`.
    query_bias : ndarray, shape (d,)
        Added to the queries; scaled like them.
    log_counts : ndarray, shape (M,)
        Added to the logits of each key.
    offsets : ndarray of int, shape (P + 1,)
        Where each pixel's tokens begin.
    n_heads : int
        Number of heads.
    out : ndarray, shape (M, d)
        Takes the result.
    """
    d = out.shape[1]
    size, step, tokens, results = d // n_heads, 3 * d, qkv.reshape(-1), out.reshape(-1)
    longest = 0
    for p in range(len(offsets) - 1):
        longest = max(longest, offsets[p + 1] - offsets[p])
    room = (longest + LANES - 1) // LANES * LANES
    queries, mixed = np.zeros(size * room, dtype=np.float32), np.empty(size * room, dtype=np.float32)
    weights = np.empty(longest * room, dtype=np.float32)
    tops, sums = np.empty(room, dtype=np.float32), np.empty(room, dtype=np.float32)
    for p in range(len(offsets) - 1):
        first, n = offsets[p], offsets[p + 1] - offsets[p]
        lanes = (n + LANES - 1) // LANES * LANES
        for h in range(n_heads):
            at = first * step + h * size
            transpose(tokens, at, step, n, size, queries, 0, lanes)
            for c in range(size):
                for lane in range(lanes):
                    queries[c * lanes + lane] += query_bias[h * size + c]
            product(tokens, at + d, step, 1, n, queries, lanes, size, weights)
            softmax_columns(weights, n, lanes, log_counts[first : first + n], tops, sums)
            product(tokens, at + 2 * d, 1, step, size, weights, lanes, n, mixed)
            for lane in range(lanes):
                sums[lane] = np.float32(1) / sums[lane]
            for c in range(size):
                for lane in range(lanes):
                    mixed[c * lanes + lane] *= sums[lane]
            transpose(mixed, 0, lanes, size, n, results, first * d + h * size, d)


@kernel
def transpose(a: Floats, a0: int, a_row: int, n: int, m: int, b: Floats, b0: int, b_row: int) -> None:
    """Set b[b0 + j * b_row + i] = a[a0 + i * a_row + j], for i below n and j below m."""
    if n < 8 or m < 8:
        for i in range(n):
            for j in range(m):
                b[b0 + j * b_row + i] = a[a0 + i * a_row + j]
        return
    for i in range(0, n, 8):
        for j in range(0, m, 8):
            row, column = min(i, n - 8), min(j, m - 8)  # the last block overlaps the one before
            _transpose_block(a, a0 + row * a_row + column, a_row, b, b0 + column * b_row + row, b_row)


@kernel
def product(
    a: Floats, a0: int, a_row: int, a_k: int, n_rows: int, b: Floats, n_lanes: int, n_k: int, c: Floats
) -> None:
    """Multiply (n_rows, n_k), at a[a0 + row * a_row + k * a_k], with b (n_k, n_lanes), to c (n_rows, n_lanes)."""
    lane = 0
    while lane < n_lanes:
        wide = n_lanes - lane >= 16
        for first in range(0, n_rows, ROWS):
            row = min(first, n_rows - ROWS)  # the last tile overlaps the one before
            if row < 0:
                break
            at, to = a0 + row * a_row, row * n_lanes + lane
            if wide:
                _wide_tile(a, at, a_row, a_k, b, lane, n_lanes, n_k, c, to, n_lanes)
            else:
                _tile_8(a, at, a_row, a_k, b, lane, n_lanes, n_k, c, to, n_lanes)
        for row in range(n_rows if n_rows < ROWS else 0):
            at, to = a0 + row * a_row, row * n_lanes + lane
            if wide:
                _wide_row(a, at, a_row, a_k, b, lane, n_lanes, n_k, c, to, n_lanes)
            else:
                _row_8(a, at, a_row, a_k, b, lane, n_lanes, n_k, c, to, n_lanes)
        lane += 16 if wide else LANES


@kernel
def softmax_columns(logits: Floats, n: int, n_lanes: int, log_counts: Floats, tops: Floats, sums: Floats) -> None:
    """Replace logits (n, lanes), given times log2(e), by exp(logits + log_counts), and sum them over n to `sums`.

    Each lane's highest is subtracted first. The exponential is a power of two: of its whole part by the bits of the
    number, of the rest by the polynomial of Cephes' exp2f (relative error 2e-7).
    """
    for lane in range(n_lanes):
        tops[lane], sums[lane] = -np.inf, 0
    for key in range(n):
        shift = log_counts[key] * LOG2E
        for lane in range(n_lanes):
            value = logits[key * n_lanes + lane] + shift
            logits[key * n_lanes + lane] = value
            tops[lane] = max(tops[lane], value)
    for key in range(n):
        for lane in range(n_lanes):
            x = max(logits[key * n_lanes + lane] - tops[lane], np.float32(-126))
            whole = np.floor(x + np.float32(0.5))
            rest = x - whole
            y = np.float32(1.535336188319500e-4)
            y = y * rest + np.float32(1.339887440266574e-3)
            y = y * rest + np.float32(9.618437357674640e-3)
            y = y * rest + np.float32(5.550332471162809e-2)
            y = y * rest + np.float32(2.402264791363012e-1)
            y = y * rest + np.float32(6.931472028550421e-1)
            value = (y * rest + np.float32(1)) * _power_of_two(np.int32(whole))
            logits[key * n_lanes + lane] = value
            sums[lane] += value
