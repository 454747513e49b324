"""The TESSERA encoders v1.0, v1.1 and v2 (students), read top to bottom.

One backbone for each sensor (embed, add the day of year, transform, pool over time), then a reducer over both.
Parameter names are those of the released checkpoints, so that loading is strict and needs no mapping.

Sizes: B pixels, T observations, C bands, d = 4 * latent_dim, h heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tessera_xr.encoder.architecture import Architecture, Pooling

S2_BANDS, S1_BANDS = 10, 2
MAX_DOY = 366


class TesseraEncoder(nn.Module):
    """Two backbones and a reducer: series of both sensors to one vector a pixel.

    Parameters
    ----------
    arch : Architecture
        Sizes and variants.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.s2_backbone = Backbone(S2_BANDS, arch)
        self.s1_backbone = Backbone(S1_BANDS, arch)
        self.dim_reducer = reducer(arch)

    def forward(self, s2: Tensor, s1: Tensor) -> Tensor:
        """Encode series of equal length; the last channel is the day of year.

        Parameters
        ----------
        s2 : Tensor, shape (B, T, 11)
            Standardised reflectances in TESSERA's band order, then the raw day of year.
        s1 : Tensor, shape (B, T, 3)
            Standardised VV and VH, then the raw day of year.

        Returns
        -------
        Tensor, shape (B, n_out)
        """
        return self.fuse(self.s2_backbone(s2[..., :-1], s2[..., -1]), self.s1_backbone(s1[..., :-1], s1[..., -1]))

    def fuse(self, s2: Tensor, s1: Tensor) -> Tensor:
        """Reduce the pooled vectors of both sensors, (B, d) each, to (B, n_out)."""
        out: Tensor = self.dim_reducer(torch.cat([s2, s1], dim=-1))
        return F.layer_norm(out.float(), out.shape[-1:]) if self.arch.final_norm else out.float()


def reducer(arch: Architecture) -> nn.Sequential:
    """Return the layers from both pooled vectors, (B, 2d), to (B, n_out)."""
    d = arch.width
    if not arch.deep_reducer:
        return nn.Sequential(nn.Linear(2 * d, arch.n_out))
    return nn.Sequential(
        nn.Linear(2 * d, 4 * d), nn.LayerNorm(4 * d), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4 * d, arch.n_out)
    )


class Backbone(nn.Module):
    """One sensor's series to one vector: (B, T, C) to (B, d)."""

    def __init__(self, n_bands: int, arch: Architecture) -> None:
        super().__init__()
        d = arch.width
        self.embedding = nn.Sequential(nn.Linear(n_bands, d), nn.ReLU(), nn.Linear(d, d))
        if arch.qk_norm:
            layers = [QKNormLayer(d, arch.n_heads, arch.feedforward) for _ in range(arch.n_layers)]
            self.transformer_encoder: nn.Module = nn.ModuleList(layers)
        else:
            self.transformer_encoder = Transformer(d, arch.n_heads, arch.feedforward, arch.n_layers)
        self.attn_pool = AttentionPooling(d, arch.pooling)
        self.register_buffer("doy_table", doy_encoding(torch.arange(MAX_DOY + 1, device="cpu"), d), persistent=False)
        self.doy_table: Tensor

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, wherever this variant keeps them."""
        encoder = self.transformer_encoder
        layers = encoder if isinstance(encoder, nn.ModuleList) else encoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    def forward(
        self,
        x: Tensor,
        doy: Tensor,
        log_counts: Tensor | None = None,
        sequence: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Encode a batch of series.

        Parameters
        ----------
        x : Tensor, shape (B, T, C)
            Standardised bands.
        doy : Tensor, shape (B, T)
            Day of year; whole numbers are looked up, fractions (mixed pixels) computed.
        log_counts : Tensor, shape (B, T), optional
            Logarithm of how often each observation stands in the series; -inf for padding. Exactly equal to
            repeating them.
        sequence : Tensor of int, shape (B, L), optional
            The series in full, as indices into T: what a GRU reads.
        padding : Tensor, shape (B, L), optional
            0 where `sequence` holds a step, -inf where it is padding.

        Returns
        -------
        Tensor, shape (B, d)
        """
        known = not doy.is_floating_point()
        time = self.doy_table[doy] if known else doy_encoding(doy, self.doy_table.shape[-1])
        x = self.embedding(x) + time  # (B, T, d)
        bias = None if log_counts is None else log_counts[:, None, None, :]  # (B, 1, 1, T) over heads and queries
        for layer in self.layers:
            x = layer(x, bias)
        pooled: Tensor = self.attn_pool(x, log_counts, sequence, padding)
        return pooled


