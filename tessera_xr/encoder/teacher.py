"""The two-billion-parameter teacher of TESSERA v2: pre-norm backbones, and a transformer over the two sensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.network import S1_BANDS, S2_BANDS, Backbone, QKNormLayer, reducer

FUSION_LAYERS, FUSION_HEADS = 2, 4


class TesseraTeacher(nn.Module):
    """As `TesseraEncoder`, with pre-norm QK-norm layers and a fusion transformer before the reducer.

    Parameters
    ----------
    arch : Architecture
        Sizes; the pooling is always attention.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.s2_backbone = TeacherBackbone(S2_BANDS, arch)
        self.s1_backbone = TeacherBackbone(S1_BANDS, arch)
        self.fusion_modality_embed = nn.Parameter(torch.zeros(2, arch.width))
        self.fusion_transformer = PreNormTransformer(arch.width, FUSION_HEADS, 2 * arch.width, FUSION_LAYERS)
        self.dim_reducer = reducer(arch)

    def fuse(self, s2: Tensor, s1: Tensor) -> Tensor:
        """Reduce the pooled vectors of both sensors, (B, d) each, to (B, n_out)."""
        x = torch.stack([s2, s1], dim=1) + self.fusion_modality_embed  # (B, 2, d)
        for layer in self.fusion_transformer.layers:
            x = layer(x, None)
        out: Tensor = self.dim_reducer(x.flatten(1))
        return F.layer_norm(out.float(), out.shape[-1:]) if self.arch.final_norm else out.float()


class PreNormTransformer(nn.Module):
    """A stack of pre-norm QK-norm layers; holds the name `layers` of the checkpoints."""

    def __init__(self, d: int, n_heads: int, feedforward: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(QKNormLayer(d, n_heads, feedforward, pre_norm=True) for _ in range(n_layers))


class TeacherBackbone(Backbone):
    """A backbone of pre-norm layers."""

    def __init__(self, n_bands: int, arch: Architecture) -> None:
        super().__init__(n_bands, arch)
        self.transformer_encoder = PreNormTransformer(arch.width, arch.n_heads, arch.feedforward, arch.n_layers)
