"""The backbones on a CPU, near the speed of its matrix product.

The arithmetic of `network.Backbone`, with everything that isn't a matrix product taken out of its way: no padding (all
pixels of a batch stand in one ragged row of tokens), a chunk of tokens that stays in the cache through all layers,
attention as one compiled pass, bias, ReLU and residuals summed by the product itself where the library can, and the
passes in between (LayerNorm, GRU gates, pooling) as numba kernels.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from tessera_xr.encoder.attention import LOG2E, attend, kernel
from tessera_xr.encoder.network import GRU, Backbone, PostNormLayer
from tessera_xr.encoder.products import ROW_STEP, Room, make_product
from tessera_xr.encoder.tokens import Floats, Integers, Tokens

CHUNK = 1024
"""Tokens that pass through all layers together: more leave the core's cache, fewer leave the core to Python."""


def can_run(backbone: Backbone) -> bool:
    """Say whether `FastBackbone` knows this variant: post-norm layers without QK-norm, not torch's GRU."""
    plain = all(isinstance(layer, PostNormLayer) for layer in backbone.layers)
    return plain and isinstance(backbone.attn_pool.temporal_context, (GRU, type(None)))


class FastBackbone:
    """A backbone ready to run on the CPU: weights transposed or packed once, biases where the kernels want them.

    Instances hold no state of a run, so that threads can share one.

    Parameters
    ----------
    backbone : Backbone
        In float32 on the CPU, of a variant for which `can_run` holds.
    precision : torch.dtype, default float32
        bfloat16 rounds the operands of the layers' products, where `products.rounds` holds. All else, and the recurrent
        unit, whose roundings would add up from step to step, stays in float32.
    """

    def __init__(self, backbone: Backbone, precision: torch.dtype = torch.float32) -> None:
        first, _, second = cast("tuple[torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]", tuple(backbone.embedding))
        self.width = backbone.doy_table.shape[1]
        self.first, self.second = make_product(first.weight, first.bias), make_product(second.weight)
        self.doy_table = (backbone.doy_table + second.bias).detach()
        self.layers = [FastLayer(cast("PostNormLayer", layer), precision) for layer in backbone.layers]
        pool = backbone.attn_pool
        # a bias on the query's logits is the same for all steps: no effect on the weights
        self.query = pool.query.weight.detach().numpy()[0]
        self.gru = FastGRU(pool.temporal_context, pool.layer_norm) if isinstance(pool.temporal_context, GRU) else None

    def __call__(self, tokens: Tokens, room: Room) -> Floats:
        """Encode pixels: tokens to (P, d)."""
        pooled = np.empty((len(tokens), self.width), dtype=np.float32)
        read = room.take("read", _round_up(len(tokens.x)) if self.gru else 0, self.width)
        for pixels in tokens.batches(CHUNK):
            part = tokens.take(pixels)
            x = self.transform(part, room)
            if self.gru is None:
                pool_tokens(x.numpy(), self.query, part.log_counts, part.offsets, pooled[pixels])
            else:  # it wants many pixels at once
                first, last = tokens.offsets[[pixels.start, pixels.stop]]
                read[first:last] = x[: last - first]
        if self.gru is not None:
            read[len(tokens.x) :] = 0
            self.gru(read, tokens, self.query, pooled, room)
        return pooled

    def transform(self, tokens: Tokens, room: Room) -> Tensor:
        """Return what leaves the last layer, (M, d), and rows of no meaning behind."""
        n = len(tokens.x)
        n_rows = _round_up(n)
        values, days = room.take("values", n_rows, tokens.x.shape[1]), room.take("days", n_rows, self.width)
        values[:n], values[n:], days[n:] = torch.from_numpy(tokens.x), 0, 0
        torch.index_select(self.doy_table, 0, torch.from_numpy(tokens.doy), out=days[:n])
        x = self.second.added(self.first.rectified(values, room), days)
        for layer in self.layers:
            x = layer(x, tokens, room)
        return x


