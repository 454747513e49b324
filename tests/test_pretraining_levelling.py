"""Levelling: components in order, variances as asked, noise kept small, the network's form unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.pretraining.levelling import LEAST_RELIABLE, SUPPRESSION, level_output, levelling
from tessera_xr.pretraining.views import SensorView, View


def outputs(n=4000, dims=6, noise=0.0, seed=0):
    """Signals of falling variance in a random basis, and two noisy samplings of them."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    basis = torch.linalg.qr(normal(dims, dims))[0]
    signal = normal(n, dims) * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    views = [signal + noise * normal(n, dims) for _ in range(2)]
    return [x @ basis.T + 3 for x in (signal, *views)]


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_components_come_in_order_with_their_variances_levelled(power):
    whole, *views = outputs()
    mean, turn = levelling(whole, *views, power=power)
    levelled = (whole - mean) @ turn.T
    covariance = torch.cov(levelled.T)
    variance = covariance.diagonal()
    assert (covariance - torch.diag(variance)).abs().max() < 1e-9
    before = torch.linalg.eigvalsh(torch.cov(whole.T)).flip(0)
    expected = before ** (1 - 2 * power)
    torch.testing.assert_close(variance / variance.sum(), expected / expected.sum())
    torch.testing.assert_close(variance.mean(), torch.tensor(1.0, dtype=torch.float64))
    assert levelled.mean(dim=0).abs().max() < 1e-9


def test_components_that_two_samplings_do_not_share_stay_small():
    whole, *views = outputs()
    quiet = levelling(whole, *views, power=0.5)
    noisy = levelling(*outputs(n=40_000, noise=0.4), power=0.5)
    spread = [((whole - mean) @ turn.T).std(dim=0) for mean, turn in (quiet, noisy)]
    share = spread[1] / spread[0] / (spread[1] / spread[0])[0]
    signal = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]).double() ** 2
    reliability = (1 - 0.4**2 / signal).clamp_min(LEAST_RELIABLE) ** SUPPRESSION
    torch.testing.assert_close(share, reliability / reliability[0], atol=0.04, rtol=0)


def test_the_map_depends_on_the_pixels_not_on_the_sign_an_eigenvector_happens_to_have():
    whole, *views = outputs()
    turn = levelling(whole, *views, power=0.25)[1]
    assert (turn.sum(dim=1) >= 0).all()


def views_of(n=300, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def sensor(bands):
        doy = torch.randint(1, 366, (n, steps), generator=generator).sort(dim=1).values
        return SensorView(torch.randn(n, steps, bands, generator=generator), doy)

    return View(sensor(10), sensor(2))


def test_it_is_folded_into_the_last_layer_and_the_network_given_is_left_alone():
    torch.manual_seed(0)
    network = TesseraEncoder(replace(Architecture(4, 1, 2, 16, n_out=16), final_norm=False)).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    views = [views_of(seed=k) for k in range(3)]
    levelled = level_output(network, *views, power=0.25)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    changed = {k for k, v in levelled.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"dim_reducer.4.weight", "dim_reducer.4.bias"}

    def embed(net, view):
        with torch.no_grad():
            pooled = net.s2_backbone(view.s2.x, view.s2.doy), net.s1_backbone(view.s1.x, view.s1.doy)
            return net.fuse(*pooled).double()

    mean, turn = levelling(*(embed(network, v) for v in views), power=0.25)
    torch.testing.assert_close(
        embed(levelled, views[0]), (embed(network, views[0]) - mean) @ turn.T, atol=1e-4, rtol=1e-4
    )
