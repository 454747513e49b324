"""Two small networks that learn labels from embeddings: one looks at a pixel, the other at its surroundings too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from threading import Lock
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

Doubles: TypeAlias = npt.NDArray[np.float64]
Layer: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
TILE, SLAB = 256, 8192
"""Pixels that pass through all layers while they are in a core's cache, and that a thread takes at once."""


def draw_weights(network: nn.Module, generator: Generator) -> None:
    """Draw all weights anew, uniformly as torch does by default (He et al. 2015 with a = sqrt(5))."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for weight in (module.weight, module.bias):
                if weight is not None:
                    nn.init.uniform_(weight, -bound, bound, generator=generator)


def _normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Apply BatchNorm: its averages are right from the first step on, and a single value is taken as it is."""
    if not norm.training:
        return cast("Tensor", norm(x))
    if x.numel() == x.shape[1]:  # no variance: go by the averages
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    norm.momentum = max(0.1, 1 / (int(cast("Tensor", norm.num_batches_tracked)) + 1))
    return cast("Tensor", norm(x))


# Pixels --------------------------------------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Linear layers, with BatchNorm, ReLU and dropout in between.

    Parameters
    ----------
    widths : sequence of int
        Of the input, the hidden layers and the output.
    dropout : float
        Share of the hidden values left out in training.
    generator : Generator
        On the CPU, for the first weights.
    """

    def __init__(self, widths: Sequence[int], dropout: float, generator: Generator) -> None:
        super().__init__()
        self.dropout = dropout
        linears = [nn.Linear(a, b, device="meta").to_empty(device="cpu") for a, b in pairwise(widths)]
        self.linears = nn.ModuleList(linears)
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for width in widths[1:-1]])
        draw_weights(self, generator)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map (n, d) to (n, C); in training `generator` draws what is left out."""
        *hidden, last = self.linears
        for linear, norm in zip(hidden, self.norms, strict=True):
            x = functional.relu(_normalise(cast("nn.BatchNorm1d", norm), linear(x)))
            if self.training and self.dropout:
                x = x * _draw_kept(x, self.dropout, generator)
        return cast("Tensor", last(x))


def _draw_kept(x: Tensor, dropout: float, generator: Generator | None) -> Tensor:
    """Return 0 for values to leave out, else what makes up for them; a byte of chance each is quicker than a float."""
    level = round(256 * dropout)
    chance = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    chance.random_(-(2**63), None, generator=generator)
    kept = chance.view(torch.uint8)[: x.numel()].view_as(x) >= level
    return kept.to(x.dtype).mul_(256 / (256 - level))


def fold(network: Perceptron, mean: Doubles, scale: Doubles) -> list[Layer]:
    """Return weights (out, in) and biases (out,) of layers with only ReLU in between, which do the same.

    BatchNorm and the standardising of the input, (x - mean) / scale, are multiplied in.
    """
    layers = []
    for i, linear in enumerate(network.linears):
        weight, bias = (_doubles(p) for p in (linear.weight, linear.bias))
        if i == 0:
            weight = weight / scale
            bias = bias - (weight * mean).sum(axis=1)
        if i < len(network.norms):
            norm = cast("nn.BatchNorm1d", network.norms[i])
            gain = _doubles(norm.weight) / np.sqrt(_doubles(norm.running_var) + norm.eps)
            bias = (bias - _doubles(norm.running_mean)) * gain + _doubles(norm.bias)
            weight = weight * gain[:, None]
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
    return layers


def _doubles(tensor: Any) -> Doubles:
    return cast("Doubles", tensor.detach().cpu().double().numpy())


def run_folded(
    layers: Sequence[Layer], X: npt.NDArray[Any], device: torch.device, *, softmax: bool
) -> npt.NDArray[np.float32]:
    """Run folded layers on rows (n, d) of any float type; return (n, C) float32.

    On the CPU each core takes slabs of rows, and passes tiles of always the same size through all layers within its
    cache: what a row gives depends neither on the rows around it nor on the number of cores.
    """
    if device.type != "cpu":
        return _run_on_device(layers, X, device, softmax=softmax)
    from tessera_xr.encoder.forward import in_threads

    parameters = [(torch.from_numpy(weight).t(), torch.from_numpy(bias)) for weight, bias in layers]
    out = np.empty((len(X), len(layers[-1][1])), dtype=np.float32)

    def work(start: int) -> None:
        _run_slab(parameters, X[start : start + SLAB], out[start : start + SLAB], softmax=softmax)

    for _ in in_threads(work, range(0, len(X), SLAB)):
        pass
    return out


