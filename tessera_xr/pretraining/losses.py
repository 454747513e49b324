"""The losses of the recipe: pure functions of tensors. B pixels, D values each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

STD_EPSILON = 1e-9


def standardize(z: Tensor) -> Tensor:
    """Return z (B, D) with mean 0 and (biased) standard deviation 1 in each column, in float32."""
    z = z.float()
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + STD_EPSILON).sqrt()


def cross_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of every column of `a` with every column of `b`, both standardised: (B, D) to (D, D)."""
    with torch.autocast(a.device.type, enabled=False):  # the sums of squares below need all digits
        return a.T @ b / len(a)


def barlow_twins(z1: Tensor, z2: Tensor, redundancy: float = 5e-3) -> Tensor:
    """Return the Barlow Twins loss: the views agree, and each value says something of its own.

    Parameters
    ----------
    z1, z2 : Tensor, shape (B, D)
        Projections of two views.
    redundancy : float
        Weight of the off-diagonal part, lambda.

    Returns
    -------
    Tensor, scalar
        sum_i (1 - C_ii)^2 + lambda * sum_{i != j} C_ij^2.
    """
    c = cross_correlation(standardize(z1), standardize(z2))
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + redundancy * (c.square().sum() - diagonal.square().sum())


def mix_regulariser(
    z1: Tensor, z2: Tensor, mixed: Tensor, share: float | Tensor, permutation: Tensor, redundancy: float = 5e-3
) -> Tensor:
    """Return how far the projections of mixed inputs are from correlating like a mixture.

    Parameters
    ----------
    z1, z2 : Tensor, shape (B, D)
        Projections of two views.
    mixed : Tensor, shape (B, D)
        Projections of ``share * view1 + (1 - share) * view2[permutation]``.
    share : float
        Of the first view.
    permutation : Tensor of int, shape (B,)
    redundancy : float
        Weight, lambda.

    Returns
    -------
    Tensor, scalar
        lambda * the sum of squares of C(zm, z1) - [a C(z1, z1) + (1-a) C(z2[perm], z1)], and of the same with z2 in
        place of the second z1.
    """
    z1, z2, mixed = standardize(z1), standardize(z2), standardize(mixed)
    other = z2[permutation]
    total = z1.new_zeros(())
    for z in (z1, z2):
        expected = share * cross_correlation(z1, z) + (1 - share) * cross_correlation(other, z)
        total = total + (cross_correlation(mixed, z) - expected).square().sum()
    return redundancy * total


def fake_quantize(x: Tensor) -> Tensor:
    """Round to int8 and back, with one scale (largest magnitude / 127) for the batch; the gradient passes straight.

    Parameters
    ----------
    x : Tensor, any shape

    Returns
    -------
    Tensor
        Like `x`.
    """
    scale = x.detach().abs().amax().clamp_min(torch.finfo(torch.float32).tiny) / 127
    rounded = (x.detach() / scale).round().clamp(-128, 127) * scale
    return x + (rounded - x.detach())


def prefixes(x: Tensor, dims: Iterable[int]) -> Iterator[Tensor]:
    """Yield x (B, D) with all but its first k values set to zero, for each k: what a Matryoshka loss is taken of."""
    for k in dims:
        yield x * (torch.arange(x.shape[1], device=x.device) < k)


def rebuild(x: Tensor, heads: Mapping[int, Callable[[Tensor], Tensor]], target: Tensor) -> Tensor:
    """Return the error of rebuilding `target` linearly from the first k values, averaged over k.

    With the whole embedding as target it makes a Matryoshka; with a teacher's, it distils (v2's way).

    Parameters
    ----------
    x : Tensor, shape (B, D)
        Embeddings.
    heads : mapping of int to callable
        For each k a linear map, (B, k) to (B, E).
    target : Tensor, shape (B, E)
        What to rebuild; takes no gradient.

    Returns
    -------
    Tensor, scalar
        Mean squared error.
    """
    target = target.detach().float()
    errors = [(head(x[:, :k]).float() - target).square().mean() for k, head in heads.items()]
    return torch.stack(errors).mean()


def reconstruction(predicted: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Return the mean squared error over what is known.

    Parameters
    ----------
    predicted, target : Tensor, shape (B, F)
    known : Tensor of bool, shape (B, F)

    Returns
    -------
    Tensor, scalar
    """
    error = torch.where(known, predicted.float() - target, torch.zeros_like(target))
    return error.square().sum() / known.sum().clamp_min(1)


def rank_me(embeddings: Tensor) -> float:
    """Return the effective rank of embeddings (B, D): exp of the entropy of the normalised singular values.

    Between 1 (collapsed) and min(B, D). From Garrido et al. 2023.

    Examples
    --------
    >>> round(rank_me(torch.eye(8)), 3)
    8.0
    """
    singular = torch.linalg.svdvals(embeddings.detach().double())
    p = singular / singular.sum().clamp_min(1e-12) + 1e-12
    return float((-(p * p.log()).sum()).exp())
