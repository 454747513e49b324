"""Own embeddings in the published layout, and how near they come to the published ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from published_store import make_arrays, write_store, zone_box

import tessera_xr as txr
from tessera_xr import tutorial
from tessera_xr.embedding.published import writing as publishing
from tessera_xr.embedding.published.agreement import check_against
from tessera_xr.embedding.published.opening import open_published
from tessera_xr.embedding.published.writing import to_published
from tessera_xr.embedding.schema import QUALITY_FLAGS
from tessera_xr.errors import GridError, SchemaError, StoreError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")


@pytest.fixture
def emb():
    """Real embeddings of three years, 64 x 64 px, with a pixel of no data in the first."""
    emb = tutorial.embeddings().isel(time=[0, 1, 2]).copy(deep=True)
    emb.scales[0, 3, 4] = np.nan
    emb.embeddings[0, :, 3, 4] = 0
    return emb


def same(found: xr.Dataset, emb: xr.Dataset) -> None:
    """All variables that embeddings have are the same, on the same grid, and so is whose they are."""
    assert geobox_of(found) == geobox_of(emb)
    xr.testing.assert_equal(found[list(emb.data_vars)].compute(), emb)
    for key in ("model", "model_family", "weights_sha256", "model_official"):
        assert found.attrs.get(key) == emb.attrs.get(key)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "dask"])
def test_what_is_written_comes_back(lazy, emb, tmp_path):
    path = to_published(emb.chunk(y=20, x=30) if lazy else emb, tmp_path / "deep" / "mine")
    same(open_published(emb, [2017, 2018, 2019], store=path), emb)
    assert [p.name for p in path.parent.iterdir()] == ["mine"]  # nothing is left over
    single = emb.sel(time=2018).drop_vars("time").assign_attrs(period="2018")
    same(open_published(emb, [2018], store=to_published(single, tmp_path / "single")).isel(time=0, drop=True), single)


def test_the_layout_is_the_published_one(emb, tmp_path):
    root = zarr.open_group(to_published(emb, tmp_path / "mine"), mode="r", use_consolidated=True)
    assert root.metadata.zarr_format == 3
    zone = root["utm10"]
    codes, scales = zone["embeddings"], zone["scales"]
    assert (codes.shape, codes.chunks, codes.shards, codes.dtype) == (
        (3, 128, 64, 64),
        (1, 128, 32, 32),
        (1, 128, 64, 64),
        np.int8,
    )
    assert (scales.shape, scales.chunks, scales.shards) == ((3, 64, 64), (1, 32, 32), (1, 64, 64))
    assert (codes.fill_value, scales.fill_value, scales.dtype) == (0, np.inf, np.float32)
    assert codes.metadata.dimension_names == ("time", "band", "y", "x")
    assert scales.metadata.dimension_names == ("time", "y", "x")
    np.testing.assert_array_equal(codes[:], emb.embeddings.values)
    stored = scales[:]
    assert np.isposinf(stored[0, 3, 4])
    np.testing.assert_array_equal(np.where(np.isfinite(stored), stored, np.nan), emb.scales)
    np.testing.assert_array_equal(zone["x"][:], emb.x)
    np.testing.assert_array_equal(zone["y"][:], emb.y)
    assert zone["time"][:].tolist() == [2017, 2018, 2019]
    assert np.issubdtype(zone["time"].dtype, np.integer)
    assert zone["band"][:].tolist() == list(range(128))
    assert zone.attrs["proj:code"] == "EPSG:32610"
    assert zone.attrs["spatial:transform"] == list(geobox_of(emb).transform)[:6]
    assert zone.attrs["spatial:shape"] == [64, 64]
    assert {"geoemb:type", "geoemb:dimensions", "geoemb:model", "geoemb:quantization"} <= set(root.attrs)
    with xr.open_zarr(tmp_path / "mine", group="utm10", consolidated=False) as plain:  # and xarray reads it
        np.testing.assert_array_equal(plain.embeddings, emb.embeddings)


def test_shards_are_capped_and_edges_filled_up(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "SHARD", 64)
    box = zone_box(31, 500_000, 5_600_000, (150, 70))
    arrays = make_arrays(box.shape, 1)
    arrays["scales"][:, 64:128, :64] = np.inf  # a shard of nothing
    arrays["embeddings"][:, :, 64:128, :64] = 0
    source = open_published(box, [2024], store=write_store(tmp_path / "v1", {box: arrays}, (2024,)))
    path = to_published(source, tmp_path / "mine")
    assert zarr.open_group(path, mode="r")["utm31/scales"].shards == (1, 64, 64)
    written = {str(p.relative_to(path / "utm31/scales/c")) for p in (path / "utm31/scales/c").rglob("*") if p.is_file()}
    assert written == {"0/0/0", "0/0/1", "0/1/1", "0/2/0", "0/2/1"}
    same(open_published(box, [2024], store=path), source.compute())
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["utm31/embeddings"][:], arrays["embeddings"])
    small = to_published(source.isel(y=slice(0, 40), x=slice(0, 33)), tmp_path / "small")
    assert zarr.open_group(small, mode="r")["utm31/embeddings"].shards == (1, 128, 64, 64)


def test_sentinels_survive(tmp_path):
    box = zone_box(31, 500_000, 5_600_000, (32, 32))
    arrays = make_arrays(box.shape, 1)
    arrays["scales"][0, 0, :3] = [np.nan, np.inf, -0.5]
    source = open_published(box, [2024], store=write_store(tmp_path / "v1", {box: arrays}, (2024,))).compute()
    path = to_published(source, tmp_path / "mine")
    back = open_published(box, [2024], store=path)
    same(back, source)
    kinds = [QUALITY_FLAGS[k] for k in ("water", "no_data", "corrupt")]
    assert back["quality"].values[0, 0, :3].tolist() == source["quality"].values[0, 0, :3].tolist() == kinds
    stored = zarr.open_group(path, mode="r")["utm31/scales"][0, 0, :3]
    assert np.isnan(stored[0])
    assert stored[1] == np.inf
    assert not zarr.open_group(path, mode="r")["utm31/embeddings"][0, :, 0, :3].any()


def test_float_embeddings_are_quantised_and_ill_scales_marked(emb, tmp_path):
    wide = txr.dequantize(emb)
    same(open_published(emb, [2017, 2018, 2019], store=to_published(wide, tmp_path / "float")), txr.quantize(wide))
    wide.embeddings[1, :, 5, 6] = 0
    with pytest.warns(TesseraWarning, match="1 pixels have a scale outside"):
        path = to_published(wide, tmp_path / "zero")
    back = open_published(emb, [2018], store=path)
    assert back["quality"].values[0, 5, 6] == QUALITY_FLAGS["corrupt"]


def test_computed_embeddings_make_the_journey(make_cube, weights, tmp_path):
    own = txr.embed(make_cube(), weights, period=[2019, 2020], dtype="int8", progress=False)
    path = to_published(own, tmp_path / "own", version="my-student")
    back = open_published(own, [2019, 2020], store=path)
    same(back, own)
    assert back.attrs["weights_sha256"] == own.attrs["weights_sha256"]
    assert zarr.open_group(path, mode="r").attrs["geoemb:model"] == "my-student"
    assert check_against(own, back).attrs["median_cosine"] == pytest.approx(1)
    with pytest.raises(VersionMismatchError, match="leave out version="):
        open_published(own, 2019, store=path, version="v1.1")
    assert back.attrs["weights_licence"] == own.attrs["weights_licence"]
    mine = own.assign_attrs(weights_licence="MIT", model_official="no")
    attrs = open_published(own, [2019], store=to_published(mine, tmp_path / "mit")).attrs
    assert attrs["weights_licence"] == "MIT"
    assert not {"licence", "attribution"} & set(attrs)


def test_published_embeddings_keep_their_name(emb, tmp_path):
    for version in ("v9", "v2-2B-L~beta1", "v1"):
        with pytest.raises(VersionMismatchError, match="leave out version="):
            to_published(emb, tmp_path / "named", version=version)
    assert not (tmp_path / "named").exists()


def test_a_zone_on_the_other_side_of_the_earth_is_refused(emb, tmp_path):
    path = to_published(emb, tmp_path / "mine")
    with pytest.raises(GridError, match="far from zone=31"):
        open_published(emb, 2018, store=path, zone=31)


def test_the_south_is_written_on_the_northern_grid(emb, tmp_path):
    box = GeoBox((64, 64), type(geobox_of(emb).transform)(10, 0, 500_000, 0, -10, 9_000_000), "EPSG:32733")
    south = with_grid(emb, box)
    path = to_published(south, tmp_path / "mine")
    back = open_published(south, [2017], store=path)
    assert geobox_of(back).crs.to_epsg() == 32633
    assert back.y.values[0] == -1_000_005
    np.testing.assert_array_equal(back.embeddings[0], emb.embeddings[0])


# Adding -------------------------------------------------------------------------------------------------------------


def test_another_year_and_another_zone(emb, tmp_path):
    path = to_published(emb.sel(time=[2018]), tmp_path / "mine")
    to_published(emb.sel(time=[2017, 2019]), path)
    moved = with_grid(emb, zone_box(11, 300_000, 4_000_000, (64, 64)))
    to_published(moved.sel(time=[2018]), path)
    for consolidated in (True, False):
        root = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        assert root["utm10/time"][:].tolist() == [2018, 2017, 2019]
        assert root["utm10/embeddings"].shape == (3, 128, 64, 64)
    same(open_published(emb, [2017, 2018, 2019], store=path), emb)
    same(open_published(moved, [2018], store=path), moved.sel(time=[2018]))
    assert [p.name for p in path.parent.iterdir()] == ["mine"]
    assert sorted(p.name for p in path.iterdir()) == ["utm10", "utm11", "zarr.json"]


def test_what_does_not_fit_is_refused_and_changes_nothing(emb, tmp_path):
    path = to_published(emb.sel(time=[2018]), tmp_path / "mine")
    before = files(path)
    for other, error, why in (
        (emb.sel(time=[2018, 2019]), SchemaError, r"has \[2018\] of zone utm10 already"),
        (emb.sel(time=[2019]).isel(x=slice(5, 40)), GridError, "holds zone utm10 on the grid"),
        (emb.sel(time=[2019]).assign_attrs(model="v1"), VersionMismatchError, "holds embeddings of 'v1.1-dclimate'"),
        (emb.sel(time=[2019]).assign_attrs(weights_sha256="abc"), VersionMismatchError, "weights_sha256 differs"),
        (emb.sel(time=[2019]).isel(band=slice(64)), VersionMismatchError, "dimensions differs"),
        (emb.sel(time=[2019]).drop_vars("s2_obs_count"), SchemaError, "same variables"),
        (emb.sel(time=2019).drop_vars("time"), SchemaError, "calendar years"),
        (emb.sel(time=[2019]).odc.assign_crs("EPSG:3857"), GridError, "north-up UTM grids"),
        (emb.sel(time=[2019]).sortby("y"), GridError, "north-up UTM grids"),
        (tutorial.cube(16), SchemaError, "needs embeddings"),
    ):
        with pytest.raises(error, match=why):
            to_published(other, path)
        assert files(path) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"something at .* that is no published store"):
        to_published(emb, tmp_path / "other")
    own = emb.sel(time=[2019]).assign_attrs(model="unknown")
    foreign = write_store(tmp_path / "v1", {zone_box(31, 0, 100, (32, 32)): make_arrays((32, 32))})
    with pytest.raises(VersionMismatchError, match="don't mix"):
        to_published(own, foreign)


@pytest.mark.parametrize("when", ["_write_blocks", "_write_metadata", "_put_in_place", "_write_json"])
@pytest.mark.parametrize("what", ["new", "year", "zone"])
def test_whole_or_not_at_all(when, what, emb, tmp_path, monkeypatch):
    path = tmp_path / "mine"
    if what != "new":
        to_published(emb.sel(time=[2018]), path)
    before = files(path) if what != "new" else {}
    added = emb.sel(time=[2019])
    if what == "zone":
        added = with_grid(added, zone_box(11, 300_000, 4_000_000, (64, 64)))

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, when, fail)
        with pytest.raises(KeyboardInterrupt):
            to_published(added, path)
    assert [p.name for p in tmp_path.iterdir()] == ([] if what == "new" else ["mine"])
    if what != "new":  # what readers are told of is as before, though shards may lie there already
        now = files(path)
        assert now["zarr.json"] == before["zarr.json"]
        assert {k: now[k] for k in before if "/c/" in k} == {k: v for k, v in before.items() if "/c/" in k}
        same(open_published(emb, [2018], store=path), emb.sel(time=[2018]))
    to_published(added, path)  # and the next attempt finds nothing in its way
    same(open_published(added, [2019], store=path), added)


# Comparing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(emb, tmp_path):
    return open_published(emb, [2017, 2018, 2019], store=to_published(emb, tmp_path / "v1.1-dclimate"))


def own_run(emb, noise, seed=0):
    """As if one had computed the same with another arithmetic."""
    wide = txr.dequantize(emb)
    rng = np.random.default_rng(seed)
    wide["embeddings"] = wide.embeddings + noise * rng.normal(size=wide.embeddings.shape).astype(np.float32)
    return wide.assign_attrs(model="v1.1-mpc", weights_sha256="abc")


def test_equal_ones_agree(emb, published):
    found = check_against(emb, published)
    assert found.cosine.dims == ("time", "y", "x")
    assert found.cosine.dtype == np.float32
    assert geobox_of(found) == geobox_of(emb)
    ok = np.isfinite(emb.scales.values)
    np.testing.assert_allclose(found.cosine.values[ok], 1, atol=1e-6)
    for name in ("codes_equal", "codes_near", "scale_ratio"):
        np.testing.assert_array_equal(found[name].values[ok], 1)
    assert np.isnan(found.cosine.values[~ok]).all()
    assert found.attrs["compared_pixels"] == ok.sum()
    assert found.attrs["summary"].startswith(
        "12,287 pixels of 3 years compared: the same embeddings (median cosine 1.0000, 100.0 %"
    )


def test_measures_are_what_they_say(emb, published):
    own = own_run(emb, 0.3)
    found = check_against(own, published.chunk(y=10))
    a, b = own.embeddings.values[1, :, 5, 6], txr.dequantize(emb).embeddings.values[1, :, 5, 6]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.cosine.values[1, 5, 6] == pytest.approx(cosine, abs=1e-3)
    mine = txr.quantize(own)
    apart = abs(mine.embeddings.values[1, :, 5, 6].astype(int) - emb.embeddings.values[1, :, 5, 6])
    assert found.codes_equal.values[1, 5, 6] == pytest.approx((apart == 0).mean())
    assert found.codes_near.values[1, 5, 6] == pytest.approx((apart <= 1).mean())
    assert found.scale_ratio.values[1, 5, 6] == pytest.approx(mine.scales.values[1, 5, 6] / emb.scales.values[1, 5, 6])
    facts = found.attrs
    assert facts["median_cosine"] == pytest.approx(np.nanmedian(found.cosine))
    assert facts["low_cosine"] <= facts["median_cosine"]
    assert (facts["own_model"], facts["published_model"]) == ("v1.1-mpc", "v1.1-dclimate")


def test_the_verdict_falls_with_the_cosine(emb, published):
    said = [check_against(own_run(emb, noise), published).attrs for noise in (0.0, 0.05, 0.4, 2, 40)]
    cosines = [s["median_cosine"] for s in said]
    assert cosines == sorted(cosines, reverse=True)
    assert "the same embeddings" in said[0]["summary"]
    assert "not the same model, or wrong input" in said[-1]["summary"]
    assert len({s["summary"].partition(":")[2].partition("(")[0] for s in said}) == 4


def test_years_and_pixels_that_both_have(emb, published):
    own = own_run(emb, 0.0)
    part = own.sel(time=[2019, 2018]).isel(y=slice(10, 30), x=slice(3, 50))
    found = check_against(part, published.isel(y=slice(15, 64), x=slice(0, 40)))
    assert found.time.values.tolist() == [2019, 2018]
    assert geobox_of(found) == geobox_of(emb)[15:30, 3:40]
    assert found.attrs["median_cosine"] == pytest.approx(1)
    single = own.sel(time=2018).drop_vars("time").assign_attrs(period="2018-01-01/2018-12-31")
    for theirs in (published, published.sel(time=[2018])):
        assert check_against(single, theirs).cosine.dims == ("y", "x")
    alone = published.sel(time=2018).drop_vars("time").assign_attrs(period="2018")
    assert check_against(own, alone).time.values.tolist() == [2018]
    assert check_against(single, alone).attrs["median_cosine"] == pytest.approx(1)
    south = zone_box(33, 500_000, -1_000_000, (64, 64))
    there = GeoBox((64, 64), type(south.transform)(10, 0, 500_000, 0, -10, 9_000_000), "EPSG:32733")
    assert check_against(with_grid(own, there), with_grid(emb, south)).attrs["compared_pixels"] == 12287


def test_what_can_not_be_compared(emb, published):
    own = own_run(emb, 0.0)
    for ours, theirs, error, why in (
        (
            own.assign_attrs(model="v2-small", model_family="v2"),
            published,
            VersionMismatchError,
            "which v1.1-mpc or v1.1-aws makes. Pass check_model=False",
        ),
        (
            own.assign_attrs(model="mini", model_family="v2", model_official="no"),
            published,
            VersionMismatchError,
            "say nothing about",
        ),
        (own.isel(band=slice(64)), published, VersionMismatchError, "have 64 values, published ones 128"),
        (
            own.sel(time=[2017]),
            published.sel(time=[2018, 2019]),
            SchemaError,
            "are of 2017, published ones of 2018, 2019",
        ),
        (own.sel(time=2017).drop_vars("time"), published, SchemaError, "don't say which calendar years"),
        (
            with_grid(own, zone_box(10, 731_285, 4_286_160, (64, 64))),
            published,
            GridError,
            r"the grids differ: .*like=published",
        ),
        (with_grid(own, zone_box(11, 731_280, 4_286_160, (64, 64))), published, GridError, "the grids differ"),
        (with_grid(own, zone_box(10, 831_280, 4_286_160, (64, 64))), published, GridError, "don't meet"),
        (tutorial.cube(16), published, SchemaError, "needs embeddings"),
    ):
        with pytest.raises(error, match=why):
            check_against(ours, theirs)
    other = own.assign_attrs(model="v2-small", model_family="v2")
    assert check_against(other, published, check_model=False).attrs["own_model"] == "v2-small"
    blank = emb.copy(deep=True)
    blank["scales"][:] = np.nan
    assert check_against(blank, published).attrs["summary"] == "no pixel has data in both"


# Large --------------------------------------------------------------------------------------------------------------

LARGE = """
import json, sys
import dask, dask.array as da, numpy as np, xarray as xr
from odc.geo.geobox import GeoBox
import tessera_xr as txr
from tessera_xr.embedding.published.opening import open_published
from tessera_xr.embedding.published.writing import to_published
from tessera_xr.grid import with_grid

