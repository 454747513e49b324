"""Rasters in Web Mercator: every pixel where it belongs, and its colour as it was."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer

from tessera_xr.errors import GridError
from tessera_xr.views.overlay import PalettePicture, colour_url, from_mercator, make_warp, to_mercator

PLACES = {
    "equator": ("EPSG:32631", 500_000, -5_120),
    "52 north": ("EPSG:32631", 640_000, 5_760_000),
    "65 north": ("EPSG:32635", 380_000, 7_210_000),
    "40 south": ("EPSG:32755", 600_000, 5_570_000),
    "40 south, northern CRS": ("EPSG:32655", 600_000, -4_430_000),
    "zone edge": ("EPSG:32631", 795_000, 5_700_000),
    "beyond the zone edge": ("EPSG:32631", 830_000, 5_700_000),
    "degrees": ("EPSG:4326", 3.0, 51.0),
}


def grid(place: str, size: int = 300) -> GeoBox:
    crs, x, y = PLACES[place]
    resolution = 1e-4 if crs == "EPSG:4326" else 10
    return GeoBox.from_bbox((x, y, x + size * resolution, y + size * resolution), crs=crs, resolution=resolution)


@pytest.mark.parametrize("place", PLACES)
def test_a_pixel_lands_within_half_a_pixel_of_where_it_is(place):
    box = grid(place)
    warp = make_warp(box)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 300, (2, 400))
    # the true place of their centres, in the picture's pixels, by PROJ's own Web Mercator
    x, y = box.transform * (columns + 0.5, rows + 0.5)
    true_x, true_y = Transformer.from_crs(str(box.crs), 3857, always_xy=True).transform(x, y)
    corners = Transformer.from_crs(4326, 3857, always_xy=True).transform(warp.bounds[::2], warp.bounds[1::2])
    (left, right), (bottom, top) = corners
    height, width = warp.index.shape
    column = (true_x - left) / (right - left) * width
    row = (top - true_y) / (top - bottom) * height
    shown = warp.index[np.floor(row).astype(int), np.floor(column).astype(int)]
    found = np.stack(np.divmod(shown, 300))
    # the picture's pixel that holds the centre shows that pixel, or one whose edge is nearer than half a pixel
    assert np.abs(found - [rows, columns]).max() <= 1
    exact = (found == [rows, columns]).all(axis=0).mean()
    assert exact > 0.55
    # and where it is shown, on average, is where it is
    where = {}
    for r, c in zip(rows[:60], columns[:60], strict=True):
        seen = np.argwhere(warp.index == r * 300 + c)
        if len(seen):
            where[r, c] = seen.mean(axis=0) + 0.5
    expected = {(r, c): (a, b) for r, c, a, b in zip(rows, columns, row, column, strict=True)}
    offsets = np.array([np.subtract(v, expected[k]) for k, v in where.items()])
    assert len(where) > 40
    assert np.abs(offsets).max() <= 0.75  # half a pixel of the raster, seen through the picture's own grid
    assert np.abs(offsets.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("place", PLACES)
def test_the_picture_covers_the_raster_and_nearly_every_pixel_of_it(place):
    warp = make_warp(grid(place))
    seen = np.unique(warp.index[warp.index < 90_000])
    assert len(seen) > 0.85 * 90_000
    assert warp.coarsening == 1
    assert {0, 299, 299 * 300, 89_999} & set(seen.tolist())  # corners


def test_large_rasters_are_coarsened_and_a_closer_look_is_sharper():
    box = grid("52 north", 600)
    whole = make_warp(box, most_pixels=200)
    assert max(whole.index.shape) <= 201
    assert whole.coarsening == pytest.approx(3, rel=0.1)
    west, south, east, north = whole.bounds
    part = (
        west + (east - west) * 0.4,
        south + (north - south) * 0.4,
        west + (east - west) * 0.6,
        south + (north - south) * 0.6,
    )
    close = make_warp(box, within=part, most_pixels=200)
    assert close.coarsening == 1
    assert np.allclose(close.bounds, part, atol=1e-9)
    # the same raster pixel in the middle of both
    middle = [w.index[w.index.shape[0] // 2, w.index.shape[1] // 2] for w in (whole, close)]
    rows, columns = np.divmod(middle, 600)
    assert np.ptp(rows) <= 4
    assert np.ptp(columns) <= 4


def test_a_part_of_the_map_without_the_raster_is_refused():
    with pytest.raises(GridError, match="nothing of this raster"):
        make_warp(grid("52 north"), within=(0, 0, 1, 1))


@given(st.floats(-180, 180), st.floats(-85, 85))
def test_web_mercator_is_projs(lon, lat):
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    assert np.allclose(to_mercator(lon, lat), (x, y), atol=1e-3)
    assert np.allclose(from_mercator(x, y), (lon, lat), atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_tiny_raster_is_shown_whole(size):
    box = grid("52 north", size)
    warp = make_warp(box)
    picture = warp.apply(np.arange(1, size * size + 1, dtype=np.uint8).reshape(size, size))
    assert picture.max() > 0
    assert warp.apply(np.ones((size, size, 3), np.float32), outside=np.nan).shape == (*warp.index.shape, 3)


def test_outside_is_outside():
    warp = make_warp(grid("zone edge"))
    picture = warp.apply(np.ones((300, 300), np.uint8))
    assert (picture == 0).any()  # the corners of a turned rectangle
    assert set(np.unique(picture)) == {0, 1}
    assert np.isnan(warp.apply(np.ones((300, 300), np.float32), outside=np.nan)).mean() == (picture == 0).mean()


def test_colours_of_codes_change_without_packing_them_again():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (37, 53), dtype=np.uint8)
    picture = PalettePicture(codes)
    for _ in range(2):
        palette = rng.integers(0, 256, (256, 4), dtype=np.uint8)
        shown = Image.open(io.BytesIO(picture.png(palette)))
        assert shown.mode == "P"
        assert (np.asarray(shown.convert("RGBA")) == palette[codes]).all()
    kind, content = picture.url(palette).split(",", 1)
    assert kind == "data:image/png;base64"
    assert b64decode(content) == picture.png(palette)


def test_colour_pictures_keep_what_is_transparent():
    rgba = np.zeros((40, 50, 4), np.uint8)
    rgba[10:30, 10:40] = (200, 40, 90, 255)
    shown = np.asarray(Image.open(io.BytesIO(b64decode(colour_url(rgba).split(",", 1)[1]))).convert("RGBA"))
    assert (shown[..., 3] == rgba[..., 3]).all()
    assert np.abs(shown[12:28, 12:38].astype(int) - rgba[12:28, 12:38]).max() < 12
