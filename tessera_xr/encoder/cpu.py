"""The backbones on a CPU in float32, near the speed of its matrix product.

The arithmetic of `network.Backbone`, with everything that isn't a matrix product taken out of its way: no padding (all
pixels of a batch stand in one ragged row of tokens), products straight into buffers that stay in the cache, residuals
summed by the product itself, and the passes in between (bias, ReLU, LayerNorm, GRU gates, pooling) as numba kernels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
import torch
from torch import Tensor

from tessera_xr.encoder.network import GRU, Backbone, PostNormLayer
from tessera_xr.encoder.tokens import Floats, Integers, Tokens

Run: TypeAlias = tuple[int, int, int]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Kernel:
    """Compile for the CPU; the GIL is released, so that batches run side by side."""
    return cast("Kernel", numba.njit(nogil=True, fastmath=True, cache=True, error_model="numpy")(function))


def can_run(backbone: Backbone) -> bool:
    """Say whether `FastBackbone` knows this variant: post-norm layers without QK-norm, not torch's GRU."""
    plain = all(isinstance(layer, PostNormLayer) for layer in backbone.layers)
    return plain and isinstance(backbone.attn_pool.temporal_context, (GRU, type(None)))


class Room:
    """Memory that the batches of one thread use again and again: fresh pages would cost more than the kernels."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a contiguous tensor of that shape with undefined contents, good until the next call by that name."""
        size = math.prod(shape)
        if name not in self._flat or len(self._flat[name]) < size:
            self._flat[name] = torch.empty(size + size // 4)
        return self._flat[name][:size].view(shape)


class FastBackbone:
    """A backbone ready to run on the CPU: weights transposed once, biases where the kernels want them.

    Instances hold no state of a run, so that threads can share one.

    Parameters
    ----------
    backbone : Backbone
        In float32 on the CPU, of a variant for which `can_run` holds.
    """

    def __init__(self, backbone: Backbone) -> None:
        first, _, second = cast("tuple[torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]", tuple(backbone.embedding))
        self.width = backbone.doy_table.shape[1]
        self.first, self.second = _columns(first.weight), _columns(second.weight)
        self.first_bias = first.bias.detach().numpy()
        self.doy_table = (backbone.doy_table + second.bias).detach()
        self.layers = [FastLayer(cast("PostNormLayer", layer)) for layer in backbone.layers]
        pool = backbone.attn_pool
        # a bias on the query's logits is the same for all steps: no effect on the weights
        self.query = pool.query.weight.detach().numpy()[0]
        self.gru = FastGRU(pool.temporal_context, pool.layer_norm) if isinstance(pool.temporal_context, GRU) else None

    def __call__(self, tokens: Tokens, room: Room) -> Floats:
        """Encode pixels sorted by length: tokens to (P, d)."""
        n_tokens = len(tokens.x)
        x = room.take("x", n_tokens, self.width)
        torch.index_select(self.doy_table, 0, torch.from_numpy(tokens.doy), out=x)
        hidden = room.take("wide", n_tokens, self.width)
        torch.mm(torch.from_numpy(tokens.x), self.first, out=hidden)
        add_bias_relu(hidden.numpy(), self.first_bias)
        x.addmm_(hidden, self.second)
        runs = _equal_runs(tokens)
        for layer in self.layers:
            layer(x, tokens, runs, room)
        if self.gru is not None:
            return self.gru(x, tokens, self.query)
        pooled = np.empty((len(tokens), self.width), dtype=np.float32)
        pool_tokens(x.numpy(), self.query, tokens.log_counts, tokens.offsets, pooled)
        return pooled


class FastLayer:
    """One post-norm layer over a ragged row of tokens, in place."""

    def __init__(self, layer: PostNormLayer) -> None:
        attention = layer.self_attn
        self.n_heads = attention.n_heads
        self.project_in, self.project_out = _columns(attention.in_proj_weight), _columns(attention.out_proj.weight)
        bias_q, _, bias_v = attention.in_proj_bias.detach().chunk(3)
        # A bias on the keys adds the same to all logits of a query: no effect. One on the values passes through the
        # weighted mean unchanged, and on to the output projection.
        self.query_bias = bias_q.numpy().copy()
        self.out_bias = (attention.out_proj.bias + attention.out_proj.weight @ bias_v).detach().numpy()
        self.norm1, self.norm2 = _norm(layer.norm1), _norm(layer.norm2)
        self.hidden, self.hidden_bias = _columns(layer.linear1.weight), layer.linear1.bias.detach().numpy()
        self.out, self.hidden_out_bias = _columns(layer.linear2.weight), layer.linear2.bias.detach().numpy()

    def __call__(self, x: Tensor, tokens: Tokens, runs: list[Run], room: Room) -> None:
        """Transform x (M, d) in place."""
        m, d = x.shape
        qkv = torch.mm(x, self.project_in, out=room.take("wide", m, 3 * d))
        attended = room.take("attended", m, d)
        for run in runs:
            self.attend(qkv, tokens.log_counts, run, attended, room)
        x.addmm_(attended, self.project_out)
        add_norm(x.numpy(), self.out_bias, *self.norm1)
        hidden = torch.mm(x, self.hidden, out=room.take("wide", m, len(self.hidden_bias)))
        add_bias_relu(hidden.numpy(), self.hidden_bias)
        x.addmm_(hidden, self.out)
        add_norm(x.numpy(), self.hidden_out_bias, *self.norm2)

    def attend(self, qkv: Tensor, log_counts: Floats, run: Run, out: Tensor, room: Room) -> None:
        """Attend within each pixel of a run of equal lengths: qkv (M, 3d) to out (M, d)."""
        first, n_pixels, n = run
        rows, d = slice(first, first + n_pixels * n), out.shape[1]
        heads = room.take("heads", 3, n_pixels * self.n_heads, n, d // self.n_heads)
        split_heads(qkv.numpy()[rows], self.query_bias, n, heads.numpy())
        q, k, v = heads
        logits = torch.bmm(q, k.transpose(1, 2), out=room.take("logits", len(q), n, n))
        sums = room.take("sums", len(q), n)
        subtract_highest(logits.numpy(), log_counts[rows], self.n_heads)
        torch.exp_(logits)
        sum_rows(logits.numpy(), sums.numpy())
        mixed = torch.bmm(logits, v, out=q)  # the queries are no longer needed
        merge_heads(mixed.numpy(), sums.numpy(), out.numpy()[rows])


class FastGRU:
    """TESSERA's recurrent pooling: all pixels of a batch advance together, the longest series first."""

    def __init__(self, gru: GRU, norm: torch.nn.LayerNorm) -> None:
        cell = gru.gru_cell
        self.inputs = _columns(torch.cat([cell.W_ir.weight, cell.W_iz.weight, cell.W_ih.weight]))
        self.bias = torch.cat([cell.b_r, cell.b_z, cell.b_h]).detach()
        self.gates = _columns(torch.cat([cell.W_hr.weight, cell.W_hz.weight]))
        self.proposal = _columns(cell.W_hh.weight)
        self.norm = _norm(norm)

    def __call__(self, x: Tensor, tokens: Tokens, query: Floats) -> Floats:
        """Pool x (M, d) to (P, d)."""
        n_pixels, d = len(tokens), x.shape[1]
        inputs = torch.addmm(self.bias, x, self.inputs).numpy()  # once for each distinct observation
        lengths = np.diff(tokens.sequence_offsets)
        rows = tokens.sequence + np.repeat(tokens.offsets[:-1], lengths)  # which token each step reads
        order = np.argsort(-lengths, kind="stable")
        starts, active_until = tokens.sequence_offsets[:-1][order], lengths[order]
        state, reset, update = (torch.zeros(n_pixels, d) for _ in range(3))
        gates, proposal = torch.empty(n_pixels, 2 * d), torch.empty(n_pixels, d)
        logits = np.empty(len(rows), dtype=np.float32)
        for t in range(int(lengths.max(initial=0))):
            n = int(np.searchsorted(-active_until, -t))  # pixels whose series is longer than t
            steps = starts[:n] + t
            torch.mm(state[:n], self.gates, out=gates[:n])
            open_gates(gates.numpy()[:n], inputs, rows[steps], state.numpy(), reset.numpy(), update.numpy())
            torch.mm(reset[:n], self.proposal, out=proposal[:n])
            advance(proposal.numpy()[:n], inputs, rows[steps], update.numpy(), state.numpy())
            logits[steps] = query_logits(state.numpy()[:n], *self.norm, query)
        pooled = np.empty((n_pixels, d), dtype=np.float32)
        pool_steps(x.numpy(), rows, logits, tokens.sequence_offsets, pooled)
        return pooled


def _equal_runs(tokens: Tokens) -> list[Run]:
    """Cut the tokens where the length of a pixel's series changes: (first token, number of pixels, length)."""
    lengths = tokens.lengths
    cuts = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    return [
        (int(tokens.offsets[begin]), int(end - begin), int(lengths[begin])) for begin, end in itertools.pairwise(cuts)
    ]


def _columns(weight: Tensor) -> Tensor:
    """Return a weight (out, in) as the contiguous (in, out) that the product reads fastest."""
    return weight.detach().t().contiguous()


def _norm(layer: torch.nn.LayerNorm) -> tuple[Floats, Floats, np.float32]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy(), np.float32(layer.eps)


@kernel
def split_heads(qkv: Floats, query_bias: Floats, n: int, heads: Floats) -> None:
    """Copy (P * n, 3d) to (3, P * h, n, d/h), the queries with their bias and divided by the root of d/h."""
    n_heads, size = heads.shape[1] * n // qkv.shape[0], heads.shape[3]
    d = n_heads * size
    scale = np.float32(1) / np.sqrt(np.float32(size))
    for row in range(qkv.shape[0]):
        for h in range(n_heads):
            matrix, i, c0 = row // n * n_heads + h, row % n, h * size
            for c in range(size):
                heads[0, matrix, i, c] = (qkv[row, c0 + c] + query_bias[c0 + c]) * scale
                heads[1, matrix, i, c] = qkv[row, d + c0 + c]
                heads[2, matrix, i, c] = qkv[row, 2 * d + c0 + c]


@kernel
def subtract_highest(logits: Floats, log_counts: Floats, n_heads: int) -> None:
    """Add log_counts (P * n,) to the keys of logits (P * h, n, n), then subtract each query's highest."""
    n = logits.shape[1]
    for matrix in range(logits.shape[0]):
        begin = matrix // n_heads * n
        for i in range(n):
            highest = np.float32(-np.inf)
            for j in range(n):
                value = logits[matrix, i, j] + log_counts[begin + j]
                logits[matrix, i, j] = value
                highest = max(highest, value)
            for j in range(n):
                logits[matrix, i, j] -= highest


@kernel
def sum_rows(weights: Floats, sums: Floats) -> None:
    """Sum weights (B, n, n) over the keys, to (B, n)."""
    for matrix in range(weights.shape[0]):
        for i in range(weights.shape[1]):
            total = np.float32(0)
            for j in range(weights.shape[2]):
                total += weights[matrix, i, j]
            sums[matrix, i] = total


@kernel
def merge_heads(mixed: Floats, sums: Floats, out: Floats) -> None:
    """Copy (P * h, n, d/h), divided by the sums (P * h, n) of its weights, to (P * n, d)."""
    n, size = mixed.shape[1], mixed.shape[2]
    n_heads = out.shape[1] // size
    for row in range(out.shape[0]):
        for h in range(n_heads):
            matrix, i = row // n * n_heads + h, row % n
            scale = np.float32(1) / sums[matrix, i]
            for c in range(size):
                out[row, h * size + c] = mixed[matrix, i, c] * scale


@kernel
def add_bias_relu(x: Floats, bias: Floats) -> None:
    """Add `bias` (d,) to every row of x (M, d), then set negative values to zero."""
    zero = np.float32(0)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[i, c] = max(x[i, c] + bias[c], zero)


@kernel
def add_norm(x: Floats, bias: Floats, weight: Floats, shift: Floats, eps: np.float32) -> None:
    """Add `bias` (d,) to every row of x (M, d), then LayerNorm."""
    d = x.shape[1]
    for i in range(x.shape[0]):
        total, squares = np.float32(0), np.float32(0)
        for c in range(d):
            value = x[i, c] + bias[c]
            x[i, c] = value
            total += value
        mean = total / np.float32(d)
        for c in range(d):
            squares += (x[i, c] - mean) ** 2
        scale = np.float32(1) / np.sqrt(squares / np.float32(d) + eps)
        for c in range(d):
            x[i, c] = (x[i, c] - mean) * scale * weight[c] + shift[c]


@kernel
def open_gates(gates: Floats, inputs: Floats, rows: Integers, state: Floats, reset: Floats, update: Floats) -> None:
    """Write reset * state and the update gate, from the products of the state (n, 2d) and of the inputs (M, 3d)."""
    d, one = state.shape[1], np.float32(1)
    for i in range(gates.shape[0]):
        row = rows[i]
        for c in range(d):
            reset[i, c] = state[i, c] / (one + np.exp(-(gates[i, c] + inputs[row, c])))
            update[i, c] = one / (one + np.exp(-(gates[i, d + c] + inputs[row, d + c])))


@kernel
def advance(proposal: Floats, inputs: Floats, rows: Integers, update: Floats, state: Floats) -> None:
    """Replace the state by its mean with the proposed one, weighted by the update gate."""
    d = state.shape[1]
    for i in range(proposal.shape[0]):
        row = rows[i]
        for c in range(d):
            new = np.tanh(proposal[i, c] + inputs[row, 2 * d + c])
            state[i, c] += update[i, c] * (new - state[i, c])


@kernel
def query_logits(state: Floats, weight: Floats, shift: Floats, eps: np.float32, query: Floats) -> Floats:
    """Return the pooling logit of each state: LayerNorm, then the product with the query; (n, d) to (n,)."""
    n, d = state.shape
    logits = np.empty(n, dtype=np.float32)
    for i in range(n):
        total, squares, out = np.float32(0), np.float32(0), np.float32(0)
        for c in range(d):
            total += state[i, c]
        mean = total / np.float32(d)
        for c in range(d):
            squares += (state[i, c] - mean) ** 2
        scale = np.float32(1) / np.sqrt(squares / np.float32(d) + eps)
        for c in range(d):
            out += ((state[i, c] - mean) * scale * weight[c] + shift[c]) * query[c]
        logits[i] = out
    return logits


@kernel
def pool_tokens(x: Floats, query: Floats, log_counts: Floats, offsets: Integers, pooled: Floats) -> None:
    """Attention pooling: softmax over each pixel's tokens of x @ query + log_counts, then the weighted mean."""
    d = x.shape[1]
    logits = np.empty(x.shape[0], dtype=np.float32)
    for m in range(x.shape[0]):
        out = np.float32(0)
        for c in range(d):
            out += x[m, c] * query[c]
        logits[m] = out + log_counts[m]
    _weighted_means(x, np.arange(x.shape[0]), logits, offsets, pooled)


@kernel
def pool_steps(x: Floats, rows: Integers, logits: Floats, offsets: Integers, pooled: Floats) -> None:
    """Attention pooling over sequences that may read a token more than once."""
    _weighted_means(x, rows, logits, offsets, pooled)


@kernel
def _weighted_means(x: Floats, rows: Integers, logits: Floats, offsets: Integers, pooled: Floats) -> None:
    d = x.shape[1]
    for i in range(pooled.shape[0]):
        begin, end = offsets[i], offsets[i + 1]
        highest = logits[begin:end].max()
        total = np.float32(0)
        for c in range(d):
            pooled[i, c] = 0
        for s in range(begin, end):
            weight = np.exp(logits[s] - highest)
            total += weight
            for c in range(d):
                pooled[i, c] += weight * x[rows[s], c]
        for c in range(d):
            pooled[i, c] /= total
