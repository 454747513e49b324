"""Published embeddings: read exactly, wherever they are, and nothing believed that a store only claims."""

from __future__ import annotations

import pickle

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from published_store import attributes, make_arrays, write_coordinates, write_store, zone_box
from pyproj import Transformer
from serving import serve
from shapely.geometry import MultiPoint, Point, Polygon
from zarr.codecs import GzipCodec, ZstdCodec

import tessera_xr as txr
from tessera_xr import tutorial
from tessera_xr.embedding.published import remote
from tessera_xr.embedding.published.opening import open_published
from tessera_xr.embedding.schema import QUALITY_FLAGS, check_same_model, has_data
from tessera_xr.errors import GridError, SchemaError, StoreError, VersionMismatchError
from tessera_xr.grid import bounds_lonlat, geobox_of

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
BOX = zone_box(31, 500_000, 5_600_000, (100, 140))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Try as often as ever, without the pauses."""
    monkeypatch.setattr(remote, "PAUSES", (0.01,) * len(remote.PAUSES))


@pytest.fixture(scope="module")
def arrays():
    return make_arrays(BOX.shape)


@pytest.fixture(scope="module")
def store(arrays, tmp_path_factory):
    """A store of one zone, 100 x 140 px, in shards of 64 and chunks of 32."""
    return write_store(tmp_path_factory.mktemp("stores") / "v1.1-dclimate", {BOX: arrays})


@pytest.fixture
def server(store):
    with serve(store.parent) as running:
        yield running


def place(box: GeoBox, row: float, column: float) -> tuple[float, float]:
    """The longitude and latitude of a place on a grid, in pixels from its upper left."""
    t = box.transform
    to_degrees = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True)
    return to_degrees.transform(t.c + t.a * column, t.f + t.e * row)


# What comes back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["folder", "server", "object"])
@pytest.mark.parametrize("chunks", [64, 256])
def test_every_pixel_is_the_stores(where, chunks, store, server, arrays):
    location = {"folder": store, "server": f"{server.url}/v1.1-dclimate", "object": zarr.storage.LocalStore(store)}[
        where
    ]
    emb = open_published(BOX, [2023, 2024], store=location, chunks=chunks)
    assert geobox_of(emb) == BOX
    assert emb.embeddings.chunks is not None
    np.testing.assert_array_equal(emb.embeddings, arrays["embeddings"])
    np.testing.assert_array_equal(emb.scales, arrays["scales"])
    assert (emb["quality"] == QUALITY_FLAGS["valid"]).all()


def test_a_part_is_that_part_and_its_chunks_end_where_the_stores_do(store, arrays):
    part = BOX[37:99, 21:130]
    emb = open_published(part, [2024], store=store, chunks=64)
    assert geobox_of(emb) == part
    assert emb.embeddings.chunks[2:] == ((27, 35), (43, 64, 2))
    np.testing.assert_array_equal(emb.embeddings[0], arrays["embeddings"][1, :, 37:99, 21:130])
    np.testing.assert_array_equal(emb.scales[0], arrays["scales"][1, 37:99, 21:130])


def test_degrees_give_the_pixels_around_them(store, arrays):
    corners = [place(BOX, r, c) for r, c in ((20.5, 30.5), (20.5, 40.5), (30.5, 40.5), (30.5, 30.5))]
    emb = open_published(Polygon(corners), 2023, store=store)
    assert geobox_of(emb) == BOX[20:31, 30:41]
    np.testing.assert_array_equal(emb.embeddings, arrays["embeddings"][0, :, 20:31, 30:41])
    west, south, east, north = bounds_lonlat(BOX[20:31, 30:41])
    again = open_published((west, south, east, north), 2023, store=store)
    assert set(again.x.values) >= set(emb.x.values)


def test_it_looks_like_what_embed_returns(store, make_cube, weights):
    cube = make_cube()
    for years, periods in ((2024, 2020), ([2023, 2024], [2019, 2020])):
        own = txr.embed(cube, weights, period=periods, dtype="int8", progress=False)
        emb = open_published(BOX[:6, :6], years, store=store)
        for name in ("embeddings", "scales"):
            assert emb[name].dims == own[name].dims
            assert emb[name].dtype == own[name].dtype
            assert emb[name].attrs == own[name].attrs
        assert set(emb.coords) == set(own.coords)
        assert {"tessera_xr_kind", "model", "model_family", "weights_licence", "source"} <= set(emb.attrs) & set(
            own.attrs
        )
        assert ("period" in emb.attrs) == ("period" in own.attrs) == (years == 2024)
        block = emb.embeddings.data.to_delayed().ravel()[0].compute()
        assert np.moveaxis(block, -3, -1).flags.c_contiguous  # band last in memory
    assert emb.time.values.tolist() == [2023, 2024]
    assert open_published(BOX, [2024, 2023], store=store).time.values.tolist() == [2024, 2023]
    flags = emb["quality"].attrs
    assert dict(zip(flags["flag_meanings"].split(), flags["flag_values"].tolist(), strict=True)) == QUALITY_FLAGS


def test_everything_that_takes_embeddings_takes_these(store, tmp_path):
    emb = open_published(BOX, [2023, 2024], store=store)
    one = emb.sel(time=2024)
    query = place(BOX, 10.5, 20.5)
    scores = one.tessera.similarity(query).compute()
    assert scores[10, 20] == pytest.approx(1, abs=1e-6)
    assert len(one.tessera.find_similar(query, k=3)) == 3
    assert one.tessera.cluster(3, seed=0).shape == BOX.shape
    assert one.tessera.rgb().shape[-2:] == BOX.shape or one.tessera.rgb().shape[:2] == BOX.shape
    assert txr.change(emb, 2023, 2024).shape == BOX.shape
    assert txr.dequantize(one).embeddings.dtype == np.float32
    assert "TESSERA embeddings, 128 dimensions" in repr(emb.tessera)
    sampled = one.tessera.sample([query, place(BOX[:, :500], -9, 3)], outside="nodata")
    assert sampled["quality"].values.tolist() == [QUALITY_FLAGS["valid"], QUALITY_FLAGS["no_data"]]


def test_versions_keep_apart(tmp_path, arrays):
    small = {BOX[:32, :32]: {n: a[..., :32, :32] for n, a in arrays.items()}}
    found = {}
    for folder in ("v1", "v1.1", "v1.1-dclimate", "v2-2B-L~beta1", "v2-2B-L~beta2", "mine"):
        found[folder] = open_published(BOX[:32, :32], [2023], store=write_store(tmp_path / folder, small))
    models = {folder: emb.attrs["model"] for folder, emb in found.items()}
    assert models["v1.1"] == "v1.1-cambridge"  # that is what its authors call it
    assert models["v1.1-dclimate"] == tutorial.embeddings().attrs["model"]
    assert len(set(models.values())) == 6
    check_same_model(found["v1.1-dclimate"], tutorial.embeddings())
    for other in set(found) - {"v1.1-dclimate"}:
        with pytest.raises(VersionMismatchError, match="differ in model"):
            check_same_model(found["v1.1-dclimate"], found[other])
    named = open_published(BOX[:32, :32], [2023], store=tmp_path / "mine", version="v2")
    assert (named.attrs["model"], named.attrs["model_family"]) == ("v2-2B-L~beta1", "v2")
    with pytest.raises(VersionMismatchError, match=r"holds embeddings of 'v1', not 'v2'"):
        open_published(BOX[:32, :32], [2023], store=tmp_path / "v1", version="v2")
    tailed = {"geoemb:model": "https://geotessera.org/model/v2-2B-L~beta2"}
    told = write_store(tmp_path / "copy", small, root_attrs=tailed)
    assert open_published(BOX[:32, :32], [2023], store=told).attrs["model"] == "v2-2B-L~beta2"


def test_sentinels(tmp_path):
    scales = {
        "no_data": [np.inf],
        "water": [np.nan],
        "corrupt": [-np.inf, 0, -0.1, 1, 1.5, 1e30],
        "valid": [1e-6, 0.99],
    }
    box = BOX[:32, :32]
    arrays = make_arrays(box.shape, 1)
    expected = np.full(box.shape, QUALITY_FLAGS["valid"])
    for i, (kind, values) in enumerate(scales.items()):
        arrays["scales"][0, i, : len(values)] = values
        expected[i, : len(values)] = QUALITY_FLAGS[kind]
    emb = open_published(box, 2024, store=write_store(tmp_path / "v1", {box: arrays}, (2024,))).compute()
    np.testing.assert_array_equal(emb["quality"], expected)
    good = expected == QUALITY_FLAGS["valid"]
    np.testing.assert_array_equal(has_data(emb), good)
    np.testing.assert_array_equal(np.isfinite(emb.scales), good)
    np.testing.assert_array_equal((emb.embeddings != 0).any("band"), good)
    np.testing.assert_array_equal(emb.embeddings.values[:, good], arrays["embeddings"][0][:, good])
    points = open_published([place(box, 1.5, 0.5), place(box, 2.5, 3.5), place(box, 9, 9)], 2024, store=tmp_path / "v1")
    assert points["quality"].values.tolist() == [QUALITY_FLAGS[k] for k in ("water", "corrupt", "valid")]
    assert np.isnan(points.scales).values.tolist() == [True, True, False]
    assert not points.embeddings[:, :2].any()
    icechunks = {"geotessera:mask_source": "source_nodata"}
    other = write_store(tmp_path / "v1.1", {box: arrays}, (2024,), zone_attrs=icechunks)
    assert open_published(box, 2024, store=other)["quality"][1, 0] == QUALITY_FLAGS["no_data"]


def test_matryoshka(tmp_path, arrays):
    box = BOX[:64, :64]
    v2 = write_store(
        tmp_path / "v2-2B-L~beta1", {box: {n: a[..., :64, :64] for n, a in arrays.items()}}, depths=(4, 16)
    )
    with serve(tmp_path) as server:
        url = f"{server.url}/v2-2B-L~beta1"
        for dims, folder in (
            (4, "embeddings_d4"),
            (16, "embeddings_d16"),
            (32, "embeddings"),
            (64, "embeddings"),
            (128, "embeddings"),
        ):
            server.clear()
            emb = open_published(box, [2024], store=url, dims=dims)
            np.testing.assert_array_equal(emb.embeddings[0], arrays["embeddings"][1, :dims, :64, :64])
            np.testing.assert_array_equal(emb.scales[0], arrays["scales"][1, :64, :64])
            read = {path.split("/")[3] for _, path, _ in server.requests if "/c/" in path}
            assert read == {"time", "scales", folder}
            at = open_published([place(box, 3.5, 5.5)], [2024], store=url, dims=dims)
            np.testing.assert_array_equal(at.embeddings[0, :, 0], emb.embeddings[0, :, 3, 5])
    short = write_store(tmp_path / "v2-2B-L~beta2", {box: {n: a[..., :64, :64] for n, a in arrays.items()}})
    np.testing.assert_array_equal(
        open_published(box, 2024, store=short, dims=16).embeddings, arrays["embeddings"][1, :16, :64, :64]
    )
    with pytest.raises(StoreError, match="has embeddings of 128 values, not of 4"):
        open_published(box, 2024, store=short, dims=4)
    v1 = write_store(tmp_path / "v1", {box: {n: a[..., :64, :64] for n, a in arrays.items()}})
    with pytest.raises(
        SchemaError, match=r"dims=16 cuts embeddings, which only those of v2 bear; .* holds v1 \(v1.0\)"
    ):
        open_published(box, 2024, store=v1, dims=16)
    with pytest.raises(SchemaError, match="dims=17 is no length"):
        open_published(box, 2024, store=v2, dims=17)


# Zones --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seam(tmp_path_factory):
    """Zones 31 and 32 on both sides of 6 degrees east at 52 north, each with data on its own side only."""
    boxes, zones = {}, {}
    for zone in (31, 32):
        to_map = Transformer.from_crs("EPSG:4326", f"EPSG:{32600 + zone}", always_xy=True)
        x, y = to_map.transform(6.0, 52.0)
        box = boxes[zone] = zone_box(zone, round(x, -1) - 640, round(y, -1) + 640, (128, 128))
        arrays = make_arrays(box.shape, 2, seed=zone)
        t = box.transform
        xs, ys = np.meshgrid(t.c + 10 * (np.arange(128) + 0.5), t.f - 10 * (np.arange(128) + 0.5))
        longitude, _ = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(xs, ys)
        outside = longitude >= 6 if zone == 31 else longitude < 6
        arrays["scales"][:, outside] = np.inf
        arrays["scales"][:, 60, 62 if zone == 31 else 66] = np.nan
        zones[box] = arrays
    return write_store(tmp_path_factory.mktemp("seam") / "v1", zones), boxes, list(zones.values())


@pytest.mark.parametrize("chunks", [32, 256])
def test_an_area_across_zones_comes_on_one_grid(seam, chunks):
    store, boxes, (west, east) = seam
    target = boxes[31][10:110, 10:110]
    emb = open_published(target, [2024], store=store, chunks=chunks).isel(time=0).compute()
    assert geobox_of(emb) == target
    assert emb.attrs["resampled"].startswith("UTM zone 32: nearest neighbour")
    assert (emb["quality"] == QUALITY_FLAGS["no_data"]).sum() < 110  # pixels of the seam that neither holds
    xs, ys = np.meshgrid(emb.x, emb.y)
    x, y = Transformer.from_crs("EPSG:32631", "EPSG:32632", always_xy=True).transform(xs, ys)
    t = boxes[32].transform
    rows, columns = np.floor((t.f - y) / 10).astype(int), np.floor((x - t.c) / 10).astype(int)
    own, n_far = west["scales"][1, 10:110, 10:110], 0
    for r in range(100):
        for c in range(100):
            codes, scale = west["embeddings"][1, :, r + 10, c + 10], own[r, c]
            if np.isposinf(scale) and 0 <= rows[r, c] < 128 and 0 <= columns[r, c] < 128:
                codes, scale = (
                    east["embeddings"][1, :, rows[r, c], columns[r, c]],
                    east["scales"][1, rows[r, c], columns[r, c]],
                )
                n_far += 1
            valid = 0 < scale < 1
            assert emb.scales.values[r, c] == scale if valid else np.isnan(emb.scales.values[r, c])
            if (r + c) % 7 == 0:
                np.testing.assert_array_equal(emb.embeddings.values[:, r, c], codes if valid else 0)
    assert n_far > 3000
    assert (emb["quality"] == QUALITY_FLAGS["water"]).sum() >= 2


def test_the_zone_of_the_middle_or_the_one_asked_for(seam):
    store, boxes, (_, east) = seam
    corners = [place(boxes[32], r, c) for r, c in ((20, 40), (20, 120), (100, 120), (100, 40))]
    emb = open_published(Polygon(corners), 2024, store=store)
    assert geobox_of(emb).crs == boxes[32].crs
    pixels = open_published(boxes[32][20:40, 90:120], 2024, store=store)
    np.testing.assert_array_equal(pixels.embeddings, east["embeddings"][1, :, 20:40, 90:120])
    assert "UTM zone 31" in emb.attrs["resampled"]
    other = open_published(Polygon(corners), 2024, store=store, zone=31)
    assert geobox_of(other).crs == boxes[31].crs
    shared = open_published(boxes[31][50:70, 50:70], 2024, store=store, zone=32)
    assert geobox_of(shared).crs == boxes[32].crs
    with pytest.raises(GridError, match="zone must be a whole number"):
        open_published(Polygon(corners), 2024, store=store, zone=61)


def test_an_area_across_the_equator(tmp_path):
    box = zone_box(33, 500_000, 320, (64, 64))
    arrays = make_arrays(box.shape)
    store = write_store(tmp_path / "v1", {box: arrays})
    emb = open_published(box, 2023, store=store)
    assert emb.y.values[[0, 31, 32, 63]].tolist() == [315, 5, -5, -315]
    np.testing.assert_array_equal(emb.embeddings, arrays["embeddings"][0])
    lonlat = [place(box, 20.5, 30.5), place(box, 40.5, 30.5)]
    assert lonlat[0][1] > 0 > lonlat[1][1]
    points = open_published(lonlat, 2023, store=store)
    np.testing.assert_array_equal(points.embeddings, arrays["embeddings"][0][:, [20, 40], [30, 30]])
    south = GeoBox((20, 64), type(box.transform)(10, 0, 500_000, 0, -10, 10_000_000), "EPSG:32733")
    found = open_published(south, 2023, store=store)  # the same pixels, in the southern CRS
    np.testing.assert_array_equal(found.embeddings, arrays["embeddings"][0][:, 32:52])


def test_a_store_on_other_pixels_keeps_them(tmp_path):
    box = zone_box(31, 500_003, 5_600_007, (64, 64))
    arrays = make_arrays(box.shape)
    store = write_store(tmp_path / "v1", {box: arrays})
    corners = [place(box, r, c) for r, c in ((20.5, 30.5), (20.5, 40.5), (30.5, 40.5), (30.5, 30.5))]
    emb = open_published(Polygon(corners), 2023, store=store)
    assert geobox_of(emb) == box[20:31, 30:41]
    np.testing.assert_array_equal(emb.embeddings, arrays["embeddings"][0, :, 20:31, 30:41])


# Points -------------------------------------------------------------------------------------------------------------


def test_points_are_what_sample_returns(store):
    emb = open_published(BOX, [2023, 2024], store=store).compute()
    rng = np.random.default_rng(1)
    lonlat = [place(BOX, r, c) for r, c in zip(rng.uniform(0, 100, 40), rng.uniform(0, 140, 40), strict=True)]
    expected = txr.sample(emb, lonlat)
    found = open_published(lonlat, [2023, 2024], store=store)
    xr.testing.assert_identical(found.drop_attrs(), expected.drop_attrs())
    assert found.attrs.keys() == expected.attrs.keys()
    assert found.embeddings.dims == expected.embeddings.dims
    frame = gpd.GeoDataFrame(
        {"a": range(40)},
        index=[f"p{i}" for i in range(40)],
        geometry=gpd.points_from_xy(*zip(*lonlat, strict=True)),
        crs=4326,
    )
    for form in (np.array(lonlat), frame, frame.to_crs(3857), frame.geometry, MultiPoint(lonlat)):
        got = open_published(form, [2023, 2024], store=store)
        np.testing.assert_array_equal(got.embeddings, expected.embeddings)
        assert ("point" in got.coords) == hasattr(form, "crs")
    one = open_published(lonlat[0], 2024, store=store)
    assert one.embeddings.dims == ("band", "point")
    np.testing.assert_array_equal(one.embeddings, expected.embeddings.sel(time=2024)[:, :1])
    np.testing.assert_array_equal(open_published(Point(lonlat[0]), 2024, store=store).embeddings, one.embeddings)


def test_points_of_several_zones(seam):
    store, boxes, (west, east) = seam
    lonlat = [place(boxes[31], 64.5, 30.5), place(boxes[32], 70.5, 100.5), place(boxes[31], 60.5, 62.5)]
    found = open_published(lonlat, 2024, store=store)
    np.testing.assert_array_equal(found.embeddings[:, 0], west["embeddings"][1, :, 64, 30])
    np.testing.assert_array_equal(found.embeddings[:, 1], east["embeddings"][1, :, 70, 100])
    assert found["quality"][2] == QUALITY_FLAGS["water"]
    assert found.utm_zone.values.tolist() == [31, 32, 31]
    np.testing.assert_allclose(np.column_stack([found.x, found.y]), lonlat, atol=1e-7)
    assert "4326" in found.spatial_ref.attrs["crs_wkt"]
    # beyond the edge of its own zone, where only the neighbour has data
    longitudes = [place(boxes[31], 64.5, c + 0.5)[0] for c in range(128)]
    beyond = next(c for c in range(128) if longitudes[c] >= 6)
    assert (
        open_published([place(boxes[31], 64.5, beyond + 1.5)], 2024, store=store)["quality"] == QUALITY_FLAGS["valid"]
    )


def test_one_point_of_a_whole_zone_costs_one_chunk(tmp_path):
    box = zone_box(31, 400_000, 5_640_000, (8192, 8192))
    root = zarr.open_group(tmp_path / "v1.1-dclimate", mode="w", zarr_format=3)
    group = root.create_group("utm31", attributes=attributes(box))
    write_coordinates(group, box, (2024,))
    codes, scales = (make_arrays((64, 64), 1)[n] for n in ("embeddings", "scales"))
    dims = ("time", "band", "y", "x")
    options = {"shape": (1, 128, *box.shape), "chunks": (1, 128, 32, 32), "shards": (1, 128, 4096, 4096)}
    group.create_array("embeddings", **options, dtype="int8", fill_value=0, dimension_names=dims)
    group["embeddings"][:, :, 4096:4160, :64] = codes
    options = {"shape": (1, *box.shape), "chunks": (1, 32, 32), "shards": (1, 4096, 4096)}
    group.create_array("scales", **options, dtype="float32", fill_value=np.inf, dimension_names=("time", "y", "x"))
    group["scales"][:, 4096:4160, :64] = scales
    zarr.consolidate_metadata(root.store)
    with serve(tmp_path) as server:
        url = f"{server.url}/v1.1-dclimate"
        found = open_published([place(box, 4100.5, 40.5)], 2024, store=url)
        np.testing.assert_array_equal(found.embeddings[:, 0], codes[0, :, 4, 40])
        asked = [(path.partition("utm31/")[2], span) for _, path, span in server.requests]
        assert [path for path, _ in asked] == ["", "time/c/0", *["scales/c/0/1/0"] * 2, *["embeddings/c/0/0/1/0"] * 2]
        index = f"bytes=-{16 * 128 * 128 + 4}"
        assert [asked[i][1] for i in (2, 4)] == [index, index]
        sizes = [b - a + 1 for a, b in (map(int, asked[i][1][6:].split("-")) for i in (3, 5))]
        assert sizes[0] <= 5000
        assert sizes[1] <= 140_000
        # an area of one pixel costs the same; more points of a chunk cost no more
        for area, options in ((box[4100:4101, 40:41], {}), ([place(box, 4100.5, c + 0.5) for c in range(33, 60)], {})):
            server.clear()
            open_published(area, 2024, store=url, **options).compute()
            assert len(server.requests) == 6
        # the indexes are asked for once, however many chunks there are
        server.clear()
        open_published(box[4096:4160, :64], 2024, store=url, chunks=32).compute()
        assert sum(span == index for _, _, span in server.requests) <= 2 + 2 * 4
        assert len({r for r in server.requests if r[2]}) == 2 + 2 * 4


# Faults -------------------------------------------------------------------------------------------------------------

FAULTS = ("500", "503", "404", "429", "reset", "truncate", "slow", "wrong")
KEYS = (r"/zarr.json", r"/time/c/", r"/scales/c/", r"/embeddings/c/")


@pytest.mark.parametrize("after", [0, 1], ids=["index", "chunk"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_passing_fault_changes_nothing(kind, key, after, server, arrays):
    server.slow_seconds = 0.1
    server.fault(key, kind, 1, after if "s/c/" in key else 0)
    emb = open_published(BOX[40:60, 40:60], 2024, store=f"{server.url}/v1.1-dclimate").compute()
    np.testing.assert_array_equal(emb.embeddings, arrays["embeddings"][1, :, 40:60, 40:60])
    np.testing.assert_array_equal(emb.scales, arrays["scales"][1, 40:60, 40:60])
    n_asked = sum(key.strip("/") in path for _, path, _ in server.requests)
    assert n_asked == (1 if "s/c/" not in key else 2) + (kind != "slow")


@pytest.mark.parametrize("after", [0, 1], ids=["index", "chunk"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", [f for f in FAULTS if f != "slow"])
def test_a_lasting_fault_is_an_error_not_no_data(kind, key, after, server):
    if (kind, key, after) == ("404", "/scales/c/", 0):
        pytest.skip("what a server says again and again is not there, is not: land without data")
    server.fault(key, kind, float("inf"), after if "s/c/" in key else 0)
    with pytest.raises(StoreError) as found:
        open_published(BOX[40:60, 40:60], 2024, store=f"{server.url}/v1.1-dclimate").compute()
    assert server.url in str(found.value)
    assert any(w in str(found.value) for w in ("Try again later", "try again", "landmasks="))
    server.clear()
    server.fault(key, kind, float("inf"), after if "s/c/" in key else 0)
    with pytest.raises(StoreError):
        open_published([place(BOX, 45, 45)], 2024, store=f"{server.url}/v1.1-dclimate")


def test_what_a_store_lacks_is_no_data_and_asked_for_twice(server, store, tmp_path):
    box = BOX[:64, :64]
    arrays = make_arrays(box.shape)
    arrays["scales"][1], arrays["embeddings"][1] = np.inf, 0  # then no shard is written
    write_store(store.parent / "holes" / "v1", {box: arrays})
    server.clear()
    emb = open_published(box, [2023, 2024], store=f"{server.url}/holes/v1").compute()
    assert (emb["quality"][1] == QUALITY_FLAGS["no_data"]).all()
    assert (emb["quality"][0] == QUALITY_FLAGS["valid"]).all()
    asked = [path for _, path, _ in server.requests if "/c/1/" in path]
    assert asked == ["/holes/v1/utm31/scales/c/1/0/0"] * 2  # codes of no data are not asked for at all


def test_a_server_that_names_a_time_is_given_it(server, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    monkeypatch.setattr(remote, "_wait_of", lambda response: 7.0)
    server.fault("zarr.json", "503", 2)
    open_published(BOX[:5, :5], 2024, store=f"{server.url}/v1.1-dclimate")
    assert waits == [7.0, 7.0]


def test_a_store_that_is_not_there(server, tmp_path):
    with pytest.raises(StoreError, match=r"there is no Zarr store at http://127.*/nothing; if it holds tiles"):
        open_published(BOX, 2024, store=f"{server.url}/nothing")
    with pytest.raises(StoreError, match=r"there is no store at .*none"):
        open_published(BOX, 2024, store=tmp_path / "none")
    with pytest.raises(StoreError, match=r"holds no store that is known"):
        open_published(BOX, 2024, store=tmp_path)
    server_gone = server.url.rpartition(":")[0] + ":9"
    with pytest.raises(StoreError, match=r"could not be read, in 5 tries: .*Try again later, or name another copy"):
        open_published(BOX, 2024, store=f"{server_gone}/v1")
    with pytest.raises(SchemaError, match=r"store=3 is none"):
        open_published(BOX, 2024, store=3)


def test_a_server_without_ranges_is_refused(store):
    import functools
    import threading
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=store.parent)) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        emb = open_published(BOX[:5, :5], 2024, store=f"http://127.0.0.1:{http.server_port}/v1.1-dclimate")
        with pytest.raises(StoreError, match="does not serve parts of files"):
            emb.compute()
        http.shutdown()


def test_only_https_and_nothing_secret(server, store, monkeypatch):
    monkeypatch.setattr(remote, "_pool_of", lambda *a: pytest.fail("nothing may be sent"))
    for url, why in (
        ("http://example.org/v1", "is not encrypted: .*allow_http=True"),
        ("https://me:secret@example.org/v1", "name or password"),
        ("ftp://example.org/v1", "is no address to read from"),
        ("file:///etc/passwd", "is no address to read from"),
    ):
        with pytest.raises(StoreError, match=why) as found:
            open_published(BOX, 2024, store=url)
        assert "secret" not in str(found.value)
    monkeypatch.undo()
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    emb = open_published(BOX[:5, :5], 2024, store=f"{server.url}/v1.1-dclimate?signature=secret")
    assert "secret" not in str(emb.attrs)
    assert "secret" not in repr(pickle.loads(pickle.dumps(emb)).attrs)
    server.fault("scales", "500", 9)
    with pytest.raises(StoreError) as found:
        emb.compute()
    assert "secret" not in str(found.value)


def test_redirections_lead_nowhere_else(server):
    seen = []

    def sent(to):
        def route(method, path, body):
            seen.append(path)
            return 302, "text/plain", b""

        return route

    server.routes["/v1/zarr.json"] = sent("x")
    monkey = {"Location": "http://example.org/zarr.json"}
    import urllib3

    real = urllib3.PoolManager.request

    def request(self, method, url, **options):
        answer = real(self, method, url, **options)
        if answer.status == 302:
            answer.headers.update(monkey)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib3.PoolManager, "request", request)
        with pytest.raises(
            StoreError, match=r"sends on to an address that is not read: http://example.org/zarr.json is"
        ):
            open_published(BOX, 2024, store=f"{server.url}/v1")
        monkey["Location"] = f"{server.url}/v1/zarr.json"
        with pytest.raises(StoreError, match="from address to address, over 5 times"):
            open_published(BOX, 2024, store=f"{server.url}/v1")
        monkey["Location"] = f"{server.url}/v1.1-dclimate/zarr.json"
        assert open_published(BOX[:5, :5], 2024, store=f"{server.url}/v1.1-dclimate").sizes["y"] == 5


def test_pickled_and_in_other_processes(server, arrays):
    emb = open_published(BOX[:40, :40], 2024, store=f"{server.url}/v1.1-dclimate", chunks=32)
    again = pickle.loads(pickle.dumps(emb))
    np.testing.assert_array_equal(again.embeddings, arrays["embeddings"][1, :, :40, :40])


# Bad questions ------------------------------------------------------------------------------------------------------


def test_years_that_are_not_there(store):
    with pytest.raises(SchemaError, match=r"holds nothing of 2019, 2025 there; it has \[2023, 2024\]"):
        open_published(BOX, [2019, 2024, 2025], store=store)
    with pytest.raises(SchemaError, match=r"it has \[2023, 2024\]"):
        open_published([place(BOX, 3, 3)], 2019, store=store)
    for years, why in (("2024", "are none"), ([], "at least one"), ([2024, 2024], "each once"), (2024.5, "are none"),
                       ([True], "whole number"), (24, "calendar years"), ([2023.0], "whole number")):  # fmt: skip
        with pytest.raises(SchemaError, match=why):
            open_published(BOX, years, store=store)


def test_places_that_are_not_there(store):
    with pytest.raises(GridError, match=r"holds nothing in UTM zone 33; it has the zones \[31\]"):
        open_published((13, 50, 13.1, 50.1), 2024, store=store)
    with pytest.raises(GridError, match=r"lies outside what .* reaches from 3.000 to 3.020 E and 50.5\d+ to 50.5\d+ N"):
        open_published((3.5, 50, 3.6, 50.1), 2024, store=store)
    with pytest.raises(GridError, match=r"1 of 2 points lie outside what .*, the first at \(3.5, 50.0\)"):
        open_published([place(BOX, 3, 3), (3.5, 50)], 2024, store=store)
    with pytest.raises(GridError, match=r"UTM zone 33"):
        open_published([(13.0, 50)], 2024, store=store)
    with pytest.raises(GridError, match=r"1 of 1 points are no places on Earth"):
        open_published([(500_000, 5_600_000)], 2024, store=store)
    with pytest.raises(GridError, match="is no area"):
        open_published("here", 2024, store=store)
    with pytest.raises(SchemaError, match="there are no points"):
        open_published(np.zeros((0, 2)), 2024, store=store)
    with pytest.raises(SchemaError, match="version='v9' is not published; choose one of"):
        open_published(BOX, 2024, version="v9")
    with pytest.raises(SchemaError, match="chunks must be"):
        open_published(BOX, 2024, store=store, chunks=0)
    partly = open_published(BOX[-10:, :].pad(5), 2024, store=store)  # reaches beyond what is there
    assert (partly["quality"].values[-5:] == QUALITY_FLAGS["no_data"]).all()
    assert (partly["quality"].values[:10, 5:-5] == QUALITY_FLAGS["valid"]).all()


# Stores that are not to be trusted ----------------------------------------------------------------------------------


def edit(store, tmp_path, array, change):
    """Copy a store, with the metadata of an array (or "" for the zone) changed."""
    import json
    import shutil

    copy = tmp_path / "v1"
    shutil.copytree(store, copy)
    root = json.loads((copy / "zarr.json").read_text())
    change(root["consolidated_metadata"]["metadata"][f"utm31/{array}".rstrip("/")])
    (copy / "zarr.json").write_text(json.dumps(root))
    return copy


def shape(*size):
    return lambda meta: meta.update(shape=list(size))


def inner(*size):
    def change(meta):
        meta["chunk_grid"]["configuration"]["chunk_shape"] = list(size)
        meta["codecs"][0]["configuration"]["chunk_shape"] = list(size)

    return change


def outer(*size):
    return lambda meta: meta["chunk_grid"]["configuration"].update(chunk_shape=list(size))


def codec(*names):
    def change(meta):
        settings = {"gzip": {"level": 1}, "zstd": {"level": 1}}
        chain = [{"name": n, **({"configuration": settings[n]} if n in settings else {})} for n in names]
        meta["codecs"][0]["configuration"]["codecs"] = chain

    return change


def attribute(name, value):
    return lambda meta: meta["attributes"].update({name: value})


@pytest.mark.parametrize(
    ("array", "change", "why"),
    [
        ("embeddings", shape(2, 128, 10**12, 140), "has the shape"),
        ("scales", shape(2, 10**9, 10**9), "has the shape|claims the shape"),
        ("embeddings", shape(10**9, 128, 100, 140), "has the shape"),
        ("time", shape(10**11), "has the shape|claims the shape"),
        ("embeddings", inner(1, 128, 2**16, 2**16), "claims chunks of 549,755,813,888 bytes"),
        ("scales", inner(1, 2**20, 2**20), "claims chunks of"),
        ("embeddings", outer(1, 128, 2**25, 2**25), "chunks in a shard"),
        ("embeddings", lambda m: m.update(data_type="float64", fill_value=0.0), "holds float64, not int8"),
        ("scales", lambda m: m.update(data_type="int32", fill_value=0), "holds int32, not float32"),
        ("embeddings", codec("bytes", "gzip"), "encoded by .*gzip"),
        ("embeddings", codec("bytes", "zstd", "zstd"), "encoded by"),
        ("embeddings", lambda m: m.update(dimension_names=["time", "y", "x", "band"]), "has dimensions"),
        ("", attribute("proj:code", "EPSG:4326"), "claims the CRS 'EPSG:4326'"),
        ("", attribute("spatial:shape", [5, 5]), r"claims \[5, 5\] pixels"),
        ("", attribute("spatial:transform", [10, 0, 0, 0, -10, 0]), "coordinates say .* which is right"),
        ("", attribute("spatial:transform", [1e9, 0, 5e5, 0, -1e9, 56e5]), "no north-up grid"),
        ("", attribute("spatial:transform", ["a"]), "six numbers"),
        ("embeddings", lambda m: m.update(codecs=[{"name": "evil"}]), "can't be read"),
    ],
)  # fmt: skip
def test_a_store_that_claims_the_absurd_is_refused(array, change, why, store, tmp_path):
    with pytest.raises(StoreError, match=why):
        open_published(BOX, 2024, store=edit(store, tmp_path, array, change)).compute()


@pytest.mark.parametrize(
    "transform",
    [[1e9, 0, 5e5, 0, -1e9, 56e5], [10, 0, np.nan, 0, -10, 0], [10, 1, 5e5, 0, -10, 56e5], "abc", [10, 0, 5, 0, 10, 0]],
)  # fmt: skip
def test_a_grid_that_can_not_be_is_refused_from_afar(transform, store, tmp_path):
    copy = edit(store, tmp_path, "", attribute("spatial:transform", transform))
    with serve(tmp_path) as server, pytest.raises(StoreError, match=r"no north-up grid|six numbers|can't be read"):
        open_published(BOX, 2024, store=f"{server.url}/{copy.name}")


@pytest.mark.parametrize("compressor", ["blosc", ZstdCodec(level=1)], ids=["blosc", "zstd"])
@pytest.mark.parametrize("claim", ["large", "small"])
def test_a_chunk_that_becomes_more_than_it_may_is_refused_before_it_does(compressor, claim, tmp_path):
    import numcodecs

    box = BOX[:32, :32]
    arrays = make_arrays(box.shape, 1)
    store = write_store(tmp_path / "v1", {box: arrays}, (2024,), shard=None, compressor=compressor)
    file = store / "utm31/embeddings/c/0/0/0/0"
    encoder = numcodecs.Blosc("zstd") if compressor == "blosc" else numcodecs.Zstd(1)
    n = 1 << 28 if claim == "large" else 100
    file.write_bytes(encoder.encode(np.zeros(n, np.uint8)))  # 256 MB of zeros in a few kB
    with pytest.raises(StoreError, match=r"becomes other than 131,072 bytes"):
        open_published(box, 2024, store=store).compute()


def test_an_index_that_claims_the_absurd_is_refused(store, tmp_path):
    import shutil

    import google_crc32c

    copy = tmp_path / "v1"
    shutil.copytree(store, copy)
    file = copy / "utm31/embeddings/c/1/0/0/0"
    data = file.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").copy()
    for size in (2**40, 2**63, 0, len(data)):
        index[1] = size
        body = index.tobytes()
        file.write_bytes(data[:-68] + body + int(google_crc32c.value(body)).to_bytes(4, "little"))
        with pytest.raises(StoreError, match=r"claims|lies outside|damaged|lacks"):
            open_published(BOX[:20, :20], 2024, store=copy).compute()
    file.write_bytes(data[:-1] + b"x")
    with pytest.raises(StoreError, match="the index of a shard is damaged"):
        open_published(BOX[:20, :20], 2024, store=copy).compute()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="damaged"):
        open_published(BOX[:20, :20], 2024, store=copy).compute()
    file.unlink()
    (copy / "secret").write_bytes(data)
    outside = tmp_path / "outside"
    outside.write_bytes(data)
    file.symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of"):
        open_published(BOX[:20, :20], 2024, store=copy).compute()


@pytest.mark.parametrize("options", [{"shard": None}, {"consolidate": False}, {"compressor": None},
                                     {"compressor": ZstdCodec(level=1)},
                                     {"compressor": ZstdCodec(level=1, checksum=True)}, {"inner": 16}])  # fmt: skip
def test_stores_written_otherwise(options, tmp_path, arrays):
    small = {n: a[..., :64, :64] for n, a in arrays.items()}
    write_store(tmp_path / "v1", {BOX[:64, :64]: small}, **options)
    with serve(tmp_path) as server:
        for where in (tmp_path / "v1", f"{server.url}/v1"):
            emb = open_published(BOX[:64, :64], [2024], store=where)
            np.testing.assert_array_equal(emb.embeddings[0], small["embeddings"][1])
    gzip = write_store(tmp_path / "gzip", {BOX[:64, :64]: small}, compressor=GzipCodec())
    with pytest.raises(StoreError, match="only bytes, blosc, zstd"):
        open_published(BOX[:64, :64], 2024, store=gzip)


def test_counts_come_along_where_a_store_has_them(tmp_path, arrays):
    counts = {
        n: np.full((2, 64, 64), i, np.uint16)
        for i, n in enumerate(("s2_obs_count", "s1_asc_obs_count", "s1_desc_obs_count"))
    }
    small = {n: a[..., :64, :64] for n, a in arrays.items()} | counts
    store = write_store(tmp_path / "v1", {BOX[:64, :64]: small})
    emb = open_published(BOX[:64, :64], 2024, store=store)
    points = open_published([place(BOX, 3, 3)], 2024, store=store)
    for i, name in enumerate(counts):
        assert (emb[name] == i).all()
        assert (points[name] == i).all()
        assert emb[name].attrs["long_name"] == tutorial.embeddings()[name].attrs["long_name"]


@pytest.mark.network
def test_the_published_store():
    emb = open_published((-120.35, 38.68, -120.347, 38.682), [2021], version="v1.1")
    assert (emb["quality"] == QUALITY_FLAGS["valid"]).any()
    assert emb.attrs["model"] == tutorial.embeddings().attrs["model"]


@pytest.mark.parametrize("where", [None, "https://example.com/store", "s3://bucket/store"])
def test_offline_nothing_beyond_this_machine_is_asked(where, store, server, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("TESSERA_XR_OFFLINE", "1")
    lon, lat = place(BOX, 5, 5)
    assert open_published([(lon, lat)], 2024, store=f"{server.url}/v1.1-dclimate").sizes["point"] == 1
    monkeypatch.setattr("socket.socket.connect", never)
    with pytest.raises(StoreError, match="TESSERA_XR_OFFLINE is set; unset it, or pass store="):
        open_published([(lon, lat)], 2024, store=where)
