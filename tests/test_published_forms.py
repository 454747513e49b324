"""Published embeddings that are no Zarr store: NPY tiles, GeoTIFF exports, Icechunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from published_store import make_arrays
from pyproj import Transformer
from serving import serve

import tessera_xr as txr
from tessera_xr import tutorial
from tessera_xr.embedding.published import remote
from tessera_xr.embedding.published.opening import open_published
from tessera_xr.embedding.published.tiles import tile_centre, tile_name
from tessera_xr.embedding.schema import QUALITY_FLAGS
from tessera_xr.errors import GridError, MissingExtraError, SchemaError, StoreError
from tessera_xr.grid import geobox_of


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01,) * len(remote.PAUSES))


# NPY tiles ----------------------------------------------------------------------------------------------------------


def write_tile(
    root: Path, lonlat: tuple[float, float], shape=(40, 50), year=2024, *, layout="mirror", seed=0, southern=False
):
    """Write a tile, small for its name: its landmask tells its place. Return its arrays and transform."""
    arrays = make_arrays(shape, 1, seed=seed)
    codes, scales = np.moveaxis(arrays["embeddings"][0], 0, -1), arrays["scales"][0]
    name = tile_name(*tile_centre(*lonlat))
    epsg = 32731 if southern else 32631
    x, y = Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True).transform(*lonlat)
    transform = Affine(10, 0, round(x, -1), 0, -10, round(y, -1))
    folders = {
        "mirror": ("global_0.1_degree_representation", "global_0.1_degree_tiff_all"),
        "site": ("npy/v1", "landmasks/v1"),
    }
    tiles, masks = (root / f for f in folders[layout])
    (tiles / str(year) / name).mkdir(parents=True)
    masks.mkdir(parents=True, exist_ok=True)
    np.save(tiles / str(year) / name / f"{name}.npy", codes)
    np.save(tiles / str(year) / name / f"{name}_scales.npy", scales)
    land = np.ones(shape, np.uint8)
    land[:3] = 0
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(masks / f"{name}.tiff", "w", **profile, crs=f"EPSG:{epsg}", transform=transform) as file:
        file.write(land, 1)
    return codes, scales, transform


def area_of(transform, shape, epsg=32631, inset=0.5):
    """The bounds in degrees of pixels from their middles."""
    xs, ys = (
        (transform.c + 10 * inset, transform.c + 10 * (shape[1] - inset)),
        (transform.f - 10 * inset, transform.f - 10 * (shape[0] - inset)),
    )
    lon, lat = Transformer.from_crs(f"EPSG:{epsg}", "EPSG:4326", always_xy=True).transform(
        [*xs, *xs], [*ys, *reversed(ys)]
    )
    return min(lon), min(lat), max(lon), max(lat)


@pytest.mark.parametrize("where", ["folder", "server"])
def test_tiles(where, tmp_path):
    codes, scales, transform = write_tile(tmp_path, (3.03, 51.02), layout="mirror" if where == "folder" else "site")
    with serve(tmp_path) as server:
        store = tmp_path if where == "folder" else f"{server.url}/npy/v1"
        emb = open_published(area_of(transform, scales.shape), [2024], store=store, version="v1").compute()
        assert emb.attrs["model"] == "v1"
        part = emb.sel(x=transform.c + 10 * (np.arange(50) + 0.5), y=transform.f - 10 * (np.arange(40) + 0.5)).isel(
            time=0
        )
        assert (part["quality"].values[:3] == QUALITY_FLAGS["water"]).all()
        np.testing.assert_array_equal(part.embeddings.transpose("y", "x", "band").values[3:], codes[3:])
        np.testing.assert_array_equal(part.scales.values[3:], scales[3:])
        assert np.isnan(part.scales.values[:3]).all()
        lonlat = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True).transform(
            transform.c + 75, transform.f - 105
        )
        server.clear()
        found = open_published([lonlat], 2024, store=store, version="v1")
        np.testing.assert_array_equal(found.embeddings[:, 0], codes[10, 7])
        if where == "server":  # a pixel of a tile of some 100 MB costs its own bytes
            sizes = [int(b) - int(a) + 1 for a, b in (span[6:].split("-") for _, _, span in server.requests if span)]
            assert sum(sizes) < 1000
        with pytest.raises(SchemaError, match=r"holds none of the 1 tiles there \(the first is grid_3.55_51.05\)"):
            open_published((3.52, 51.02, 3.53, 51.03), 2024, store=store, version="v1")
        with pytest.raises(SchemaError, match=r"holds none of the .* tiles there .* in 2019"):
            open_published([lonlat], 2019, store=store, version="v1")
        with pytest.raises(GridError, match=r"covers .* tiles of 0\.1 degrees, over"):
            open_published((3.0, 40, 8.9, 50), 2024, store=store, version="v1")


def test_tiles_of_the_south_and_of_one_scale_a_band(tmp_path):
    codes, scales, transform = write_tile(tmp_path, (3.03, -0.52), southern=True)
    name = "grid_3.05_-0.55"
    folder = tmp_path / "global_0.1_degree_representation" / "2024" / name
    emb = open_published(area_of(transform, scales.shape, 32731), 2024, store=tmp_path, version="v1").compute()
    assert geobox_of(emb).crs.to_epsg() == 32631
    assert (emb.y < 0).all()
    at = {"x": transform.c + 75, "y": transform.f - 1e7 - 105}
    np.testing.assert_array_equal(emb.embeddings.sel(at), codes[10, 7])
    each = np.random.default_rng(0).uniform(0.001, 0.005, (*scales.shape, 128)).astype(np.float32)
    np.save(folder / f"{name}_scales.npy", each)
    emb = open_published(area_of(transform, scales.shape, 32731), 2024, store=tmp_path, version="v1").compute()
    values = txr.dequantize(emb).embeddings.sel(at).values
    np.testing.assert_allclose(values, codes[10, 7] * each[10, 7], atol=emb.scales.sel(at).item() * 0.51)


def test_neighbouring_tiles_make_one_map(tmp_path):
    to_map = Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True)
    edge = round(to_map.transform(3.1, 51.02)[0], -1)
    lonlat = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    left, right = (
        write_tile(tmp_path, lonlat.transform(edge + dx, 5_652_000), seed=s) for s, dx in enumerate((-400, 20))
    )
    shift = round((right[2].c - left[2].c) / 10)
    assert 40 <= shift <= 44  # they overlap: the western one comes first
    row = round((left[2].f - right[2].f) / 10)
    assert row == 0
    emb = open_published(area_of(left[2], (40, 90)), 2024, store=tmp_path, version="v1").compute()
    got = emb.embeddings.sel(y=left[2].f - 205)
    np.testing.assert_array_equal(got.sel(x=left[2].c + 10 * 49.5 - 0), left[0][20, 49])
    np.testing.assert_array_equal(got.sel(x=left[2].c + 10 * 60.5), right[0][20, 60 - shift])


def test_tiles_that_are_not_to_be_trusted(tmp_path):
    _, scales, transform = write_tile(tmp_path, (3.03, 51.02))
    area = area_of(transform, scales.shape)
    name = "grid_3.05_51.05"
    file = tmp_path / "global_0.1_degree_representation" / "2024" / name / f"{name}.npy"
    good = file.read_bytes()

    class Evil:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"holds object|can't be read"):
        open_published(area, 2024, store=tmp_path, version="v1")
    huge = good.replace(b"(40, 50, 128)", b"(4000000, 500000, 128)", 1)[: len(good)]
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|i1', 'fortran_order': False, 'shape': (99999999, 9999999, 128), }".ljust(117)
        + b"\n"
    )
    for data, why in (
        (b"not an array at all", "is no NPY file"),
        (header, "holds int8 .99999999, 9999999, 128."),
        (good.replace(b"False", b"True ", 1), "expected|header"),
        (good.replace(b"|i1", b"<f8", 1), "holds float64"),
        (good.replace(b"(40, 50, 128)", b"(41, 50, 128)", 1), "don't belong together"),
        (good[:6] + b"\x03" + good[7:], "is no NPY file of version 1"),
        (huge[:5000], "expected|together|header"),
    ):
        file.write_bytes(data)
        with pytest.raises(StoreError, match=why):
            open_published(area, 2024, store=tmp_path, version="v1")
    file.write_bytes(good[:-5000])
    with pytest.raises(StoreError, match="ends early"):
        open_published(area, 2024, store=tmp_path, version="v1").compute()
    file.write_bytes(good)
    mask = tmp_path / "global_0.1_degree_tiff_all" / f"{name}.tiff"
    mask.write_bytes(b"II*\x00" + b"\x00" * 100)
    with pytest.raises(StoreError, match="can't be read as a GeoTIFF"):
        open_published(area, 2024, store=tmp_path, version="v1")
    mask.unlink()
    with pytest.raises(StoreError, match=r"but not its landmask .*landmasks="):
        open_published(area, 2024, store=tmp_path, version="v1")


@pytest.mark.parametrize("kind", ["500", "404", "reset", "truncate", "429"])
def test_tiles_over_a_bad_line(kind, tmp_path):
    codes, scales, transform = write_tile(tmp_path, (3.03, 51.02), layout="site")
    with serve(tmp_path) as server:
        for key, after in ((r"05\.npy", 0), (r"05\.npy", 2), ("_scales", 2), ("tiff", 0)):
            server.clear()
            server.fault(key, kind, 1, after)
            emb = open_published(area_of(transform, scales.shape), 2024, store=f"{server.url}/npy/v1").compute()
            got = emb.embeddings.sel(x=transform.c + 75, y=transform.f - 105)
            np.testing.assert_array_equal(got, codes[10, 7])
        server.fault("_scales", kind, float("inf"))
        with pytest.raises(StoreError):
            open_published(area_of(transform, scales.shape), 2024, store=f"{server.url}/npy/v1")
        with pytest.raises(StoreError, match="landmasks="):
            open_published(area_of(transform, scales.shape), 2024, store=f"{server.url}/npy/mine")


# GeoTIFF ------------------------------------------------------------------------------------------------------------


def test_own_exports_come_back(tmp_path):
    emb = tutorial.embeddings().isel(y=slice(10, 40), x=slice(5, 50))
    emb.scales[0, 3, 4] = np.nan
    emb.embeddings[0, :, 3, 4] = 0
    files = [txr.to_geotiff(emb.sel(time=year), tmp_path / f"emb_{year}.tif") for year in (2017, 2018)]
    for store in (tmp_path, files):
        back = open_published(emb, [2017, 2018], store=store).compute()
        assert geobox_of(back) == geobox_of(emb)
        assert (back.attrs["model"], back.attrs["model_family"]) == ("v1.1-dclimate", "v1.1")
        wanted = emb.sel(time=[2017, 2018])
        np.testing.assert_allclose(txr.dequantize(back).embeddings, txr.dequantize(wanted).embeddings, atol=0.002)
        assert back["quality"].values[0, 3, 4] == QUALITY_FLAGS["no_data"]
        assert (back["quality"] == QUALITY_FLAGS["valid"]).sum() == 2 * 30 * 45 - 1
    one = open_published(emb, 2017, store=files[0])
    np.testing.assert_array_equal(one.embeddings, back.embeddings.sel(time=2017))
    with pytest.raises(SchemaError, match=r"holds nothing of 2020 there; it has \[2017, 2018\]"):
        open_published(emb, 2020, store=tmp_path)
    picture = txr.to_geotiff(emb.sel(time=2017).tessera.rgb(), tmp_path / "picture.tif")
    with pytest.raises(StoreError, match="bands of uint8; embeddings are 128 of float32"):
        open_published(emb, 2017, store=picture)
    (tmp_path / "broken.tif").write_bytes(b"MM")
    with pytest.raises(StoreError, match="can't be read as a GeoTIFF"):
        open_published(emb, 2017, store=tmp_path / "broken.tif")


# Icechunk -----------------------------------------------------------------------------------------------------------


def test_without_icechunk_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tessera_xr._optional.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"icechunk, which isn't installed: pip install 'tessera-xr\[icechunk\]'"
    ):
        open_published((3, 50, 3.1, 50.1), 2024, store="s3://bucket/some.icechunk")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Zone 33 on both sides of the equator, each half reaching beyond it, as the dClimate store does."""
    icechunk = pytest.importorskip("icechunk")
    import zarr

    path = tmp_path_factory.mktemp("ice") / "dclimate.icechunk"
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="a", zarr_format=3)
    arrays = {}
    for name, top, seed in (("33N", 400.0, 1), ("33S", 10_000_200.0, 2)):
        a = make_arrays((64, 48), 2, seed=seed)
        a["scales"][0, 5, 6] = np.nan
        group = root.create_group(name)
        group.attrs.update(
            {"spatial:transform": [10, 0, 500_000, 0, -10, top], "spatial:shape": [64, 48], "years_complete": [2023]}
        )
        codes = np.moveaxis(a["embeddings"], 1, -1)
        for n, v, dims in (
            ("embeddings", codes, 4),
            ("scales", a["scales"], 3),
            ("s2_obs_count", np.full((2, 64, 48), seed, np.uint16), 3),
        ):
            chunks = (1, 16, 16, 128)[:dims]
            fill = np.nan if n == "scales" else 0
            z = group.create_array(n, shape=v.shape, dtype=v.dtype, chunks=chunks, fill_value=fill,
                                   dimension_names=("time", "northing", "easting", "band")[:dims])  # fmt: skip
            z[...] = v
        t = group.create_array("time", shape=(2,), dtype="int64", dimension_names=("time",))
        t[:] = np.array(["2023-01-01", "2024-01-01"], "datetime64[ns]").astype(np.int64)
        t.attrs["units"] = "nanoseconds since 1970-01-01"
        arrays[name] = codes, a["scales"]
    session.commit("written")
    return path, arrays


