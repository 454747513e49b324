"""The operations of `plain` as Triton kernels, for bfloat16 on CUDA: each reads and writes its rows once.

Sums, exponentials and statistics are in float32, as there. Sizes: M tokens of B pixels, d channels, h heads.
"""

from __future__ import annotations

import numpy as np
import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from tessera_xr.encoder.ragged import Ragged

TILES = (16, 32, 64)
"""Tokens of a pixel that attention takes at once; longer series go tile by tile."""
LOG2_E = tl.constexpr(1.4426950408889634)
"""The kernels take powers of two: what a logit in powers of e is multiplied by."""


def attend(qkv: Tensor, tokens: Ragged, n_heads: int, scale: float) -> Tensor:
    """Attend within each pixel by heads, qkv (M, 3 * width) to (M, width); the keys' logits get `log_counts`."""
    width = qkv.shape[1] // 3
    out = qkv.new_empty(len(qkv), width)
    size = width // n_heads
    main = min(triton.next_power_of_2(size), 128)
    rest = triton.next_power_of_2(size - main) if size > main else 0
    lengths = np.repeat([run.length for run in tokens.runs], [run.n_pixels for run in tokens.runs])
    cuts = [0, *np.searchsorted(lengths, TILES[:-1], side="right"), len(lengths)]
    for tile, first, last in zip(TILES, cuts, cuts[1:], strict=False):
        if last > first:
            grid = (int(last - first), n_heads, triton.cdiv(int(lengths[last - 1]), tile))
            # Four warps let Triton take Hopper's asynchronous products. Where channels are split, Triton 3.6 then
            # reads past the end of shared memory, as compute-sanitizer shows; two are as fast there.
            _attend[grid](
                qkv, out, tokens.log_counts, tokens.offsets, int(first), scale * LOG2_E.value, WIDTH=width,
                SIZE=size, MAIN=main, REST=max(rest, 16), SPLIT=rest > 0, TILE=tile, LONG=grid[2] > 1,
                num_warps=4 if tile == 64 and not rest else 2, num_stages=1,
            )  # fmt: skip
    return out


