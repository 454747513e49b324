"""Segments: connected, true to edges, and their statistics by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy import ndimage

import tessera_xr as txr
from tessera_xr import _optional
from tessera_xr.analysis import segments as module
from tessera_xr.analysis.segments import describe_segments, outline_segments, segment
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.errors import GridError, SchemaError, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid

N_BANDS = 16
SHAPE = (40, 50)
BIG = 12_000_000_000
"""The number of a parcel may be longer than 32 bits."""


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """Four fields with slanting borders."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return 2 * (x + 0.4 * y > 30) + (y - 0.3 * x > 12)


@pytest.fixture(scope="module")
def emb(fields) -> xr.Dataset:
    """Two years of fields on pixels of 10 x 20 m; a corner and a spot have no data."""
    rng = np.random.default_rng(0)
    places = 3 * rng.normal(size=(2, 4, N_BANDS))
    values = places[:, fields] + rng.normal(scale=0.5, size=(2, *SHAPE, N_BANDS))
    values[:, :6, :5] = np.nan
    values[1, 20, 20] = np.nan
    dims = ("time", "y", "x")
    box = GeoBox(SHAPE, Affine(10, 0, 5e5, 0, -20, 56e5), "EPSG:32631")
    like = with_grid(xr.Dataset({"a": (("y", "x"), np.zeros(SHAPE))}), box)
    variables = {name: xr.DataArray(np.ones((2, *SHAPE), np.uint16), dims=dims) for name in COUNTS}
    variables["embeddings"] = xr.DataArray(values.astype(np.float32), dims=(*dims, "band"))
    variables = {name: array.assign_coords(time=[2019, 2020]) for name, array in variables.items()}
    return build_embeddings(variables, like, {"model": "m", "weights_sha256": "a", "source": "test"})


@pytest.fixture(scope="module")
def segments(emb) -> xr.DataArray:
    pytest.importorskip("skimage")
    return segment(emb, 40)


def test_segments_are_connected_and_labelled(emb, segments):
    assert segments.dims == ("y", "x")
    assert segments.dtype == np.int32
    assert geobox_of(segments) == geobox_of(emb)
    assert (segments.attrs["nodata"], segments.attrs["model"]) == (0, "m")
    missing = emb.embeddings.isel(band=0).isnull().any("time").values
    np.testing.assert_array_equal(segments == 0, missing)
    numbers = np.unique(segments)[1:]
    assert 25 < len(numbers) < 60
    for number in numbers:
        assert ndimage.label(segments == number)[1] == 1


def test_segments_keep_to_the_edges(segments, fields):
    commonest = [np.bincount(fields[segments == n]).max() for n in np.unique(segments)[1:]]
    assert sum(commonest) / (segments > 0).sum().item() > 0.98


def test_compactness_trades_edges_for_squares(emb):
    ragged, squares = (outline_segments(segment(emb, 40, compactness=c)).compactness.mean() for c in (0.03, 10))
    assert ragged + 0.05 < squares


def test_odd_pixels_do_not_set_the_scale(emb, segments, fields):
    values = emb.embeddings.values.copy()
    values[:, :, 30, 30] *= 300
    odd = segment(emb.assign(embeddings=emb.embeddings.copy(data=values)), 40, components=txr.fit_components(emb))
    commonest = [np.bincount(fields[odd == n]).max() for n in np.unique(odd)[1:]]
    assert sum(commonest) / (odd > 0).sum().item() > 0.97


def test_one_year_all_of_it_and_fitted_components(emb, segments):
    single = segment(emb.sel(time=2019), 40)
    assert (single == 0).sum() == 30, "the spot has data in 2019"
    fitted = txr.fit_components(emb)
    xr.testing.assert_identical(segment(emb, 40, components=fitted), segments)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        segment(emb.assign_attrs(model="other"), 40, components=fitted)
    assert segment(emb.sel(time=2019)).max() > 10


def test_forms_give_the_same(emb, segments):
    xr.testing.assert_identical(segment(emb.chunk(y=7, x=11), 40), segments)
    codes = segment(emb.tessera.quantize(), 40)
    pairs = np.unique(np.stack([segments.values.ravel(), codes.values.ravel()]), axis=1, return_counts=True)
    best = {a: max(n for (b, _), n in zip(pairs[0].T, pairs[1], strict=True) if b == a) for a in pairs[0][0]}
    assert sum(best.values()) / segments.size > 0.9