def test_icechunk(repository):
    path, arrays = repository
    from odc.geo.geobox import GeoBox

    box = GeoBox((60, 48), Affine(10, 0, 500_000, 0, -10, 400), "EPSG:32633")
    emb = open_published(box, 2023, store=path).compute()
    assert emb.attrs["model"] == tutorial.embeddings().attrs["model"]
    assert "snapshot" in emb.attrs["source"]
    found = emb.embeddings.transpose("y", "x", "band").values
    north, south = arrays["33N"][0][0], arrays["33S"][0][0]
    keep = np.ones((60, 48), bool)
    keep[5, 6] = False
    np.testing.assert_array_equal(
        found[:40][keep[:40]], north[:40][keep[:40]]
    )  # as far as the equator, though both reach beyond
    np.testing.assert_array_equal(found[40:], south[20:40])
    assert emb["quality"].values[5, 6] == QUALITY_FLAGS["no_data"]
    assert set(emb.s2_obs_count.values[:40].ravel()) == {1}
    assert set(emb.s2_obs_count.values[40:].ravel()) == {2}
    with pytest.raises(SchemaError, match=r"holds nothing of 2024 there; it has \[2023\]"):
        open_published(box, 2024, store=path)
    lonlat = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform([500_205, 500_205], [205, -105])
    points = open_published(np.column_stack(lonlat), 2023, store=path)
    np.testing.assert_array_equal(points.embeddings[:, 0], north[19, 20])
    np.testing.assert_array_equal(points.embeddings[:, 1], south[30, 20])
    with pytest.raises(StoreError, match=r"can't be opened"):
        open_published(box, 2023, store=path.parent / "none.icechunk")
