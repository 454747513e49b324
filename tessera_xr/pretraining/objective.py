"""What is trained, and on what: the encoder, the parts that are thrown away, and the loss of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.pretraining.config import PretrainConfig
from tessera_xr.pretraining.losses import (
    barlow_twins,
    fake_quantize,
    mix_regulariser,
    prefixes,
    rebuild,
    reconstruction,
)
from tessera_xr.pretraining.targets import N_TARGETS
from tessera_xr.pretraining.views import SensorView, View, mix_views

Encode: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainBatch:
    """All that the loss of one batch of B pixels needs."""

    first: View
    second: View | None
    """None where there is no Barlow Twins."""
    share: float
    """Of the first view in the mixture."""
    permutation: Tensor
    """(B,) of the second view in the mixture."""
    target: Tensor | None = None
    """(B, F) what the auxiliary head is to rebuild."""
    known: Tensor | None = None
    """(B, F) which of it is known."""
    teacher: Tensor | None = None
    """(B, E) embeddings to distil."""

    def to(self, device: torch.device) -> TrainBatch:
        """Return it on another device."""
        second = None if self.second is None else self.second.to(device)
        rest = [None if t is None else t.to(device, non_blocking=True) for t in (self.target, self.known, self.teacher)]
        return TrainBatch(self.first.to(device), second, self.share, self.permutation.to(device), *rest)


class Trainee(nn.Module):
    """The encoder and what is thrown away after training.

    Parameters
    ----------
    config : PretrainConfig
    n_teacher : int
        Length of the teacher's embedding, for distillation.
    """

    def __init__(self, config: PretrainConfig, n_teacher: int = 0) -> None:
        super().__init__()
        n_out = config.architecture.n_out
        self.encoder = TesseraEncoder(config.architecture)
        distils = config.objective == "distillation"
        self.projector = None if distils else projector(n_out, config.projector_width, config.projector_layers)
        dims = (*config.lengths, n_out) if distils else config.lengths if config.matryoshka == "rebuild" else ()
        self.heads = nn.ModuleDict({str(k): nn.Linear(k, n_teacher if distils else n_out) for k in dims})
        self.reconstruct = nn.Linear(n_out, N_TARGETS) if config.auxiliary else None

    def encode(self, s2: Tensor, s2_doy: Tensor, s1: Tensor, s1_doy: Tensor) -> Tensor:
        """(B, T, 10), (B, T), (B, T, 2), (B, T) to (B, n_out)."""
        network = self.encoder
        return network.fuse(network.s2_backbone(s2, s2_doy), network.s1_backbone(s1, s1_doy))


def projector(n_in: int, width: int, n_layers: int) -> nn.Sequential:
    """Return Linear-BatchNorm-ReLU `n_layers` times, then Linear: (B, n_in) to (B, width)."""
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(n_in if i == 0 else width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width if n_layers else n_in, width))


def batch_losses(
    trainee: Trainee, encode: Encode, batch: TrainBatch, config: PretrainConfig, *, quantise: bool
) -> dict[str, Tensor]:
    """Return the parts of the loss of one batch, weighted: their sum is the loss.

    Parameters
    ----------
    trainee : Trainee
    encode : callable
        ``trainee.encode``, or a compiled form of it.
    batch : TrainBatch
        On the trainee's device.
    config : PretrainConfig
    quantise : bool
        Round the embeddings to int8 (and let the gradient pass).

    Returns
    -------
    dict of str to Tensor
        Scalars: of "barlow_twins", "mix", "rebuild", "reconstruction", "distillation" those that there are.
    """
    rounded = fake_quantize if quantise else _as_it_is
    vectors = [rounded(v) for v in _embed(encode, batch)]
    parts: dict[str, Tensor] = {}
    if batch.second is not None:
        mixed = None
        if config.mix_weight:
            view = mix_views(batch.first, batch.second, batch.share, batch.permutation)
            mixed = rounded(_encode(encode, view))
        parts |= _twins(trainee, vectors, mixed, batch, config)
    if batch.teacher is not None:
        spread = batch.teacher.var(dim=0, correction=0).mean().clamp_min(1e-12)
        parts["distillation"] = rebuild(vectors[0], _heads(trainee), batch.teacher) / spread
    elif len(trainee.heads):
        parts["rebuild"] = config.rebuild_weight * _mean(rebuild(v, _heads(trainee), v) for v in vectors)
    if trainee.reconstruct is not None and batch.target is not None and batch.known is not None:
        errors = (reconstruction(trainee.reconstruct(v), batch.target, batch.known) for v in vectors)
        parts["reconstruction"] = config.auxiliary * _mean(errors)
    return parts


def _twins(
    trainee: Trainee, vectors: list[Tensor], mixed: Tensor | None, batch: TrainBatch, config: PretrainConfig
) -> dict[str, Tensor]:
    """Return Barlow Twins and the mix regulariser, of the full length and of the shorter ones where asked for."""
    assert trainee.projector is not None
    project = trainee.projector
    weight = 1 / config.projector_width if config.divide_by_width else 1.0
    z1, z2 = (project(v).float() for v in vectors)
    losses = [barlow_twins(z1, z2, config.redundancy)]
    if config.matryoshka == "loss":
        shorter = zip(*(prefixes(v, config.lengths) for v in vectors), strict=True)
        losses += [barlow_twins(project(a).float(), project(b).float(), config.redundancy) for a, b in shorter]
    parts = {"barlow_twins": weight * torch.stack(losses).mean()}
    if mixed is not None:
        found = mix_regulariser(z1, z2, project(mixed).float(), batch.share, batch.permutation, config.redundancy)
        parts["mix"] = weight * config.mix_weight * found
    return parts


def _embed(encode: Encode, batch: TrainBatch) -> list[Tensor]:
    """Embed the views, both at once where they are of one length."""
    if batch.second is None:
        return [_encode(encode, batch.first)]
    a, b = batch.first, batch.second
    if (a.s2.doy.shape, a.s1.doy.shape) != (b.s2.doy.shape, b.s1.doy.shape):
        return [_encode(encode, a), _encode(encode, b)]
    both = [SensorView(torch.cat([u.x, v.x]), torch.cat([u.doy, v.doy])) for u, v in ((a.s2, b.s2), (a.s1, b.s1))]
    return list(_encode(encode, View(*both)).chunk(2))


def _encode(encode: Encode, view: View) -> Tensor:
    return encode(view.s2.x, view.s2.doy, view.s1.x, view.s1.doy)


def _heads(trainee: Trainee) -> dict[int, nn.Module]:
    return {int(k): head for k, head in trainee.heads.items()}


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _as_it_is(x: Tensor) -> Tensor:
    return x