def _run_slab(
    parameters: Sequence[tuple[Tensor, Tensor]], X: npt.NDArray[Any], out: npt.NDArray[np.float32], *, softmax: bool
) -> None:
    rooms = [torch.zeros(TILE, len(parameters[0][0])), *(torch.empty(TILE, len(bias)) for _, bias in parameters)]
    with torch.inference_mode():
        for start in range(0, len(X), TILE):
            n = min(TILE, len(X) - start)
            rooms[0].numpy()[:n] = X[start : start + n]
            for i, (weight, bias) in enumerate(parameters):
                torch.addmm(bias, rooms[i], weight, out=rooms[i + 1])
                if i + 1 < len(parameters):
                    rooms[i + 1].relu_()
            found = torch.softmax(rooms[-1], dim=1) if softmax else rooms[-1]
            out[start : start + n] = found.numpy()[:n]


def _run_on_device(
    layers: Sequence[Layer], X: npt.NDArray[Any], device: torch.device, *, softmax: bool
) -> npt.NDArray[np.float32]:
    out = np.empty((len(X), len(layers[-1][1])), dtype=np.float32)
    parameters = [(torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device)) for weight, bias in layers]
    with torch.inference_mode():
        for start in range(0, len(X), 1 << 17):
            part = slice(start, start + (1 << 17))
            x = torch.from_numpy(np.array(X[part], dtype=np.float32)).to(device)
            for i, (weight, bias) in enumerate(parameters):
                x = functional.linear(x, weight, bias)
                x = x.relu_() if i + 1 < len(parameters) else x
            out[part] = (torch.softmax(x, dim=1) if softmax else x).cpu().numpy()
    return out


_COPIES: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
_COPYING = Lock()


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a network as it is on the CPU, else its one copy on the device, which threads can share."""
    if device.type == "cpu":
        return network
    with _COPYING:
        if network not in _COPIES:
            _COPIES[network] = deepcopy(network).to(device)
        return _COPIES[network]


# Images --------------------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Twice 3 x 3 convolution, BatchNorm and ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        sizes = ((n_in, n_out), (n_out, n_out))
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(a, b, 3, padding=1, bias=False, device="meta").to_empty(device="cpu") for a, b in sizes]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(n_out) for _ in sizes])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, y, x) to (B, n_out, y, x)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(_normalise(cast("nn.BatchNorm2d", norm), convolution(x)), inplace=True)
        return x


class UNet(nn.Module):
    """Down by max-pooling, up by transposed convolutions, with what was there on the way down beside it.

    Parameters
    ----------
    n_bands, n_out : int
        Values of a pixel, in and out.
    features : sequence of int
        Channels on the way down, from the full resolution on; each step halves it.
    bottleneck : int
        Channels at the coarsest resolution.
    generator : Generator
        On the CPU, for the first weights.
    """

    def __init__(
        self, n_bands: int, n_out: int, features: Sequence[int], bottleneck: int, generator: Generator
    ) -> None:
        super().__init__()
        widths = [n_bands, *features]
        self.down = nn.ModuleList([Convolutions(a, b) for a, b in pairwise(widths)])
        self.deepest = Convolutions(widths[-1], bottleneck)
        coarser = [bottleneck, *reversed(features)]
        self.widen = nn.ModuleList(
            [nn.ConvTranspose2d(a, b, 2, stride=2, device="meta").to_empty(device="cpu") for a, b in pairwise(coarser)]
        )
        self.up = nn.ModuleList([Convolutions(2 * width, width) for width in reversed(features)])
        self.last = nn.Conv2d(features[0], n_out, 1, device="meta").to_empty(device="cpu")
        draw_weights(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_bands, y, x) to (B, n_out, y, x); y and x are multiples of 2 ** len(features)."""
        passed = []
        for block in self.down:
            x = block(x)
            passed.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.deepest(x)
        for widen, block in zip(self.widen, self.up, strict=True):
            x = block(torch.cat([passed.pop(), widen(x)], dim=1))
        return cast("Tensor", self.last(x))