class FastLayer:
    """One post-norm layer over a ragged row of tokens."""

    def __init__(self, layer: PostNormLayer, precision: torch.dtype = torch.float32) -> None:
        attention = layer.self_attn
        self.n_heads = attention.n_heads
        query, key, value = attention.in_proj_weight.detach().chunk(3)
        bias_q, _, bias_v = attention.in_proj_bias.detach().chunk(3)
        scale = float(LOG2E) / (len(query) // self.n_heads) ** 0.5
        self.project_in = make_product(torch.cat([query * scale, key, value]), precision=precision)
        self.project_out = make_product(attention.out_proj.weight, precision=precision)
        # A bias on the keys adds the same to all logits of a query: no effect. One on the values passes through the
        # weighted mean unchanged, and on to the output projection.
        self.query_bias = (bias_q * scale).numpy()
        self.out_bias = (attention.out_proj.bias + attention.out_proj.weight @ bias_v).detach().numpy()
        self.norm1, self.norm2 = _norm(layer.norm1), _norm(layer.norm2)
        self.hidden = make_product(layer.linear1.weight, layer.linear1.bias, precision)
        self.out = make_product(layer.linear2.weight, precision=precision)
        self.hidden_out_bias = layer.linear2.bias.detach().numpy()

    def __call__(self, x: Tensor, tokens: Tokens, room: Room) -> Tensor:
        """Transform x, (M, d) and rows of no meaning behind; x is lost."""
        attended = room.take("attended", *x.shape)
        attended[len(tokens.x) :] = 0
        qkv = self.project_in(x, room).numpy()
        attend(qkv, self.query_bias, tokens.log_counts, tokens.offsets, self.n_heads, attended.numpy())
        x = self.project_out.added(attended, x)
        add_norm(x.numpy(), self.out_bias, *self.norm1)
        x = self.out.added(self.hidden.rectified(x, room), x)
        add_norm(x.numpy(), self.hidden_out_bias, *self.norm2)
        return x


class FastGRU:
    """TESSERA's recurrent pooling: all pixels of a batch advance together, the longest series first."""

    def __init__(self, gru: GRU, norm: torch.nn.LayerNorm) -> None:
        cell = gru.gru_cell
        inputs = torch.cat([cell.W_ir.weight, cell.W_iz.weight, cell.W_ih.weight])
        self.inputs = make_product(inputs, torch.cat([cell.b_r, cell.b_z, cell.b_h]))
        self.gates = make_product(torch.cat([cell.W_hr.weight, cell.W_hz.weight]))
        self.proposal = make_product(cell.W_hh.weight)
        self.norm = _norm(norm)

    def __call__(self, x: Tensor, tokens: Tokens, query: Floats, pooled: Floats, room: Room) -> None:
        """Pool x, (M, d) and rows of no meaning behind, to `pooled` (P, d)."""
        # once for each observation
        inputs = torch.cat([self.inputs(rows, room) for rows in torch.split(x, CHUNK)]).numpy()
        lengths = np.diff(tokens.sequence_offsets)
        rows = tokens.sequence + np.repeat(tokens.offsets[:-1], lengths)  # which token each step reads
        order = np.argsort(-lengths, kind="stable")
        starts, active_until = tokens.sequence_offsets[:-1][order], lengths[order]
        state, reset, update = (torch.zeros(_round_up(len(tokens)), x.shape[1]) for _ in range(3))
        logits = np.empty(len(rows), dtype=np.float32)
        for t in range(int(lengths.max(initial=0))):
            n = int(np.searchsorted(-active_until, -t))  # pixels whose series is longer than t
            steps, some = starts[:n] + t, slice(_round_up(n))
            gates = self.gates(state[some], room).numpy()[:n]
            open_gates(gates, inputs, rows[steps], state.numpy(), reset.numpy(), update.numpy())
            proposal = self.proposal(reset[some], room).numpy()[:n]
            advance(proposal, inputs, rows[steps], update.numpy(), state.numpy())
            logits[steps] = query_logits(state.numpy()[:n], *self.norm, query)
        pool_steps(x.numpy(), rows, logits, tokens.sequence_offsets, pooled)


def _round_up(n: int) -> int:
    return -(-n // ROW_STEP) * ROW_STEP


def _norm(layer: torch.nn.LayerNorm) -> tuple[Floats, Floats, np.float32]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy(), np.float32(layer.eps)


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
    logits = np.empty(len(log_counts), dtype=np.float32)
    for m in range(len(log_counts)):
        out = np.float32(0)
        for c in range(d):
            out += x[m, c] * query[c]
        logits[m] = out + log_counts[m]
    _weighted_means(x, np.arange(len(log_counts)), logits, offsets, pooled)


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
