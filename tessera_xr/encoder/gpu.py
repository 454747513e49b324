"""The backbones on a GPU, near the speed of its matrix product.

The arithmetic of `network.Backbone`, arranged so that little but matrix products is left: no padding (all pixels of a
batch stand in one ragged row of tokens), weights in the number format of the products once and for all, bias and ReLU
in the epilogue of a product, residuals summed by the product itself, and the passes in between by the operations of
`plain` or, where Triton is at hand, of `kernels`: the same results but for rounding. Any device runs it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tessera_xr.encoder import plain
from tessera_xr.encoder.network import GRU, Backbone, PostNormLayer
from tessera_xr.encoder.ragged import Ragged

ALIGNED = 8
"""Values that a row of a matrix product is padded to a multiple of: 16 bytes of bfloat16."""
NARROW = 16
"""Columns that the bands are padded to."""


def can_run(backbone: Backbone) -> bool:
    """Say whether `RaggedBackbone` knows this variant: post-norm layers without QK-norm, not torch's GRU."""
    ordinary = all(isinstance(layer, PostNormLayer) for layer in backbone.layers)
    return ordinary and isinstance(backbone.attn_pool.temporal_context, (GRU, type(None)))


def operations(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """Return the module whose operations suit: `kernels` for bfloat16 on CUDA where Triton is installed, else `plain`.

    In float32 the products inside attention must be true float32, which Triton's are not by default.
    """
    if device.type == "cuda" and dtype == torch.bfloat16 and _has_triton():
        from tessera_xr.encoder import kernels

        return kernels
    return plain


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


class RaggedBackbone:
    """A backbone ready to run on its device: weights in `dtype`, rows aligned, biases where the operations want them.

    Parameters
    ----------
    backbone : Backbone
        Of a variant for which `can_run` holds.
    dtype : torch.dtype
        Of the matrix products: bfloat16 or float32.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        first, _, second = cast("tuple[torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]", tuple(backbone.embedding))
        self.dtype, self.ops = dtype, operations(backbone.doy_table.device, dtype)
        self.first = _weight(F.pad(first.weight, (0, NARROW - first.in_features)), dtype)
        self.first_bias = first.bias.detach().to(dtype)
        self.second = _weight(second.weight, dtype)
        self.doy_table = (backbone.doy_table + second.bias).detach().to(dtype)
        self.layers = [RaggedLayer(cast("PostNormLayer", layer), dtype, self.ops) for layer in backbone.layers]
        pool = backbone.attn_pool
        # a bias on the query's logits is the same for all steps: no effect on the weights
        self.query = pool.query.weight.detach()[0].float().contiguous()
        context, self.gru = pool.temporal_context, None
        if isinstance(context, GRU):
            self.gru = RaggedGRU(context, pool.layer_norm, self.query, dtype, self.ops)

    def __call__(self, tokens: Ragged) -> Tensor:
        """Encode pixels sorted by length: tokens to (B, d) float32."""
        bands = F.pad(tokens.x, (0, NARROW - tokens.x.shape[1])).to(self.dtype)
        x = self.ops.look_up(self.doy_table, tokens.doy)
        x.addmm_(relu_product(self.first_bias, bands, self.first), self.second)
        for layer in self.layers:
            layer(x, tokens)
        logits = self.gru(x, tokens) if self.gru else self.ops.token_logits(x, self.query) + tokens.log_counts
        return cast("Tensor", self.ops.pool(x, logits, tokens))


class RaggedLayer:
    """One post-norm layer over a ragged row of tokens, in place."""

    def __init__(self, layer: PostNormLayer, dtype: torch.dtype, ops: ModuleType) -> None:
        attention, d = layer.self_attn, layer.linear1.in_features
        self.ops, self.n_heads = ops, attention.n_heads
        size = d // self.n_heads
        self.scale = size**-0.5
        more = -size % ALIGNED  # zeros behind each head, so that it begins on an aligned address
        weight = attention.in_proj_weight.view(3, self.n_heads, size, d)
        bias = attention.in_proj_bias.view(3, self.n_heads, size)
        self.project_in = _weight(F.pad(weight, (0, 0, 0, more)).flatten(0, 2), dtype)
        self.bias_in = F.pad(bias, (0, more)).flatten().detach().to(dtype)
        out = attention.out_proj.weight.view(d, self.n_heads, size)
        self.project_out = _weight(F.pad(out, (0, more)).flatten(1), dtype)
        self.norm1 = _norm(layer.norm1, attention.out_proj.bias)
        self.norm2 = _norm(layer.norm2, layer.linear2.bias)
        self.hidden, self.hidden_bias = _weight(layer.linear1.weight, dtype), layer.linear1.bias.detach().to(dtype)
        self.out = _weight(layer.linear2.weight, dtype)

    def __call__(self, x: Tensor, tokens: Ragged) -> None:
        """Transform x (M, d) in place."""
        qkv = torch.addmm(self.bias_in, x, self.project_in)
        x.addmm_(self.ops.attend(qkv, tokens, self.n_heads, self.scale), self.project_out)
        del qkv
        self.ops.add_norm(x, *self.norm1)
        x.addmm_(relu_product(self.hidden_bias, x, self.hidden), self.out)
        self.ops.add_norm(x, *self.norm2)


class RaggedGRU:
    """TESSERA's recurrent pooling: the pixels whose series goes on advance together."""

    def __init__(self, gru: GRU, norm: torch.nn.LayerNorm, query: Tensor, dtype: torch.dtype, ops: ModuleType) -> None:
        cell = gru.gru_cell
        self.ops = ops
        self.inputs = _weight(torch.cat([cell.W_ir.weight, cell.W_iz.weight, cell.W_ih.weight]), dtype)
        self.bias = torch.cat([cell.b_r, cell.b_z, cell.b_h]).detach().to(dtype)
        self.gates = _weight(torch.cat([cell.W_hr.weight, cell.W_hz.weight]), dtype)
        self.proposal = _weight(cell.W_hh.weight, dtype)
        # the logit of a state is (LayerNorm(state) * weight + bias) @ query; what the bias adds is the same for all
        self.query = (norm.weight.detach().float() * query).contiguous()
        self.eps = norm.eps

    def __call__(self, x: Tensor, tokens: Ragged) -> Tensor:
        """Return the logit of each token, (M,): that of all steps that read it together."""
        n, length = tokens.sequence.shape
        inputs = torch.addmm(self.bias, x, self.inputs)  # once for each distinct observation
        state, reset, update = (x.new_zeros(n, x.shape[1]) for _ in range(3))
        logits = torch.full((length, n), -torch.inf, device=x.device)
        rows = tokens.sequence.t().contiguous()
        done = 0
        for end in np.unique(tokens.read):  # sorted: those that go on are the last
            first = int(tokens.read.searchsorted(end))
            going_on = (state[first:], reset[first:], update[first:])
            for t in range(done, int(end)):
                self.step(inputs, rows[t, first:], *going_on, logits[t, first:])
            done = int(end)
        weights = logits.softmax(dim=0)
        each = torch.zeros(len(x), device=x.device).index_add_(0, rows.flatten(), weights.flatten())
        return each.log()

    def step(self, inputs: Tensor, rows: Tensor, state: Tensor, reset: Tensor, update: Tensor, logits: Tensor) -> None:
        """Advance `state` (B, d) by one step, whose tokens are `rows` of `inputs`; write its logits (B,)."""
        self.ops.open_gates(state @ self.gates, inputs, rows, state, reset, update)
        self.ops.advance(reset @ self.proposal, inputs, rows, update, state, self.query, self.eps, logits)


def relu_product(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return relu(x @ weight + bias), by one kernel where the device has one."""
    if x.device.type == "cuda" and hasattr(torch, "_addmm_activation"):
        return torch._addmm_activation(bias, x, weight)
    return torch.addmm(bias, x, weight).relu_()


def _weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight (out, in) as (in, out), its rows in memory those of `weight`: what GPU products read fastest."""
    return weight.detach().to(dtype).contiguous().t()


def _norm(layer: torch.nn.LayerNorm, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return what `add_norm` wants: the bias of the product before it, then the LayerNorm's own, all in float32."""
    return (*(t.detach().float().contiguous() for t in (bias, layer.weight, layer.bias)), layer.eps)  # type: ignore[return-value]