N, path, task = 4096, sys.argv[1], sys.argv[2]
box = GeoBox.from_bbox((400_000, 5_600_000, 400_000 + 10 * N, 5_600_000 + 10 * N), crs="EPSG:32631", resolution=10)
rng = np.random.default_rng(0)
fields = rng.integers(-127, 128, (16, 128), dtype=np.int8)  # a landscape of fields, which compresses
fields[:, 0] = 127
special = rng.integers(-127, 128, 128, dtype=np.int8)
special[3] = 127

def block(block_info=None):
    (_, _), (y, _), (x, _), _ = block_info[None]["array-location"]
    kinds = (np.arange(y, y + 256)[:, None] // 40 * 7 + np.arange(x, x + 256)[None] // 56 * 3) % 16
    out = fields[kinds]
    if (y, x) == (2560, 1280):
        out[100, 50] = special
    return out[None]

with dask.config.set(scheduler="threads", num_workers=2):
    if task == "write":
        chunks = ((1,), (256,) * 16, (256,) * 16)
        codes = da.map_blocks(block, chunks=(*chunks, (128,)), dtype=np.int8, meta=fields[None, None, :0])
        scales = da.full((1, N, N), np.float32(0.02), chunks=chunks)
        arrays = {"embeddings": (("time", "y", "x", "band"), codes), "scales": (("time", "y", "x"), scales)}
        named = {"model": "v2-large", "model_family": "v2"}
        ds = xr.Dataset(arrays, coords={"time": [2024], "band": np.arange(128)}, attrs=named)
        to_published(with_grid(ds.transpose("time", "band", "y", "x"), box), path, progress=False)
        result = {}
    else:
        emb = open_published(box, 2024, store=path)
        scores = emb.tessera.similarity(special)
        best = scores.max().compute().item()
        found = emb.tessera.find_similar(special, k=3)
        result = {"best": best, "size": emb.embeddings.nbytes, "x": found.geometry.x[0], "y": found.geometry.y[0],
                  "crs": str(found.crs), "valid": int((emb["quality"] == 1).sum())}
# not ru_maxrss, which begins at what the process that started this one holds
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps(result | {"peak": peak}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_two_gigabytes_are_written_opened_and_searched_under_one(tmp_path):
    env = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = {}
    for task in ("write", "search"):
        run = subprocess.run(
            [sys.executable, "-c", LARGE, tmp_path / "mine", task], env=env, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-3000:]
        done[task] = json.loads(run.stdout)
    assert zarr.open_group(tmp_path / "mine", mode="r")["utm31/embeddings"].shards == (1, 128, 4096, 4096)
    assert done["search"]["size"] == 2**31
    assert done["search"]["valid"] == 4096**2
    assert done["search"]["best"] == pytest.approx(1, abs=1e-5)
    assert {task: d["peak"] for task, d in done.items() if d["peak"] > 1000} == {}
