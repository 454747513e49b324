"""What stands between the matrix products of `gpu.RaggedBackbone`, in plain torch for any device.

Sizes: M tokens of B pixels, d channels, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tessera_xr.encoder.ragged import Ragged, Run

MOST_LOGITS = 1 << 26
"""Attention logits to hold at once: 256 MB."""


def attend(qkv: Tensor, tokens: Ragged, n_heads: int, scale: float) -> Tensor:
    """Attend within each pixel by heads, qkv (M, 3 * width) to (M, width); the keys' logits get `log_counts`."""
    width = qkv.shape[1] // 3
    out = qkv.new_empty(len(qkv), width)
    for run in tokens.runs:
        most = max(MOST_LOGITS // (n_heads * run.length**2), 1)
        for first in range(0, run.n_pixels, most):
            n = min(most, run.n_pixels - first)
            rows = slice(run.token + first * run.length, run.token + (first + n) * run.length)
            q, k, v = qkv[rows].view(n, run.length, 3, n_heads, -1).permute(2, 0, 3, 1, 4)  # (B, h, T, size)
            logits = (q @ k.transpose(-1, -2)).float() * scale + tokens.log_counts[rows].view(n, 1, 1, -1)
            mixed = logits.softmax(dim=-1).to(v.dtype) @ v
            out[rows] = mixed.transpose(1, 2).reshape(-1, width)
    return out


def look_up(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows (M,) of a table (N, d): (M, d)."""
    return table[rows]


def add_norm(x: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float) -> None:
    """Replace x (M, d) by LayerNorm(x + bias), computed in float32."""
    x.copy_(F.layer_norm(x.float() + bias, x.shape[-1:], weight, shift, eps))


def token_logits(x: Tensor, query: Tensor) -> Tensor:
    """Return x (M, d) @ query (d,) in float32."""
    return x.float() @ query


def pool(x: Tensor, logits: Tensor, tokens: Ragged) -> Tensor:
    """Return the mean of each pixel's tokens, weighted by the softmax of their logits (M,): (B, d) float32."""
    out = torch.empty(len(tokens), x.shape[1], device=x.device)
    for run in tokens.runs:
        weights = _of(run, logits).softmax(dim=1)
        out[run.first : run.first + run.n_pixels] = torch.bmm(weights[:, None], _of(run, x).float()).squeeze(1)
    return out


def _of(run: Run, values: Tensor) -> Tensor:
    """Return the tokens of a run, (M, ...), pixel by pixel: (pixels, length, ...)."""
    rows = values[run.token : run.token + run.n_pixels * run.length]
    return rows.view(run.n_pixels, run.length, *values.shape[1:])


def open_gates(gates: Tensor, inputs: Tensor, rows: Tensor, state: Tensor, reset: Tensor, update: Tensor) -> None:
    """Write reset gate * state and update gate, from the products of the state (B, 2d) and of the inputs (M, 3d)."""
    d = state.shape[1]
    opened = (gates.float() + inputs[rows, : 2 * d]).sigmoid_()
    reset.copy_(opened[:, :d] * state)
    update.copy_(opened[:, d:])


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
    new = (proposal.float() + inputs[rows, 2 * state.shape[1] :]).tanh_()
    state.copy_(torch.lerp(state.float(), new, update.float()))
    logits.copy_(F.layer_norm(state.float(), state.shape[-1:], eps=eps) @ query)
