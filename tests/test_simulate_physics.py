"""The parts of simulated landscapes: seasons, weather, spectra, radar, passes."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_xr.sentinel.simulation.acquisitions import passes, s1_repeat, s2_repeat
from tessera_xr.sentinel.simulation.clouds import opacity, sky_field
from tessera_xr.sentinel.simulation.covers import CODES
from tessera_xr.sentinel.simulation.phenology import calendar, canopy_state, draw_seasons
from tessera_xr.sentinel.simulation.scene import speckled, spread_light, twenty_metres
from tessera_xr.sentinel.simulation.spectra import canopy_index, canopy_reflectance, material
from tessera_xr.sentinel.simulation.surface import backscatter, draw_patches, state_on
from tessera_xr.sentinel.simulation.weather import draw_weather

S2_BANDS = ["B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12"]


@pytest.mark.parametrize("latitude", [40, 60])
def test_seasons_are_opposite_across_the_equator(latitude):
    places = np.array([latitude, -latitude], dtype=np.float32)
    forest = np.full(2, CODES["deciduous_forest"], dtype=np.uint8)
    rng = np.random.default_rng(0)
    seasons = draw_seasons(forest, np.arange(2), calendar(places, rng), 1, rng)
    lai, _ = canopy_state(seasons, np.zeros(2, np.float32), np.zeros(2, np.float32), np.arange(366))
    north, south = lai
    assert np.corrcoef(north, south)[0, 1] < -0.5
    assert np.corrcoef(north, np.roll(south, 183))[0, 1] > 0.9


def test_sky_is_evenly_spread_and_smooth():
    fields = np.stack([sky_field((64, 64), np.random.default_rng(s)) for s in range(80)])
    assert abs(fields.mean() - 0.5) < 0.08
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.3 * np.abs(fields - np.roll(fields, 1, axis=0)).mean()
    assert opacity(fields, 0.0).max() == 0


@pytest.mark.parametrize(
    ("year", "s2_days", "s1_days"), [(2016, 10, 12), (2017, 5, 6), (2021, 5, 6), (2023, 5, 12), (2026, 5, 6)]
)
def test_revisit_follows_the_missions(year, s2_days, s1_days):
    assert (s2_repeat(year), s1_repeat(year)) == (s2_days, s1_days)
    found = passes([year, year + 2], [s2_days] * 2, [3], 0.0, np.random.default_rng(0))
    assert set(np.diff(found.day)) - {s2_days} == {max(np.diff(found.day))}  # the year between
    assert (found.day % s2_days == 3 % s2_days).all()
    assert found.day.max() < 3 * 366


@pytest.mark.parametrize("looks", [1.0, 4.5, 20.0])
def test_speckle_has_the_looks_asked_for(looks):
    power = speckled(np.ones((300, 300), np.float32), looks, np.random.default_rng(0))
    assert abs(power.mean() - 1) < 0.02
    assert abs(1 / power.var() - looks) < 0.06 * looks


def test_rain_brightens_the_radar_of_bare_ground():
    rng = np.random.default_rng(0)
    place = np.array([35.0], dtype=np.float32)
    codes = np.array([CODES["bare_soil"], CODES["evergreen_forest"]], dtype=np.uint8)
    patches = draw_patches(codes, np.zeros(2, np.intp), calendar(place, rng), 1, rng)
    weather, days = draw_weather(place, np.zeros(1, np.float32), 365, rng), np.arange(365)
    vv = backscatter(patches, state_on(patches, weather, days), np.full(365, 38, np.float32), np.ones(365, bool))[0]
    soil, forest = (np.corrcoef(np.log(series), weather.moisture[0])[0, 1] for series in vv)
    assert soil > 0.9
    assert np.log(vv[0]).std() > 3 * np.log(vv[1]).std()
    assert forest < soil


def test_rains_come_with_the_growing_season_in_the_tropics():
    places = np.full(40, 8, dtype=np.float32)
    when = calendar(places, np.random.default_rng(1))
    moisture = draw_weather(places, when.shift, 365, np.random.default_rng(2)).moisture
    summer, winter = (
        np.array(
            [np.take(series, int(shift) + middle + np.arange(-30, 31), mode="wrap").mean() for series, shift in pairs]
        )
        for middle in (197, 15)
        for pairs in [list(zip(moisture, when.shift, strict=True))]
    )
    assert (summer > winter).mean() > 0.9


def test_more_leaves_more_green_and_snow_hides_them():
    lai = np.linspace(0, 8, 40, dtype=np.float32)[None]
    kinds = np.array([[canopy_index(c)] for c in ("cereal", "leafy_crop", "grass", "deciduous", "conifer", "reed")])
    red, nir = canopy_reflectance(kinds, lai, np.zeros_like(lai), np.full_like(lai, 0.5))[[0, 3]]
    ndvi = (nir - red) / (nir + red)
    assert (np.diff(ndvi, axis=1) > -0.004).all()
    assert (ndvi[:, 0] < 0.25).all()
    assert (ndvi[:, -1] > 0.75).all()
    by_wavelength = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11"]
    assert (np.diff([material("asphalt")[S2_BANDS.index(band)] for band in by_wavelength]) > 0).all()
    snow = material("snow")
    assert snow[S2_BANDS.index("B03")] > 5 * snow[S2_BANDS.index("B11")]


def test_edges_mix_and_light_is_kept():
    image = np.zeros((1, 9, 9), dtype=np.float32)
    image[:, 4, 4] = 1
    spread = spread_light(image)
    assert spread.sum() == pytest.approx(1)
    assert 0 < spread[0, 4, 5] < spread[0, 4, 4] < 1


@pytest.mark.parametrize("shape", [(6, 8), (7, 9)])
def test_coarse_bands_are_repeated(shape):
    image = twenty_metres(np.random.default_rng(0).random((10, *shape), dtype=np.float32))
    narrow, broad = image[S2_BANDS.index("B8A")], image[S2_BANDS.index("B08")]
    assert (narrow[:6:2, :8:2] == narrow[1:6:2, 1:8:2]).all()
    assert not (broad[:6:2, :8:2] == broad[1:6:2, 1:8:2]).any()
