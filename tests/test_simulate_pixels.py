"""Simulated d-pixels: the contract, and that they come from all over the world."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_xr.errors import SchemaError
from tessera_xr.sentinel.simulate import simulate_pixels
from tessera_xr.sentinel.simulation.covers import CODES, COVERS


@pytest.fixture(scope="module")
def pixels():
    return simulate_pixels(4096, seed=1)


def test_pixels_contract(pixels):
    n, t2, t1 = len(pixels), len(pixels.s2_doy), len(pixels.s1_doy)
    assert (pixels.s2.shape, pixels.s2.dtype) == ((n, t2, 10), np.uint16)
    assert (pixels.s1.shape, pixels.s1.dtype) == ((n, t1, 2), np.int16)
    assert (pixels.s2_valid.shape, pixels.s2_valid.dtype) == ((n, t2), bool)
    assert pixels.s1_orbit.shape == (t1,)
    for doy in (pixels.s2_doy, pixels.s1_doy):
        assert (np.diff(doy) >= 0).all()
        assert doy.min() >= 1
        assert doy.max() <= 366
    assert (pixels.s2[pixels.s2_valid] > 0).all()
    assert set(np.unique(pixels.land_cover)) <= set(COVERS)
    assert np.array_equal(pixels.place, np.arange(n) // 64)


def test_pixels_repeat_with_the_seed(pixels):
    again = simulate_pixels(4096, seed=1)
    for name in ("s2", "s2_valid", "s1", "land_cover", "latitude"):
        assert np.array_equal(getattr(pixels, name), getattr(again, name)), name
    assert not np.array_equal(pixels.s2, simulate_pixels(4096, seed=2).s2)


@pytest.mark.parametrize("n", [1, 63, 65, 300])
def test_any_number_of_pixels(n):
    found = simulate_pixels(n)
    assert len(found) == n
    assert found.s2_valid.any(axis=1).mean() > 0.9
    assert (found.latitude != 0).all()


def test_pixels_span_hemispheres_orbits_and_seasons(pixels):
    assert pixels.latitude.min() < -30
    assert pixels.latitude.max() > 50
    lacks = [(pixels.s1[:, pixels.s1_orbit == orbit] == 0).all(axis=(1, 2)) for orbit in ("ascending", "descending")]
    assert all(0.05 < lack.mean() < 0.3 for lack in lacks)
    assert not (lacks[0] & lacks[1]).any()
    red, nir = (pixels.s2[..., i].astype(float) for i in (0, 3))
    ndvi = np.where(pixels.s2_valid, (nir - red) / np.maximum(nir + red, 1), np.nan)
    summer = (pixels.s2_doy > 150) & (pixels.s2_doy < 240)
    trees = pixels.land_cover == CODES["deciduous_forest"]
    winter = pixels.s2_doy < 50
    for part, sign in ((pixels.latitude > 35, 1), (pixels.latitude < -35, -1)):
        july, january = (np.nanmedian(ndvi[trees & part][:, days]) for days in (summer, winter))
        assert sign * (july - january) > 0.15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "1 or above"),
        ({"n": 8, "latitudes": (40, 30)}, "low, high"),
        ({"n": 8, "cloudiness": (0.2, 1.0)}, "0.95"),
        ({"n": 8, "seed": 1.5}, "whole number"),
    ],
)
def test_bad_arguments_of_pixels(arguments, words):
    with pytest.raises(SchemaError, match=list(arguments)[-1]) as caught:
        simulate_pixels(**arguments)
    assert words in str(caught.value)