def look_up(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows (M,) of a table (N, d): (M, d)."""
    m, d = len(rows), table.shape[1]
    block = triton.next_power_of_2(d)
    n_rows = max(4096 // block, 1)
    out = table.new_empty(m, d)
    _look_up[(triton.cdiv(m, n_rows),)](table, rows, out, m, D=d, ROWS=n_rows, BLOCK=block, num_warps=4)
    return out


def add_norm(x: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float) -> None:
    """Replace x (M, d) by LayerNorm(x + bias), computed in float32."""
    m, d = x.shape
    block = triton.next_power_of_2(d)
    n_rows, n_warps = (8, 2) if block <= 256 else (2, 1)
    _add_norm[(triton.cdiv(m, n_rows),)](
        x, bias, weight, shift, m, eps, D=d, ROWS=n_rows, BLOCK=block, num_warps=n_warps
    )  # fmt: skip


def token_logits(x: Tensor, query: Tensor) -> Tensor:
    """Return x (M, d) @ query (d,) in float32."""
    m, d = x.shape
    block = triton.next_power_of_2(d)
    n_rows = max(4096 // block, 1)
    out = torch.empty(m, device=x.device)
    _token_logits[(triton.cdiv(m, n_rows),)](x, query, out, m, D=d, ROWS=n_rows, BLOCK=block, num_warps=4)
    return out


def pool(x: Tensor, logits: Tensor, tokens: Ragged) -> Tensor:
    """Return the mean of each pixel's tokens, weighted by the softmax of their logits (M,): (B, d) float32."""
    d = x.shape[1]
    out = torch.empty(len(tokens), d, device=x.device)
    block = triton.next_power_of_2(d)
    longest = triton.next_power_of_2(tokens.runs[-1].length)
    _pool[(len(tokens),)](
        x, logits, tokens.offsets, out, D=d, LONGEST=longest, TOKENS=max(4096 // block, 1), BLOCK=block, num_warps=4
    )  # fmt: skip
    return out


def open_gates(gates: Tensor, inputs: Tensor, rows: Tensor, state: Tensor, reset: Tensor, update: Tensor) -> None:
    """Write reset gate * state and update gate, from the products of the state (B, 2d) and of the inputs (M, 3d)."""
    n, d = state.shape
    _open_gates[(n,)](gates, inputs, rows, state, reset, update, D=d, BLOCK=triton.next_power_of_2(d), num_warps=4)


def advance(
    proposal: Tensor,
    inputs: Tensor,
    rows: Tensor,
    update: Tensor,
    state: Tensor,
    query: Tensor,
    eps: float,
    logits: Tensor,
) -> None:
    """Move `state` (B, d) towards the proposed one by the update gate; write the pooling logit of each, (B,)."""
    n, d = state.shape
    _advance[(n,)](
        proposal, inputs, rows, update, state, query, logits, eps, D=d, BLOCK=triton.next_power_of_2(d), num_warps=4
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_pixel"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, log_counts, offsets, first_pixel, scale,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """One head of one pixel, one tile of queries; channels in two parts, so that 160 or 192 don't become 256."""
    pixel = first_pixel + tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.load(offsets + pixel)
    n = (tl.load(offsets + pixel + 1) - begin).to(tl.int32)
    tile = tl.arange(0, TILE)
    query = tl.program_id(2) * TILE + tile
    if tl.program_id(2) * TILE < n:
        c = tl.arange(0, MAIN)
        c2 = MAIN + tl.arange(0, REST)
        here = (query < n)[:, None]
        row = qkv + (begin + query)[:, None] * (3 * WIDTH) + head * SIZE
        q = tl.load(row + c[None, :], mask=here & (c < SIZE)[None, :], other=0.0)
        q2 = tl.load(row + c2[None, :], mask=here & (c2 < SIZE)[None, :] & SPLIT, other=0.0)
        highest = tl.full((TILE,), float("-inf"), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        mixed = tl.zeros((TILE, MAIN), tl.float32)
        mixed2 = tl.zeros((TILE, REST), tl.float32)
        for start in range(0, n if LONG else TILE, TILE):
            key = start + tile
            there = (key < n)[:, None]
            key_row = qkv + (begin + key)[:, None] * (3 * WIDTH) + WIDTH + head * SIZE
            k = tl.load(key_row + c[None, :], mask=there & (c < SIZE)[None, :], other=0.0)
            v = tl.load(key_row + WIDTH + c[None, :], mask=there & (c < SIZE)[None, :], other=0.0)
            logits = tl.dot(q, tl.trans(k))
            if SPLIT:
                k2 = tl.load(key_row + c2[None, :], mask=there & (c2 < SIZE)[None, :], other=0.0)
                logits += tl.dot(q2, tl.trans(k2))
            bias = tl.load(log_counts + begin + key, mask=key < n, other=float("-inf")) * LOG2_E
            logits = logits * scale + bias[None, :]
            new = tl.maximum(highest, tl.max(logits, axis=1))
            weights = tl.exp2(logits - new[:, None])
            fade = tl.exp2(highest - new)
            total = total * fade + tl.sum(weights, axis=1)
            mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v)
            if SPLIT:
                v2 = tl.load(key_row + WIDTH + c2[None, :], mask=there & (c2 < SIZE)[None, :], other=0.0)
                mixed2 = mixed2 * fade[:, None] + tl.dot(weights.to(v2.dtype), v2)
            highest = new
        to = out + (begin + query)[:, None] * WIDTH + head * SIZE
        tl.store(to + c[None, :], mixed / total[:, None], mask=here & (c < SIZE)[None, :])
        if SPLIT:
            tl.store(to + c2[None, :], mixed2 / total[:, None], mask=here & (c2 < SIZE)[None, :])


@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _look_up(table, rows, out, m, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    mask = (row < m)[:, None] & (c < D)[None, :]
    at = tl.load(rows + row, mask=row < m, other=0)
    tl.store(out + row[:, None] * D + c[None, :], tl.load(table + at[:, None] * D + c[None, :], mask=mask), mask=mask)


@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _add_norm(x, bias, weight, shift, m, eps, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    inside = c < D
    mask = (row < m)[:, None] & inside[None, :]
    at = x + row[:, None] * D + c[None, :]
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32) + tl.load(bias + c, mask=inside, other=0.0)[None, :]
    mean = tl.sum(value, axis=1) / D
    centred = tl.where(inside[None, :], value - mean[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    normed = centred * scale[:, None] * tl.load(weight + c, mask=inside, other=0.0)[None, :]
    tl.store(at, normed + tl.load(shift + c, mask=inside, other=0.0)[None, :], mask=mask)


@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _token_logits(x, query, out, m, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    mask = (row < m)[:, None] & (c < D)[None, :]
    value = tl.load(x + row[:, None] * D + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(value * tl.load(query + c, mask=c < D, other=0.0)[None, :], axis=1), mask=row < m)


@triton.jit  # type: ignore[untyped-decorator]
def _pool(  # type: ignore[no-untyped-def]
    x, logits, offsets, out, D: tl.constexpr, LONGEST: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    pixel = tl.program_id(0)
    begin = tl.load(offsets + pixel)
    n = (tl.load(offsets + pixel + 1) - begin).to(tl.int32)
    each = tl.arange(0, LONGEST)
    every = tl.load(logits + begin + each, mask=each < n, other=float("-inf"))
    highest = tl.max(every, axis=0)
    total = tl.sum(tl.exp(every - highest), axis=0)
    c = tl.arange(0, BLOCK)
    some = tl.arange(0, TOKENS)
    total_x = tl.zeros((TOKENS, BLOCK), tl.float32)
    for start in range(0, n, TOKENS):
        token = start + some
        there = token < n
        weight = tl.exp(tl.load(logits + begin + token, mask=there, other=float("-inf")) - highest)
        row = x + (begin + token)[:, None] * D + c[None, :]
        value = tl.load(row, mask=there[:, None] & (c < D)[None, :], other=0.0).to(tl.float32)
        total_x += value * weight[:, None]
    tl.store(out + pixel.to(tl.int64) * D + c, tl.sum(total_x, axis=0) / total, mask=c < D)


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-x))


@triton.jit  # type: ignore[untyped-decorator]
def _open_gates(gates, inputs, rows, state, reset, update, D: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    mask = c < D
    at_input = inputs + tl.load(rows + i) * (3 * D) + c
    at_gate = gates + i * (2 * D) + c
    from_r = tl.load(at_gate, mask=mask).to(tl.float32) + tl.load(at_input, mask=mask).to(tl.float32)
    from_z = tl.load(at_gate + D, mask=mask).to(tl.float32) + tl.load(at_input + D, mask=mask).to(tl.float32)
    old = tl.load(state + i * D + c, mask=mask).to(tl.float32)
    tl.store(reset + i * D + c, _sigmoid(from_r) * old, mask=mask)
    tl.store(update + i * D + c, _sigmoid(from_z), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _advance(  # type: ignore[no-untyped-def]
    proposal, inputs, rows, update, state, query, logits, eps, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    mask = c < D
    from_h = tl.load(proposal + i * D + c, mask=mask, other=0.0).to(tl.float32)
    from_h += tl.load(inputs + tl.load(rows + i) * (3 * D) + 2 * D + c, mask=mask, other=0.0).to(tl.float32)
    new = 2 * _sigmoid(2 * from_h) - 1
    old = tl.load(state + i * D + c, mask=mask, other=0.0).to(tl.float32)
    moved = old + tl.load(update + i * D + c, mask=mask, other=0.0).to(tl.float32) * (new - old)
    tl.store(state + i * D + c, moved, mask=mask)
    mean = tl.sum(tl.where(mask, moved, 0.0), axis=0) / D
    centred = tl.where(mask, moved - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / D + eps)
    product = tl.sum(centred * tl.load(query + c, mask=mask, other=0.0), axis=0)
    tl.store(logits + i, product * scale)
