"""The sizes of an encoder, known without torch, so that the table of models is light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Pooling: TypeAlias = Literal["torch_gru", "gru", "attention"]


@dataclass(frozen=True)
class Architecture:
    """The sizes and variants that tell one encoder from another."""

    latent_dim: int
    """The model width is four times this."""
    n_layers: int
    """Transformer layers in each backbone."""
    n_heads: int
    """Attention heads."""
    feedforward: int
    """Width of the hidden layer in each transformer layer."""
    n_out: int = 128
    """Length of the vector that leaves the reducer; the embedding is its first values."""
    pooling: Pooling = "attention"
    """How a series becomes one vector: attention, or attention over GRU states (torch's GRU or TESSERA's own)."""
    deep_reducer: bool = True
    """Two linear layers after the backbones, not one."""
    final_norm: bool = True
    """LayerNorm without parameters at the end."""
    qk_norm: bool = False
    """RMSNorm on queries and keys."""

    @property
    def width(self) -> int:
        """The model width d."""
        return 4 * self.latent_dim
