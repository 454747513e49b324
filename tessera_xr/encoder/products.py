"""Products of a CPU's tokens with the weights of a layer, by the library that does them fastest on this processor."""

from __future__ import annotations

import math
from functools import cache
from typing import TypeAlias

import torch
from llvmlite import binding  # type: ignore[import-untyped]
from torch import Tensor

from tessera_xr.encoder.attention import Floats, kernel

ROW_STEP = 32
"""oneDNN compiles a product for every number of rows it meets, so these are rounded up to a multiple of this."""


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


class PlainProduct:
    """torch's own product (MKL on Intel, Accelerate on a Mac), into memory that is used again.

    Parameters
    ----------
    weight : Tensor, shape (out, in)
    bias : Tensor, shape (out,), optional
        For calls and for `rectified`; `added` leaves it out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight.detach().t().contiguous()  # (in, out) is what the product reads fastest
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor, room: Room) -> Tensor:
        """Return x @ weight + bias, (M, in) to (M, out), good until the next product."""
        out = room.take("product", len(x), self.weight.shape[1])
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def rectified(self, x: Tensor, room: Room) -> Tensor:
        """Return x @ weight + bias with zeros for what is negative, good until the next product."""
        assert self.bias is not None
        out = torch.mm(x, self.weight, out=room.take("product", len(x), self.weight.shape[1]))
        add_bias_relu(out.numpy(), self.bias.numpy())
        return out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """Return to + x @ weight; `to` is lost."""
        return to.addmm_(x, self.weight)


class PackedProduct:
    """oneDNN's product by weights packed once, with bias, ReLU and sum while the results are in registers."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 1024)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor, room: Room) -> Tensor:  # noqa: ARG002 - it makes room by itself
        """Return x @ weight + bias, (M, in) to (M, out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out

    def rectified(self, x: Tensor, room: Room) -> Tensor:  # noqa: ARG002
        """Return x @ weight + bias with zeros for what is negative."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "relu", [], "")
        return out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """Return to + x @ weight."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, to, self.weight, None, "add")
        return out


class RoundedProduct:
    """oneDNN's product of values rounded to bfloat16, summed in float32; what it gives is rounded once more."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        rounded = weight.detach().bfloat16().contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(rounded, 1024)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def __call__(self, x: Tensor, room: Room) -> Tensor:  # noqa: ARG002 - it makes room by itself
        """Return x @ weight + bias in float32, (M, in) to (M, out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "")
        return out.float()

    def rectified(self, x: Tensor, room: Room) -> Tensor:  # noqa: ARG002
        """Return x @ weight + bias with zeros for what is negative, in bfloat16, as the next product wants it."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, "relu", [], "")
        return out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """Return to + x @ weight in float32; `to` is lost."""
        return to.add_(torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, None, "none", [], ""))


Product: TypeAlias = PlainProduct | PackedProduct | RoundedProduct


def make_product(weight: Tensor, bias: Tensor | None = None, precision: torch.dtype = torch.float32) -> Product:
    """Return the fastest product on this machine, of values in a number format."""
    if precision == torch.bfloat16:
        return RoundedProduct(weight, bias)
    return (PackedProduct if packs() else PlainProduct)(weight, bias)


@cache
def rounds() -> bool:
    """Say whether products in bfloat16 run by oneDNN here."""
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def packs() -> bool:
    """Say whether oneDNN is faster here than what torch multiplies with: on AMD's processors, where that is MKL."""
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return known and torch.backends.mkl.is_available() and binding.get_host_cpu_name().startswith("znver")  # type: ignore[no-untyped-call]


@kernel
def add_bias_relu(x: Floats, bias: Floats) -> None:
    """Add `bias` (d,) to every row of x (M, d), then set negative values to zero."""
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[i, c] = max(x[i, c] + bias[c], 0)