def doy_encoding(doy: Tensor, width: int) -> Tensor:
    """Return the sinusoidal encoding of the raw day of year, (...) to (..., width): sine on even channels."""
    rates = torch.exp(torch.arange(0, width, 2, device=doy.device).float() * -(math.log(10000.0) / width))
    angles = doy[..., None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Transformer(nn.Module):
    """A stack of post-norm layers; holds the name `layers` of the checkpoints."""

    def __init__(self, d: int, n_heads: int, feedforward: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PostNormLayer(d, n_heads, feedforward) for _ in range(n_layers))


class PostNormLayer(nn.Module):
    """Attention, then a feed-forward network, LayerNorm after each sum: torch's own layer, with a bias on the keys."""

    def __init__(self, d: int, n_heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d, n_heads)
        self.linear1, self.linear2 = nn.Linear(d, feedforward), nn.Linear(feedforward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        x = self.norm1(x + self.self_attn(x, bias))
        out: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention with one input projection, named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        out: Tensor = self.out_proj(attend(q, k, v, self.n_heads, bias))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, bias: Tensor | None) -> Tensor:
    """Attend, (B, T, d) each, by heads; `bias` (B, 1, 1, T) is added to the logits of the keys."""
    q, k, v = (t.view(*t.shape[:-1], n_heads, -1).transpose(1, 2) for t in (q, k, v))  # (B, h, T, d/h)
    mask = None if bias is None else bias.to(q.dtype).expand(-1, -1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


class QKNormLayer(nn.Module):
    """A transformer layer whose queries and keys are normalised head by head; post-norm, or pre-norm if asked.

    Parameters
    ----------
    d, n_heads, feedforward : int
        Sizes.
    pre_norm : bool
        LayerNorm before attention and feed-forward (the teacher), not after (students).
    """

    def __init__(self, d: int, n_heads: int, feedforward: int, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.n_heads, self.pre_norm = n_heads, pre_norm
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.q_norm, self.k_norm = RMSNorm(d // n_heads), RMSNorm(d // n_heads)
        self.linear1, self.linear2 = nn.Linear(d, feedforward), nn.Linear(feedforward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        if self.pre_norm:
            x = x + self.attention(self.norm1(x), bias)
            out: Tensor = x + self.linear2(F.relu(self.linear1(self.norm2(x))))
        else:
            x = self.norm1(x + self.attention(x, bias))
            out = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return out

    def attention(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        q, k = (
            norm(proj(x).view(*x.shape[:-1], self.n_heads, -1)).flatten(-2)
            for norm, proj in ((self.q_norm, self.q_proj), (self.k_norm, self.k_proj))
        )
        out: Tensor = self.out_proj(attend(q, k, self.v_proj(x), self.n_heads, bias))
        return out


class RMSNorm(nn.Module):
    """Divide by the root mean square of the last axis, in float32, then scale."""

    def __init__(self, d: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps).to(x.dtype)


class AttentionPooling(nn.Module):
    """A weighted mean over time; the weights come from the tokens themselves or from a GRU that read them in order."""

    def __init__(self, d: int, pooling: Pooling) -> None:
        super().__init__()
        self.query = nn.Linear(d, 1)
        self.temporal_context: nn.Module | None = None
        if pooling == "torch_gru":
            self.temporal_context = nn.GRU(d, d, batch_first=True)
        elif pooling == "gru":
            self.temporal_context = GRU(d)
            self.layer_norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, log_counts: Tensor | None, sequence: Tensor | None, padding: Tensor | None) -> Tensor:
        """(B, T, d) to (B, d)."""
        if self.temporal_context is None:
            logits = self.query(x).squeeze(-1).float()  # (B, T)
            weights = (logits if log_counts is None else logits + log_counts).softmax(dim=-1)
            return weighted_mean(weights, x)
        steps = x if sequence is None else x.take_along_dim(sequence[..., None], dim=1)  # (B, L, d)
        logits = self.query(self.context(steps)).squeeze(-1).float()
        weights = (logits if padding is None else logits + padding).softmax(dim=-1)  # (B, L)
        return weighted_mean(weights, steps)

    def context(self, steps: Tensor) -> Tensor:
        """Return the GRU's state at every step, (B, L, d) to (B, L, d), normalised in the versions that do so."""
        if isinstance(self.temporal_context, nn.GRU):
            states: Tensor = self.temporal_context(steps)[0]
            return states
        assert isinstance(self.temporal_context, GRU)
        out: Tensor = self.layer_norm(self.temporal_context(steps))
        return out


def weighted_mean(weights: Tensor, x: Tensor) -> Tensor:
    """Sum x (B, T, d) by weights (B, T), to (B, d)."""
    return torch.bmm(weights.to(x.dtype)[:, None], x).squeeze(1)


class GRU(nn.Module):
    """TESSERA's own recurrent unit, over a whole series."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.gru_cell = GRUCell(d)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d) to (B, L, d)."""
        cell = self.gru_cell
        inputs = cell.project(x)  # (B, L, 3d)
        state, states = torch.zeros_like(x[:, 0]), []
        for step in inputs.unbind(dim=1):
            state = cell(step, state)
            states.append(state)
        return torch.stack(states, dim=1)


class GRUCell(nn.Module):
    """A gated unit whose reset gate acts BEFORE the hidden product, unlike torch's; the two don't agree."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.W_ir, self.W_iz, self.W_ih = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.W_hr, self.W_hz, self.W_hh = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.b_r, self.b_z, self.b_h = (nn.Parameter(torch.zeros(d)) for _ in range(3))

    def project(self, x: Tensor) -> Tensor:
        """Return what the inputs add to the three gates, (..., d) to (..., 3d): one product for the whole series."""
        weight = torch.cat([self.W_ir.weight, self.W_iz.weight, self.W_ih.weight])
        return F.linear(x, weight, torch.cat([self.b_r, self.b_z, self.b_h]))

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """Advance one step: projected inputs (B, 3d) and state (B, d) to the next state (B, d)."""
        from_r, from_z, from_h = inputs.chunk(3, dim=-1)
        r = torch.sigmoid(from_r + self.W_hr(state))
        z = torch.sigmoid(from_z + self.W_hz(state))
        proposal = torch.tanh(from_h + self.W_hh(r * state))
        return (1 - z) * state + z * proposal