@pytest.mark.parametrize("form", ["float32", "int8", "lazy", "lazy int8"])
def test_statistics_are_those_of_the_members(emb, segments, form, monkeypatch):
    monkeypatch.setattr(module, "SIDE", 7)
    emb = emb.tessera.quantize() if "int8" in form else emb
    table = describe_segments(emb.chunk(y=9, x=13) if "lazy" in form else emb, segments)
    values = txr.dequantize(emb).embeddings.transpose("time", "y", "x", "band").values.astype(np.float64)
    assert table["mean"].dims == ("time", "segment", "band")
    assert table.attrs["source"] == "test"
    for number in table.segment.values:
        inside = (segments == number).values
        mine = table.sel(segment=number)
        for t in range(2):
            members = values[t][inside]
            np.testing.assert_allclose(mine["mean"][t], members.mean(axis=0), rtol=1e-4, atol=1e-5)
            away = ((members - members.mean(axis=0)) ** 2).sum(axis=1).mean() ** 0.5
            assert mine.spread[t] == pytest.approx(away, rel=1e-3)
        assert mine.pixels == inside.sum()
        rows, columns = np.nonzero(inside)
        assert mine.x == pytest.approx(emb.x.values[columns].mean())
        assert mine.y == pytest.approx(emb.y.values[rows].mean())
    single = describe_segments(emb.sel(time=2020), segments)
    xr.testing.assert_allclose(single["mean"], table["mean"].sel(time=2020))


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_pixels_without_data_do_not_count(emb, segments, nothing):
    """Parcels of your own may hold some; the scale of codes says which, whatever the codes are."""
    gone = (emb.x < emb.x[9]) & (emb.y > emb.y[4])
    floats = emb.assign(embeddings=emb.embeddings.where(~gone).transpose(*emb.embeddings.dims))
    codes = emb.tessera.quantize()
    codes = codes.assign(scales=codes.scales.where(~gone, nothing).transpose(*codes.scales.dims))
    expected = describe_segments(emb, segments.where(~gone, 0).astype(np.int32)).drop_vars(["x", "y"])
    for form, tolerance in ((floats, 1e-6), (codes, 0.05)):
        found = describe_segments(form, segments).sel(segment=expected.segment)
        for name in ("mean", "spread"):
            np.testing.assert_allclose(found[name], expected[name], atol=tolerance)
    assert int(describe_segments(codes, segments).pixels.sum()) == int((segments > 0).sum())


def test_outlines_agree_with_the_statistics(emb, segments):
    frame, table = outline_segments(segments), describe_segments(emb, segments)
    assert frame.crs.to_epsg() == 32631
    np.testing.assert_array_equal(frame.index, table.segment)
    for name in ("pixels", "area", "perimeter", "compactness"):
        np.testing.assert_allclose(frame[name], table[name])
    np.testing.assert_allclose(frame.centroid.x, table.x)
    np.testing.assert_allclose(frame.centroid.y, table.y)
    assert frame.is_valid.all()


def test_parcels_of_ones_own(emb):
    parcels = xr.DataArray(np.zeros(SHAPE, np.int64), dims=("y", "x"), coords={c: emb[c] for c in ("y", "x")})
    parcels = parcels.odc.assign_crs("EPSG:32631")
    parcels[0:3, 0:3], parcels[10:14, 10:12], parcels[30, 30] = 7, BIG, -1
    table = describe_segments(emb, parcels)
    assert table.segment.values.tolist() == [7, BIG]
    assert table.area.values.tolist() == [9 * 200, 8 * 200]
    assert table.perimeter.values.tolist() == [2 * 30 + 2 * 60, 2 * 20 + 2 * 80]
    assert np.isnan(table["mean"].sel(segment=7)).all(), "it lies where nothing has data"
    assert np.isfinite(table["mean"].sel(segment=BIG)).all()
    assert outline_segments(parcels).compactness[BIG] == pytest.approx(4 * np.pi * 1600 / 200**2)
    # two parts are one row
    parcels[20:22, 40:42] = BIG
    assert outline_segments(parcels).pixels.tolist() == [9, 12]


def test_faults(emb, segments, monkeypatch):
    for n in (0, 1970):
        with pytest.raises(SchemaError, match=f"n_segments must be from 1 to the 1969 pixels with data, not {n}"):
            segment(emb, n)
    with pytest.raises(SchemaError, match="compactness must be above 0"):
        segment(emb, compactness=0)
    with pytest.raises(GridError, match="another grid"):
        describe_segments(emb.isel(x=slice(30)), segments)
    with pytest.raises(SchemaError, match="whole numbers"):
        describe_segments(emb, segments.astype(float))
    for use in (outline_segments, lambda empty: describe_segments(emb, empty)):
        with pytest.raises(SchemaError, match="there are no segments"):
            use(segments * 0)
    monkeypatch.setattr(_optional, "have", lambda name: False)
    with pytest.raises(ImportError, match=r"segmentation needs skimage, .*pip install 'tessera-xr\[segments\]'"):
        segment(emb)
