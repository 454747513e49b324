"""Level the output of a trained encoder: few components carry most of its variance, and heads hear little else.

A linear map, found from unlabelled pixels and folded into the last layer, so that the network stays what it was.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.pretraining.views import View

LEAST_RELIABLE = 0.02
SUPPRESSION = 4
AT_ONCE = 1024


def level_output(network: TesseraEncoder, whole: View, first: View, second: View, *, power: float) -> TesseraEncoder:
    """Return the network with its output turned to principal components, in order, and their variances levelled.

    Each component is divided by its variance to the `power`, and multiplied by the fourth power of its reliability: the
    share of its variance that two samplings of the same pixels have in common. What is only noise of the sampling stays
    small, so that two samplings stay alike, and the first values of the embedding hold most of it.

    Parameters
    ----------
    network : TesseraEncoder
        In evaluation mode; stays as it is.
    whole, first, second : View
        The same pixels, on the network's device: seen fully, and by two random samplings.
    power : float
        0 only turns the output, 0.5 would whiten it.
    """
    out = copy.deepcopy(network)
    last = out.dim_reducer[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        mean, turn = levelling(*(_outputs(network, view) for view in (whole, first, second)), power=power)
        weight, bias = (p.cpu().double() for p in (last.weight, last.bias))  # not every device has float64
        last.weight.copy_(turn @ weight)
        last.bias.copy_(turn @ (bias - mean))
    return out


def _outputs(network: TesseraEncoder, view: View) -> Tensor:
    """Return what the last linear layer gives, (B, D) float64."""
    found = []
    for start in range(0, len(view), AT_ONCE):
        parts = slice(start, start + AT_ONCE)
        pooled = [
            backbone(sensor.x[parts], sensor.doy[parts])
            for backbone, sensor in ((network.s2_backbone, view.s2), (network.s1_backbone, view.s1))
        ]
        found.append(network.dim_reducer(torch.cat(pooled, dim=-1)).cpu().double())
    return torch.cat(found)


def levelling(whole: Tensor, first: Tensor, second: Tensor, *, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) to subtract and the map (D, D) to apply to outputs (B, D); see `level_output`."""
    mean = whole.mean(dim=0)
    variance, axes = torch.linalg.eigh(torch.cov(whole.T))
    variance, axes = variance.flip(0).clamp_min(1e-12), axes.flip(1)
    axes = axes * torch.where(axes.sum(dim=0) < 0, -1.0, 1.0)  # the sign of an eigenvector is anyone's
    noise = ((first - second) @ axes).square().mean(dim=0) / 2
    reliability = (1 - noise / variance).clamp(LEAST_RELIABLE, 1)
    factor = variance**-power * reliability**SUPPRESSION
    factor = factor / (variance * factor.square()).mean().sqrt()
    return mean, factor[:, None] * axes.T
