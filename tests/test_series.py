"""The series of a pixel: what the cube holds, in physical units."""

from __future__ import annotations

import numpy as np
import pytest

import tessera_xr as txr
from tessera_xr.errors import CubeError, GridError
from tessera_xr.grid import geobox_of
from tessera_xr.sentinel.series import pixel_series


def test_a_series_is_the_pixel_that_holds_the_place(make_s2, make_s1):
    cube = txr.as_cube(make_s2(), make_s1())
    box = geobox_of(cube)
    point = box.crs.transformer_to_crs("EPSG:4326")
    for row, column in ((0, 0), (1, 1), (5, 3)):
        x, y = box.transform * (column + 0.01, row + 0.01)
        s2, s1 = pixel_series(cube, *point(x, y))
        pixel = cube.isel(y=row, x=column)
        assert (s2["clear"] == pixel["s2_valid"].values).all()
        assert np.allclose(s2["B8A"], pixel["s2"].sel(s2_band="B8A") / 1e4)
        red, infrared = (pixel["s2"].sel(s2_band=b).astype(float).values for b in ("B04", "B08"))
        assert np.allclose(s2["ndvi"], (infrared - red) / (infrared + red))
        seen = (pixel["s1"] != 0).any("s1_band").values
        assert list(s1["orbit"]) == list(pixel["s1_orbit"].values[seen])
        assert (s1.index == pixel["s1_time"].values[seen]).all()
    original = make_s1()
    _, s1 = pixel_series(cube, *point(*(box.transform * (3.5, 5.5))))
    assert np.allclose(s1["vv"], original["VV"].isel(y=5, x=3), atol=0.01)  # dB, but for the integers in between
    assert len(pixel_series(cube, *point(*(box.transform * (1.5, 1.5))))[1]) == 0  # missing there


def test_lazy_is_eager(make_s2, make_s1):
    cube = txr.as_cube(make_s2(), make_s1())
    place = geobox_of(cube).geographic_extent.centroid.coords[0]
    for a, b in zip(pixel_series(cube, *place), pixel_series(cube.chunk(x=2), *place), strict=True):
        assert a.equals(b)


def test_no_series_outside_or_without_a_cube(make_s2, make_s1):
    cube = txr.as_cube(make_s2(), make_s1())
    with pytest.raises(GridError, match="outside the cube"):
        pixel_series(cube, 0, 0)
    lon, lat = geobox_of(cube).geographic_extent.centroid.coords[0]
    with pytest.raises(GridError, match="are longitude and latitude swapped"):
        pixel_series(cube, lat, lon)
    with pytest.raises(CubeError):
        pixel_series(make_s2(), 3, 51)
