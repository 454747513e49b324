"""Grids: found whatever their dimensions are called, and points in the right pixel."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from tessera_xr.errors import GridError
from tessera_xr.grid import (
    bounds_lonlat,
    crs_name,
    crs_of,
    geobox_of,
    pixel_area,
    points_to_pixels,
    spatial_dims,
    swap_hint,
    with_grid,
)

BOX = GeoBox.from_bbox((500_000, 5_600_000, 500_040, 5_600_030), crs="EPSG:32631", resolution=10)  # 3 rows, 4 columns


@pytest.fixture
def plain() -> xr.DataArray:
    return xr.DataArray(
        np.zeros((3, 4)), {"y": [5_600_025.0, 5_600_015, 5_600_005], "x": 500_005 + 10.0 * np.arange(4)}, ("y", "x")
    )


@pytest.fixture
def array(plain) -> xr.DataArray:
    return plain.odc.assign_crs("EPSG:32631")


@pytest.mark.parametrize("names", [("y", "x"), ("Y", "X"), ("northing", "easting"), ("latitude", "longitude")])
def test_dimensions_under_any_usual_name(array, names):
    renamed = array.rename(dict(zip(("y", "x"), names, strict=True)))
    for obj in (renamed, renamed.transpose(), renamed.expand_dims(time=2, axis=-1), renamed.to_dataset(name="v")):
        assert spatial_dims(obj) == names
        assert geobox_of(obj) == BOX


def test_no_spatial_dimensions(array):
    with pytest.raises(GridError, match="rename them to 'y' and 'x'"):
        spatial_dims(array.rename(y="row"))


@pytest.mark.parametrize(
    "attrs", [{"crs": "EPSG:32631"}, {"epsg": 32631}, {"epsg": np.int64(32631)}, {"proj:code": "EPSG:32631"}]
)
def test_crs_from_attributes_reaches_the_grid(plain, attrs):
    assert geobox_of(plain.assign_attrs(attrs)) == BOX
    assert crs_name(crs_of(plain.assign_attrs(attrs))) == "EPSG:32631"


def test_crs_from_stac_coordinates_and_degrees(plain):
    assert geobox_of(plain.assign_coords({"proj:epsg": 32631})) == BOX
    degrees = plain.rename(y="lat", x="lon").assign_coords(lat=[3.0, 2, 1], lon=[1.0, 2, 3, 4])
    assert geobox_of(degrees).crs.epsg == 4326
    assert crs_of(plain) is None


@pytest.mark.filterwarnings("ignore:Failed to parse CRS")
def test_grids_that_cannot_be_used(plain, array):
    with pytest.raises(GridError, match="assign_crs"):
        geobox_of(plain)
    with pytest.raises(GridError, match="'Mars' is not a CRS"):
        geobox_of(plain.assign_attrs(crs="Mars"))
    with pytest.raises(GridError, match="no coordinate"):
        geobox_of(array.drop_vars("x"))
    for y in ([30.0, 21, 10], [30.0, np.nan, 10], [30.0, 30, 30]):
        with pytest.raises(GridError, match="not evenly spaced"):
            geobox_of(array.assign_coords(y=y))
    geobox_of(array.assign_coords(y=[30.0, 20.05, 10]))  # less than 1 % of a pixel
    with pytest.raises(GridError):
        geobox_of(array.isel(y=[]))


def test_with_grid_round_trip_and_slices(plain):
    made = with_grid(plain.drop_vars(["y", "x"]), BOX)
    assert geobox_of(made) == BOX
    assert geobox_of(made.isel(y=slice(1, 3), x=slice(2, 4))) == BOX[1:3, 2:4]
    assert geobox_of(made.isel(y=[2], x=[1])) == BOX[2:3, 1:2]  # one pixel knows its size
    assert "grid_mapping" not in plain.attrs
    ds = with_grid(xr.Dataset({"v": plain, "t": ("time", [1.0])}).drop_vars(["y", "x"]), BOX)
    assert (ds.v.attrs["grid_mapping"], "grid_mapping" in ds.t.attrs) == ("spatial_ref", False)


def test_with_grid_survives_netcdf(tmp_path, plain):
    with_grid(plain.odc.assign_crs("EPSG:4326").to_dataset(name="v"), BOX).to_netcdf(
        tmp_path / "v.nc", engine="h5netcdf"
    )
    for coords in (True, "all"):
        with xr.open_dataset(tmp_path / "v.nc", engine="h5netcdf", decode_coords=coords) as ds:
            assert geobox_of(ds) == BOX
            assert geobox_of(ds["v"]) == BOX


@given(st.integers(0, 2), st.integers(0, 3), st.floats(0, 0.999), st.floats(0.001, 0.999))
def test_points_fall_into_the_pixel_that_holds_them(row, column, right, down):
    x, y = BOX.transform * (column + right, row + down)
    assert points_to_pixels(BOX, x, y, crs="EPSG:32631").tolist() == [[row, column]]


def test_points_on_edges_and_outside():
    x = [500_000, 500_010, 500_040, 499_999.9, 500_000, np.nan]
    y = [5_600_030, 5_600_020, 5_600_020, 5_600_020, 5_600_000, 5_600_020]
    expected = [[0, 0], [1, 1], [-1, -1], [-1, -1], [-1, -1], [-1, -1]]
    assert points_to_pixels(BOX, x, y, crs="EPSG:32631").tolist() == expected
    assert points_to_pixels(BOX, 200, 100).tolist() == [[-1, -1]]  # no place on Earth


def test_degrees_in_and_out_agree():
    west, south, east, north = bounds_lonlat(BOX)
    assert points_to_pixels(BOX, (west + east) / 2, (south + north) / 2).tolist() == [[1, 2]]
    assert (round(west, 2), round(south, 2)) == (3.0, 50.55)


def test_the_area_of_a_pixel():
    utm = GeoBox.from_bbox((500_000, 5_650_000, 500_600, 5_650_200), crs="EPSG:32631", resolution=20)
    assert pixel_area(utm) == 400
    degrees = GeoBox.from_bbox((3, 59.9, 3.2, 60.1), crs="EPSG:4326", resolution=0.001)
    # a thousandth of a degree is 111.4 m along a meridian at 60 N, and half of 111.6 m along a parallel
    assert pixel_area(degrees) == pytest.approx(111.4 * 55.8, rel=2e-3)


def test_a_swapped_place_is_noticed_and_no_other():
    box = GeoBox.from_bbox((500_000, 5_600_000, 501_000, 5_601_000), crs="EPSG:32631", resolution=10)
    lon, lat = box.geographic_extent.centroid.coords[0]
    assert "swapped" in swap_hint(box, lat, lon)
    assert swap_hint(box, 0, 0) == ""
