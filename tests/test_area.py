"""Areas as users name them, and the UTM grid over them."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from tessera_xr.area import resolve_area, utm_geobox, utm_zone
from tessera_xr.errors import GridError
from tessera_xr.grid import points_to_pixels, with_grid

BBOX = (3.0, 51.0, 3.05, 51.03)


def test_every_form_of_an_area_is_the_same_area():
    geometry = shapely.box(*BBOX)
    frame = gpd.GeoDataFrame(geometry=[geometry], crs=4326)
    feature = {"type": "Feature", "properties": {}, "geometry": geometry.__geo_interface__}
    forms = [
        BBOX,
        list(BBOX),
        np.array(BBOX),
        geometry,
        frame,
        frame.geometry,
        geometry.__geo_interface__,
        feature,
        {"type": "FeatureCollection", "features": [feature]},
    ]
    for form in forms:
        assert resolve_area(form).equals(geometry), form
    # another CRS is converted, edges only as exact as their corners
    assert np.allclose(resolve_area(frame.to_crs(32631)).bounds, BBOX, atol=1e-9)


def test_a_grid_is_an_area_and_its_grid_is_itself():
    box = GeoBox.from_bbox((500_000, 5_649_960, 500_640, 5_650_600), crs="EPSG:32631", resolution=10)
    for form in (box, with_grid(xr.Dataset(), box), with_grid(xr.DataArray(np.zeros(box.shape), dims=("y", "x")), box)):
        assert utm_geobox(form) == box


@given(st.floats(-179.9, 179.9), st.floats(-79.5, 83.5), st.sampled_from([10.0, 20.0, 60.0]))
def test_a_point_lies_in_its_own_pixel_and_edges_are_multiples_of_the_resolution(lon, lat, resolution):
    box = utm_geobox((lon, lat, lon, lat), resolution)
    assert box.shape == (1, 1)
    assert box.crs.to_epsg() == 32600 + utm_zone(lon)  # the northern CRS in the south too
    assert np.allclose(np.array(box.boundingbox.bbox) / resolution % 1, 0)
    x, y = Transformer.from_crs(4326, box.crs.to_epsg(), always_xy=True).transform(lon, lat)
    left, bottom, right, top = box.boundingbox.bbox
    slack = 1e-4 * resolution
    assert left - slack <= x <= right + slack
    assert bottom - slack <= y <= top + slack


@given(st.floats(-179, 178), st.floats(-79, 82), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_the_grid_covers_the_area_and_hardly_more(west, south, width, height):
    area = (west, south, west + width, south + height)
    box = utm_geobox(area, 100)
    ring = shapely.segmentize(shapely.box(*area), 0.01).exterior
    lon, lat = np.array(ring.coords).T
    pixels = points_to_pixels(box.pad(1), lon, lat)
    assert (pixels >= 0).all()
    assert (pixels.min(axis=0) <= 2).all()
    assert (np.array(box.shape) + 1 - pixels.max(axis=0) <= 2).all()


def test_zones_meet_at_multiples_of_six_degrees():
    assert [utm_zone(v) for v in (-180, -174.0001, -174, 0, 5.999, 6, 179.9, 180)] == [1, 1, 2, 31, 31, 32, 60, 60]
    assert utm_geobox((5.9, 50, 6.2, 50.1)).crs.to_epsg() == 32632  # that of the middle
    assert utm_geobox((5.9, 50, 6.2, 50.1), zone=31).crs.to_epsg() == 32631


def test_the_south_continues_the_north_without_a_seam():
    north, south = utm_geobox((9, 0, 9, 0.0)), utm_geobox((9, -0.00001, 9, -0.00001))
    assert north.boundingbox.bottom == south.boundingbox.top == 0


@pytest.mark.parametrize(
    ("area", "message"),
    [
        ((3.05, 51.0, 3.0, 51.03), "west, south, east, north"),
        ((179, 0, -179, 1), "antimeridian"),
        ((3, 52, 4, 51), "south"),
        ((3, 51, 3, 52), "no area"),
        ((500000, 5600000, 500640, 5600640), "no degrees"),
        ((3, 51, 4), "is no area"),
        ("Ghent", "is no area"),
        ((3, 51, float("nan"), 52), "not finite"),
        (shapely.Polygon(), "empty"),
        (shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), "no valid geometry"),
        (gpd.GeoSeries([shapely.box(*BBOX)]), "no CRS"),
        ({"type": "Polygon"}, "GeoJSON"),
        ({"features": 3, "type": "FeatureCollection"}, "GeoJSON"),
    ],
)
def test_what_is_no_area_is_refused_with_its_reason(area, message):
    with pytest.raises(GridError, match=message):
        resolve_area(area)


def test_grids_out_of_range_are_refused():
    for call, message in [
        (lambda: utm_geobox((10, 85, 11, 86)), "UTM covers"),
        (lambda: utm_geobox(BBOX, 0), "resolution"),
        (lambda: utm_geobox(BBOX, "10m"), "resolution"),
        (lambda: utm_geobox(BBOX, zone=61), "zone"),
    ]:
        with pytest.raises(GridError, match=message):
            call()
