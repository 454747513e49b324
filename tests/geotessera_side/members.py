"""Each member of `ds.tessera`, ours and geotessera's, on the same store: run by tests/test_geotessera.py."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pytest
import rasterio
import xarray as xr
from build_store import HOLE, WATER, YEARS
from geotessera.store import GeoTesseraZarr, TesseraAccessor

import tessera_xr as txr

MEMBERS = (
    "crs", "pixel_size", "years", "n_bands", "dequantise", "sample_at", "sample_points", "probe", "read_region",
    "read_region_quantized", "iter_region",
)  # fmt: skip
STORE = os.environ["TESSERA_XR_STORE"]
CALDOR = txr.tutorial.embeddings()
X, Y = CALDOR.x.values, CALDOR.y.values
YEAR = YEARS[1]


@pytest.fixture(scope="module", params=["lazy", "in memory"])
def zone(request) -> xr.Dataset:
    """One zone as geotessera opens it, and what lies around Caldor in memory."""
    ds = GeoTesseraZarr(STORE).open_zone(zone=10)
    return ds if request.param == "lazy" else near_caldor(ds).load()


def near_caldor(ds: xr.Dataset) -> xr.Dataset:
    return ds[["embeddings", "scales"]].sel(y=slice(Y[0] + 700, Y[-1] - 700), x=slice(X[0] - 700, X[-1] + 700))


def places(n: int = 300) -> list[tuple[float, float]]:
    """Places in Caldor, on the edges of its pixels and its corners, in water, in a hole, beside it, and nowhere."""
    rng = np.random.default_rng(0)
    inside = np.stack([rng.uniform(X[0], X[-1], n), rng.uniform(Y[-1], Y[0], n)], axis=1)
    halfway = [(X[3] + 5, Y[7] - 5), (X[3] + 5, Y[7]), (X[3], Y[7] + 5), (X[0] - 5, Y[0] + 5)]
    water = [(X[WATER[1]][0], Y[WATER[0]][0]), (X[WATER[1]][0] - 5, Y[WATER[0]][0])]
    hole = [(X[HOLE[1]], Y[HOLE[0]]), (X[HOLE[1]] + 4, Y[HOLE[0]] + 4), (X[HOLE[1]] + 10, Y[HOLE[0]])]
    beside = [
        (X[0] - 300, Y[0]),
        (X[0] - 5600, Y[0]),
        (X[0] - 5171, Y[0] + 690),
        (X[0] - 1e6, Y[0]),
        (X[0], Y[0] + 1e5),
    ]
    nowhere = [(np.nan, Y[0]), (X[0], np.inf), (0.0, 0.0)]
    return [tuple(map(float, place)) for place in [*inside, *halfway, *water, *hole, *beside, *nowhere]]


RECTANGLES = {
    "Caldor": (X[0] - 5, Y[-1] - 5, X[-1] + 5, Y[0] + 5),
    "centres": (X[0], Y[-1], X[3], Y[0]),
    "one pixel": (X[9] - 1, Y[9] - 1, X[9] + 1, Y[9] + 1),
    "upside down": (X[20], Y[3], X[2], Y[40]),
    "over the edge": (X[0] - 1e6, Y[3], X[5], Y[0] + 40),
    "over a chunk": (X[30], Y[40], X[60], Y[9]),
}


def test_every_member_is_there_and_takes_the_same(zone):
    for name in MEMBERS:
        theirs, ours = (inspect.getattr_static(c, name) for c in (TesseraAccessor, type(zone.tessera)))
        assert type(theirs) is type(ours)
        if not isinstance(theirs, property):
            shapes = [
                [(p.name, p.kind, p.default) for p in inspect.signature(getattr(c, name)).parameters.values()]
                for c in (TesseraAccessor, type(zone.tessera))
            ]
            assert shapes[0] == shapes[1]
    public = {name for name in dir(TesseraAccessor) if not name.startswith("_")}
    assert public == set(MEMBERS)


@pytest.mark.parametrize("name", ["crs", "pixel_size", "years", "n_bands"])
def test_properties(zone, name):
    theirs, ours = getattr(TesseraAccessor(zone), name), getattr(zone.tessera, name)
    assert ours == theirs
    assert type(ours) is type(theirs)


def test_dequantise(zone):
    codes = np.arange(-60, 60).reshape(10, 3, 4).astype(np.int8)
    scales = np.array([[0.1, np.nan, np.inf, -np.inf], [0.0, -0.5, 1e-8, 3.0], [1, 2, 3, 4]], np.float32)
    theirs, ours = TesseraAccessor.dequantise(codes, scales), type(zone.tessera).dequantise(codes, scales)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype == np.float32


@pytest.mark.parametrize("reach", [1, 0, 3, -1])
def test_probe_and_sample_at(zone, reach):
    found = set()
    for e, n in places(3):
        vector, status = TesseraAccessor(zone).probe(e, n, YEAR, search_px=reach)
        ours, ours_status = zone.tessera.probe(e, n, YEAR, search_px=reach)
        assert ours_status == status
        assert (ours is None) == (vector is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, vector)
            assert ours.dtype == vector.dtype
            assert ours.shape == vector.shape
        sampled = zone.tessera.sample_at(e, n, YEAR, search_px=reach)
        np.testing.assert_array_equal(sampled, TesseraAccessor(zone).sample_at(e, n, YEAR, search_px=reach))
        found.add(status)
    assert found >= {"valid", "water", "outside"} | ({"nodata"} if reach < 1 else set())


def test_sample_points(zone):
    theirs, ours = TesseraAccessor(zone).sample_points(places(), YEAR), zone.tessera.sample_points(places(), YEAR)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == np.float32
    assert 300 < np.isfinite(ours[:, 0]).sum() < len(ours)
    assert zone.tessera.sample_points([], YEAR).shape == TesseraAccessor(zone).sample_points([], YEAR).shape


def same_affine(ours, theirs):
    assert type(ours) is type(theirs)
    assert ours == theirs


@pytest.mark.parametrize("case", RECTANGLES)
def test_regions(zone, case):
    theirs, ours = TesseraAccessor(zone), zone.tessera
    for year in YEARS:
        (a, at), (b, bt) = theirs.read_region(RECTANGLES[case], year), ours.read_region(RECTANGLES[case], year)
        np.testing.assert_array_equal(b, a)
        assert b.dtype == a.dtype
        same_affine(bt, at)
        a, b = (m.read_region_quantized(RECTANGLES[case], year) for m in (theirs, ours))
        for one, other in zip(a[:2], b[:2], strict=True):
            np.testing.assert_array_equal(other, one)
            assert other.dtype == one.dtype
        same_affine(b[2], a[2])


@pytest.mark.parametrize("rows", [7, 32, 512])
def test_strips(zone, rows):
    for case in ("Caldor", "one pixel"):
        theirs, ours = (
            list(m.iter_region(RECTANGLES[case], YEAR, strip_rows=rows)) for m in (TesseraAccessor(zone), zone.tessera)
        )
        assert len(ours) == len(theirs)
        for (a, at), (b, bt) in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(b, a)
            same_affine(bt, at)


def test_chunks_change_nothing():
    """A store opened by xarray, in chunks of its own, in others, without Dask, and with its rows from the south."""
    whole = near_caldor(xr.open_zarr(STORE, group="utm10", chunks=None))
    ways = [near_caldor(xr.open_zarr(STORE, group="utm10", chunks={})), whole.chunk(y=50, x=70, band=30), whole]
    ways += [whole.isel(y=slice(None, None, -1)), whole.chunk(y=50).isel(y=slice(None, None, -1))]
    expected = TesseraAccessor(whole.load())
    for ds in ways:
        np.testing.assert_array_equal(ds.tessera.sample_points(places(), YEAR), expected.sample_points(places(), YEAR))
        for case in RECTANGLES.values():
            (a, at), (b, bt) = expected.read_region(case, YEAR), ds.tessera.read_region(case, YEAR)
            np.testing.assert_array_equal(b, a)
            same_affine(bt, at)


def test_refusals(zone):
    for member in (TesseraAccessor(zone), zone.tessera):
        with pytest.raises(IndexError):
            member.read_region((0, 0, 1, 1), YEAR)
        for bad in ((0, 0, 1), (0, 0, np.nan, 1)):
            with pytest.raises(ValueError, match="finite"):
                member.read_region(bad, YEAR)
        with pytest.raises(ValueError, match="2020, 2022"):
            member.read_region(RECTANGLES["Caldor"], 1999)
        with pytest.raises(ValueError, match="strip_rows"):
            next(member.iter_region(RECTANGLES["Caldor"], YEAR, strip_rows=0))
    with pytest.raises(ValueError, match="2020, 2022"):
        zone.tessera.probe(X[0], Y[0], 1999)
    with pytest.raises(ValueError, match="embeddings_d16"):
        zone.tessera.read_region(RECTANGLES["Caldor"], YEAR, array="embeddings_d16")


def test_nan_is_no_data_where_geotessera_says_so():
    marked = (
        near_caldor(xr.open_zarr(STORE, group="utm10", chunks=None))
        .load()
        .assign_attrs({"geotessera:mask_source": "source_nodata"})
    )
    for e, n in places(2)[:10]:
        for reach in (0, 8):
            theirs, ours = (m.probe(e, n, YEAR, search_px=reach) for m in (TesseraAccessor(marked), marked.tessera))
            assert ours[1] == theirs[1]
            np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(
        marked.tessera.sample_points(places(2), YEAR), TesseraAccessor(marked).sample_points(places(2), YEAR)
    )


def test_a_prefix(zone):
    short = zone["embeddings"].isel(band=slice(16)).rename(band="band_d16").drop_vars("band_d16", errors="ignore")
    both = zone.assign(embeddings_d16=short)
    (a, at), (b, bt) = (
        m.read_region(RECTANGLES["Caldor"], YEAR, array="embeddings_d16") for m in (TesseraAccessor(both), both.tessera)
    )
    np.testing.assert_array_equal(b, a)
    assert b.shape[-1] == 16
    same_affine(bt, at)


def ask(store: GeoTesseraZarr, folder) -> list:
    """Everything that `GeoTesseraZarr` answers by the members of the accessor."""
    lon, lat = -120.337, 38.691
    box = (lon - 0.003, lat - 0.002, lon + 0.003, lat + 0.002)
    answers = [*store.probe(lon, lat, YEAR), *store.probe(-120.9, 38.69, YEAR), *store.probe(10.0, 50.0, YEAR)]
    answers += [store.sample_at(lon, lat, YEAR), store.sample_points([(lon, lat), (-120.9, 38.69), (10, 50)], YEAR)]
    answers += [*store.read_region(box, YEAR), *store.read_region_quantized(box, YEAR)]
    answers += [part for strip in store.iter_region(box, YEAR, strip_rows=9) for part in strip]
    answers += [*store.read_patch(lon, lat, YEAR, 24), *store.read_patch(lon, lat, YEAR, 24, dst_crs="EPSG:3310")]
    for path in store.export_geotiffs(box, YEAR, folder, bands=[0, 5]):
        with rasterio.open(path) as file:
            answers += [file.read(), file.transform, str(file.crs)]
    return answers


def test_its_own_store_answers_the_same_through_either(tmp_path, monkeypatch):
    ours = ask(GeoTesseraZarr(STORE), tmp_path / "ours")
    monkeypatch.setattr(xr.Dataset, "tessera", property(TesseraAccessor))
    theirs = ask(GeoTesseraZarr(STORE), tmp_path / "theirs")
    assert len(ours) == len(theirs) > 30
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
