"""Each loss against plain NumPy, and against what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera_xr.pretraining.losses import (
    barlow_twins,
    fake_quantize,
    mix_regulariser,
    prefixes,
    rank_me,
    rebuild,
    reconstruction,
)

LAMBDA = 5e-3
B, D = 32, 6


def standard(z):
    return (z - z.mean(axis=0)) / z.std(axis=0)


def correlation(a, b):
    """C_ij, one pair of columns at a time."""
    a, b = standard(a), standard(b)
    return np.array([[(a[:, i] * b[:, j]).mean() for j in range(b.shape[1])] for i in range(a.shape[1])])


def numpy_barlow_twins(z1, z2):
    c = correlation(z1, z2)
    on = sum((1 - c[i, i]) ** 2 for i in range(D))
    off = sum(c[i, j] ** 2 for i in range(D) for j in range(D) if i != j)
    return on + LAMBDA * off


def numpy_mix(z1, z2, zm, a, perm):
    first = correlation(zm, z1) - (a * correlation(z1, z1) + (1 - a) * correlation(z2[perm], z1))
    second = correlation(zm, z2) - (a * correlation(z1, z2) + (1 - a) * correlation(z2[perm], z2))
    return LAMBDA * ((first**2).sum() + (second**2).sum())


@pytest.fixture
def z():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(3, B, D)) @ rng.normal(size=(D, D))
    return base + rng.normal(size=(B, D))


def tensors(*arrays):
    return [torch.from_numpy(a) for a in arrays]


def test_barlow_twins_is_the_formula(z):
    assert float(barlow_twins(*tensors(z[0], z[1]), LAMBDA)) == pytest.approx(numpy_barlow_twins(z[0], z[1]), rel=1e-5)


def test_barlow_twins_invariances(z):
    rng = np.random.default_rng(0)
    a, b = tensors(z[0], z[1])
    loss = float(barlow_twins(a, b))
    order, dims = torch.from_numpy(rng.permutation(B)), torch.from_numpy(rng.permutation(D))
    assert float(barlow_twins(b, a)) == pytest.approx(loss, rel=1e-5)
    assert float(barlow_twins(a * 3 + 7, b * torch.arange(1, D + 1))) == pytest.approx(loss, rel=1e-5)
    assert float(barlow_twins(a[order], b[order])) == pytest.approx(loss, rel=1e-5)
    assert float(barlow_twins(a[:, dims], b[:, dims])) == pytest.approx(loss, rel=1e-5)
    assert float(barlow_twins(a[order], b)) > loss  # pairs matter


def test_barlow_twins_is_zero_for_equal_uncorrelated_views():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(barlow_twins(signs, signs)) == pytest.approx(0, abs=1e-8)
    same = signs[:, :1].expand(-1, 2)
    assert float(barlow_twins(same, same, LAMBDA)) == pytest.approx(2 * LAMBDA, rel=1e-5)


def test_correlations_keep_their_digits_under_bfloat16(z):
    a, b = (x.float() for x in tensors(z[0], z[1]))
    with torch.autocast("cpu", torch.bfloat16):
        found = barlow_twins(a, b)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(barlow_twins(a, b)), rel=1e-6)


def test_mix_is_the_formula(z):
    perm = np.random.default_rng(1).permutation(B)
    found = mix_regulariser(*tensors(z[0], z[1], z[2]), 0.3, torch.from_numpy(perm), LAMBDA)
    assert float(found) == pytest.approx(numpy_mix(z[0], z[1], z[2], 0.3, perm), rel=1e-5)


def test_mix_is_zero_where_nothing_is_mixed(z):
    z1, z2 = tensors(z[0], z[1])
    perm = torch.from_numpy(np.random.default_rng(1).permutation(B))
    assert float(mix_regulariser(z1, z2, z1, 1.0, perm)) == pytest.approx(0, abs=1e-10)
    assert float(mix_regulariser(z1, z2, z2[perm], 0.0, perm)) == pytest.approx(0, abs=1e-10)
    assert float(mix_regulariser(z1, z2, z1, 0.0, perm)) > 1e-4
    assert float(mix_regulariser(z1, z2, z2, 0.0, perm)) > 1e-4  # the permutation counts


def test_mix_does_not_see_scales(z):
    z1, z2, zm = tensors(*z)
    perm = torch.from_numpy(np.random.default_rng(1).permutation(B))
    loss = float(mix_regulariser(z1, z2, zm, 0.4, perm))
    assert float(mix_regulariser(2 * z1 + 1, 3 * z2, zm / 5 - 2, 0.4, perm)) == pytest.approx(loss, rel=1e-4)


def test_fake_quantize_rounds_to_int8_with_one_scale(z):
    x = z[0].astype(np.float32)
    scale = np.abs(x).max() / 127
    expected = np.clip(np.round(x / scale), -128, 127) * scale
    found = fake_quantize(torch.from_numpy(x)).numpy()
    assert np.allclose(found, expected, atol=1e-6)
    assert len(np.unique(np.round(found / scale))) <= 255
    assert np.allclose(fake_quantize(torch.from_numpy(found)).numpy(), found, atol=1e-6)
    assert np.abs(found - x).max() <= scale / 2 * 1.001


def test_fake_quantize_passes_the_gradient_and_takes_zeros():
    x = torch.randn(8, 4, requires_grad=True)
    weights = torch.randn(8, 4)
    (fake_quantize(x) * weights).sum().backward()
    assert torch.equal(x.grad, weights)
    assert torch.equal(fake_quantize(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_prefixes_keep_the_first_values():
    x = torch.arange(1.0, 9.0).reshape(2, 4)
    short, longer = prefixes(x, (1, 3))
    assert torch.equal(short, torch.tensor([[1.0, 0, 0, 0], [5.0, 0, 0, 0]]))
    assert torch.equal(longer[:, :3], x[:, :3])
    assert not longer[:, 3].any()


def test_rebuild_is_the_mean_of_the_heads_errors(z):
    x, target = tensors(z[0].astype(np.float32), z[1].astype(np.float32))
    heads = {2: torch.nn.Linear(2, D), 4: torch.nn.Linear(4, D)}
    errors = [
        ((z[0][:, :k] @ h.weight.detach().numpy().T + h.bias.detach().numpy() - z[1]) ** 2).mean()
        for k, h in heads.items()
    ]
    assert float(rebuild(x, heads, target).detach()) == pytest.approx(np.mean(errors), rel=1e-4)


def test_rebuild_trains_the_first_values_only_and_not_its_target():
    x = torch.randn(8, 4, requires_grad=True)
    rebuild(x, {2: torch.nn.Linear(2, 4)}, x).backward()
    assert x.grad[:, :2].abs().sum() > 0
    assert x.grad[:, 2:].abs().sum() == 0


def test_reconstruction_counts_only_what_is_known(z):
    known = np.random.default_rng(0).random((B, D)) < 0.5
    expected = ((z[0] - z[1]) ** 2)[known].mean()
    target = np.where(known, z[1], np.nan)
    found = reconstruction(*tensors(z[0].astype(np.float32), target.astype(np.float32), known))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(reconstruction(*tensors(z[0], z[1], np.zeros((B, D), bool)))) == 0


def test_rank_me_against_numpy_and_its_bounds(z):
    singular = np.linalg.svd(z[0], compute_uv=False)
    p = singular / singular.sum()
    assert rank_me(torch.from_numpy(z[0])) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    assert rank_me(torch.from_numpy(5 * z[0] @ turn)) == pytest.approx(rank_me(torch.from_numpy(z[0])), rel=1e-6)
    assert rank_me(torch.ones(20, 5)) == pytest.approx(1, abs=1e-6)
    assert rank_me(torch.eye(7)) == pytest.approx(7, rel=1e-6)
