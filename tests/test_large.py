"""Areas larger than memory: the same as in memory, whole or not there, and going on from wherever it was stopped."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera_xr as txr
from tessera_xr.embedding.large import completion, journal, workers
from tessera_xr.embedding.large.embed import embed_to_zarr, open_large, plan_regions, verify_store
from tessera_xr.embedding.large.regions import AreaPlan, Region, _choose, _reads, check_memory, check_region
from tessera_xr.errors import (
    CubeError,
    DeviceError,
    SchemaError,
    StoreError,
    VersionMismatchError,
)

SIZE = 70
"""Pixels along a side: regions of 32 make nine, five of them cut short."""


@pytest.fixture
def cube(make_cube: Callable[..., xr.Dataset]) -> xr.Dataset:
    return make_cube(size=SIZE)


@pytest.fixture
def write(weights: Path, tmp_path: Path) -> Callable[..., Any]:
    """Embed with a tiny model, in regions of 32, in the calling thread where Dask asks."""

    def called(cube: Any, name: str | Path = "out.zarr", **options: Any) -> Any:
        settled = {"model": weights, "period": 2020, "region": 32, "device": "cpu", "progress": False, "client": False}
        here = (settled | options)["client"] is False
        with dask.config.set({"scheduler": "synchronous"} if here else {}):
            return embed_to_zarr(cube, tmp_path / name, **settled | options)

    return called


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished store that nothing disturbed is kept for all tests."""
    return tmp_path_factory.mktemp("undisturbed") / "whole.zarr"


@pytest.fixture
def whole(cube: xr.Dataset, write: Callable[..., Any], tmp_path: Path, undisturbed: Path) -> Path:
    """A copy of it."""
    if not undisturbed.exists():
        write(cube, undisturbed)
    return Path(shutil.copytree(undisturbed, tmp_path / "whole.zarr"))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Region]]:
    """Let the work fail at a region; gives the regions that were begun."""
    original = workers.embed_region

    def stopped(index: int | None, error: BaseException | None = None) -> list[Region]:
        begun: list[Region] = []

        def called(cube: xr.Dataset, region: Region, task: workers.Task) -> Any:
            begun.append(region)
            if len(begun) - 1 == index:
                assert error is not None
                raise error
            return original(cube, region, task)

        monkeypatch.setattr(workers, "embed_region", called)
        return begun

    return stopped


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shard(path: Path, name: str = "embeddings", *place: int) -> Path:
    return path.joinpath(name, "c", *map(str, place))


def same(left: xr.Dataset, right: xr.Dataset) -> None:
    """Hold int8 embeddings against others, beyond rounding: a code may differ by one."""
    codes = [ds.embeddings.values.astype(int) for ds in (left, right)]
    assert np.abs(codes[0] - codes[1]).max() <= 1
    assert (codes[0] != 0).any()
    xr.testing.assert_allclose(left.drop_vars("embeddings"), right.drop_vars("embeddings"), rtol=2e-5)
    assert left.attrs == right.attrs
    for name in right.variables:
        assert (left[name].dims, left[name].dtype, left[name].attrs) == (
            right[name].dims,
            right[name].dtype,
            right[name].attrs,
        )
    assert set(left.variables) == set(right.variables)


# the result


@pytest.mark.parametrize(
    ("period", "n"), [(2020, 9), ([2019, 2020], 18), ([("2019-03-01", "2020-02-28"), 2020], 18), ([2020], 9)]
)
def test_the_store_holds_what_embed_gives(period, n, cube, write, weights, tmp_path):
    emb = write(cube, period=period, dims=32)
    expected = txr.embed(cube, weights, period=period, dims=32, dtype="int8", device="cpu")
    same(emb.compute(), expected)
    opened = xr.open_zarr(tmp_path / "out.zarr")
    xr.testing.assert_identical(opened.compute(), emb.compute())
    assert len(verify_store(tmp_path / "out.zarr")) == n
    assert set(os.listdir(tmp_path)) == {"out.zarr"}


def test_without_a_period(make_cube, write, weights):
    cube = make_cube(size=6).isel(s2_time=slice(10), s1_time=slice(10))
    same(write(cube, period=None).compute(), txr.embed(cube, weights, dtype="int8", device="cpu"))
    with pytest.raises(CubeError, match="spans more than 366 days"):
        write(make_cube(size=6), "other.zarr", period=None)


def test_imagery_that_is_no_cube_yet(make_s2, write, weights):
    s2 = make_s2(size=6)
    same(write(s2.chunk(time=1)).compute(), txr.embed(s2, weights, period=2020, dtype="int8", device="cpu"))


CHUNKS = {
    "one": {},
    "aligned": {"y": 32, "x": 64},
    "straddling": {"y": 20, "x": 45},
    "dates apart": {"s2_time": 1, "s1_time": 3, "s2_band": 4, "y": 50},
}


@pytest.mark.parametrize("chunks", CHUNKS)
def test_every_chunking_gives_the_same_to_the_bit(chunks, cube, write, whole, tmp_path):
    write(cube.chunk(CHUNKS[chunks]))
    assert content(tmp_path / "out.zarr") == content(whole)


@pytest.mark.parametrize("region", [64, (96, 32), 96])
def test_every_cut_gives_the_same(region, cube, write, whole):
    emb = write(cube, region=region)
    same(emb.compute(), open_large(whole).compute())
    sides = region if isinstance(region, tuple) else (region, region)
    assert [emb.chunksizes[d][0] for d in ("y", "x")] == [min(side, SIZE) for side in sides]


def test_the_layout_is_that_of_the_published_stores(cube, write, tmp_path):
    write(cube, period=[2019, 2020], region=(32, 64))
    root = zarr.open_group(tmp_path / "out.zarr", mode="r")
    codes, scales = root["embeddings"], root["scales"]
    assert (codes.shape, codes.dtype, codes.fill_value) == ((2, 128, SIZE, SIZE), np.int8, 0)
    assert (codes.chunks, codes.shards) == ((1, 128, 32, 32), (1, 128, 32, 64))
    assert (scales.chunks, scales.shards, scales.dtype) == ((1, 32, 32), (1, 32, 64), np.float32)
    assert np.isnan(scales.fill_value)
    assert codes.metadata.zarr_format == 3
    assert codes.metadata.dimension_names == ("time", "band", "y", "x")
    assert "tessera_xr_complete" not in root.attrs
    assert root["time"][:].tolist() == [2019, 2020]


def test_several_areas_become_groups(cube, write, weights, tmp_path):
    areas = {"north": cube.isel(y=slice(40)), "s-2": cube.isel(y=slice(40, None), x=slice(33))}
    found = write(areas, period=[2020])
    assert list(found) == ["north", "s-2"]
    for name, area in areas.items():
        expected = txr.embed(area, weights, period=[2020], dtype="int8", device="cpu")
        same(found[name].compute(), expected)
        xr.testing.assert_identical(
            xr.open_zarr(tmp_path / "out.zarr", group=name).compute(), open_large(tmp_path / "out.zarr")[name].compute()
        )
    table = verify_store(tmp_path / "out.zarr")
    assert table.groupby("area").size().to_dict() == {"north": 6, "s-2": 2}
    assert table.fault.isna().all()
    shard(tmp_path / "out.zarr/s-2", "scales", 0, 0, 1).unlink()
    table = verify_store(tmp_path / "out.zarr")
    assert table[table.fault.notna()].values.tolist() == [["s-2", 0, 0, 30, 32, 33, "scales: file missing"]]


# interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no more")])
@pytest.mark.parametrize("index", [0, 4, 8])
def test_what_was_stopped_goes_on(error, index, cube, write, whole, stop_at, tmp_path):
    path = tmp_path / "out.zarr"
    stop_at(index, error)
    with pytest.raises(type(error)) as caught:
        write(cube.chunk(y=20))
    assert f"{index} of 9 regions" in caught.value.__notes__[-1]
    assert "the same call of embed_to_zarr goes on" in caught.value.__notes__[-1]
    assert not path.exists()
    with pytest.raises(
        StoreError, match=rf"isn't finished: {index} of 9 regions are written; call embed_to_zarr again"
    ):
        open_large(path)
    unfinished = xr.open_zarr(tmp_path / "out.zarr.unfinished/store")
    assert unfinished.attrs["tessera_xr_complete"] is False
    assert unfinished.scales.notnull().sum() <= index * 32**2
    begun = stop_at(None)
    write(cube.chunk(y=20))
    assert [r.index for r in begun] == list(range(index, 9))
    assert content(path) == content(whole)


def test_a_torn_line_of_the_journal_does_not_count(cube, write, whole, stop_at, tmp_path):
    stop_at(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(cube)
    lines = tmp_path / "out.zarr.unfinished" / journal.JOURNAL
    lines.write_bytes(lines.read_bytes()[:-9])
    begun = stop_at(None)
    write(cube)
    assert [r.index for r in begun] == [4, 5, 6, 7, 8]
    assert content(tmp_path / "out.zarr") == content(whole)


@pytest.mark.parametrize("step", ["create_store", "begin", "write_history", "rename", "clear"])
def test_stopped_between_two_steps(step, cube, write, whole, tmp_path, monkeypatch):
    """The steps around the work itself: a kill in between is an exception here, with nothing tidied up."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(journal.Workplace, "_leave", lambda self: None)
    place = {"create_store": completion, "write_history": journal, "rename": Path}.get(step, journal.Workplace)
    original = getattr(place, step)
    calls: list[Any] = []

    def called(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if step == "clear" and len(calls) < 3:  # the first two make room for new work
            return original(*args, **options)
        return fail()

    monkeypatch.setattr(place, step, called)
    with pytest.raises(KeyboardInterrupt):
        write(cube)
    monkeypatch.undo()
    write(cube)
    assert content(tmp_path / "out.zarr") == content(whole)
    assert not (tmp_path / "out.zarr.unfinished").exists()


KILLS = 10
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import xarray as xr
from tessera_xr.embedding.large.embed import embed_to_zarr, open_large
from tessera_xr.errors import StoreError
import torch, zarr

cube, path, weights, seed = xr.open_dataset(sys.argv[1], engine="h5netcdf").load(), Path(sys.argv[2]), sys.argv[3], 5
journal = path.with_name(path.name + ".unfinished") / "journal.jsonl"
rng = random.Random(seed)

def run(target):
    options = dict(period=2020, region=32, device="cpu", progress=False, client=False)
    embed_to_zarr(cube, target, weights, **options)

def lines():
    return journal.read_bytes().count(b"\\n") if journal.exists() else 0

def killed(least):
    "Kill a run at a random moment after so many regions; how many there are then."
    child = os.fork()
    if not child:
        try:
            run(path)
        finally:
            os._exit(0)
    while lines() < least and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(rng.random() * (0.05 if least else 0.6))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
    assert not path.exists()
    try:
        open_large(path)
    except StoreError as error:
        assert "finished" in str(error)
    else:
        raise AssertionError("an unfinished store was opened")
    return lines()

counts = [killed(least) for least in [0, 0, 0, *sorted(rng.sample(range(1, 10), int(sys.argv[4]) - 3))]]
run(path)
run(path.with_name("undisturbed.zarr"))
print(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that they start at once")
def test_killed_ten_times(make_cube, weights, tmp_path):
    cube = make_cube(size=128).sel(s2_time="2020", s1_time="2020").isel(y=slice(96))
    cube.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    path = tmp_path / "out.zarr"
    args = [sys.executable, "-c", KILLER, *map(str, (tmp_path / "cube.nc", path, weights, KILLS))]
    done = subprocess.run(args, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert len(counts) == KILLS
    assert counts == sorted(counts)  # nothing that was whole is lost
    assert counts[-1] < 12
    assert content(path) == content(tmp_path / "undisturbed.zarr")
    assert verify_store(path).fault.isna().all()


# what must not be mixed


def moved(cube: xr.Dataset) -> xr.Dataset:
    from odc.geo.geobox import GeoBox

    from tessera_xr.grid import with_grid

    box = GeoBox.from_bbox((5e5, 56e5, 5e5 + 10 * SIZE, 56e5 + 10 * SIZE), crs="EPSG:32631", resolution=10)
    return with_grid(cube, box)


def altered(cube: xr.Dataset) -> xr.Dataset:
    values = cube.s2.copy(deep=True)
    values[-1, 0, SIZE // 2, SIZE // 2] += 1
    return cube.assign(s2=values)


CHANGES: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], dict[str, Any], str]] = {
    "grid": (moved, {}, r"grid: 70 x 70 px, EPSG:32631.* before, 70 x 70 px"),
    "size": (lambda c: c.isel(x=slice(69)), {}, r"grid: 70 x 70 px.* before, 70 x 69 px"),
    "a date": (lambda c: c.isel(s2_time=slice(1, None)), {}, "Sentinel-2 dates: 20 dates, .* before, 19 dates"),
    "orbits": (
        lambda c: c.assign_coords(s1_orbit=("s1_time", ["ascending"] * 20)),
        {},
        r"Sentinel-1 orbits: 10 ascending .* before, 20 ascending",
    ),
    "attribute": (lambda c: c.assign_attrs(source="mine"), {}, "attribute source: .* before, mine now"),
    "a value": (altered, {}, "cube: values at row 35, column 35: "),
    "clouds": (lambda c: c.assign(s2_valid=c.s2_valid & False), {}, "values at row 35, column 35"),
    "radar": (lambda c: c.assign(s1=(c.s1 // 2).astype(np.int16)), {}, "values at row 35, column 35"),
    "model": (lambda c: c, {"model": "mini"}, r"model: tiny-v2|model: .* before, mini now"),
    "dims": (lambda c: c, {"dims": 32}, "dims: 128 before, 32 now"),
    "period": (lambda c: c, {"period": 2019}, "period: 2020-01-01/2020-12-31 before, 2019"),
    "list of periods": (lambda c: c, {"period": [2020]}, "several periods: False before, True now"),
    "seed": (lambda c: c, {"seed": 1}, "seed: 0 before, 1 now"),
    "precision": (lambda c: c, {"precision": "bfloat16"}, "computed on: cpu, float32 before, cpu, bfloat16 now"),
    "region": (lambda c: c, {"region": 64}, "region: 32 x 32 px before, 64 x 64 px now"),
}


@pytest.fixture
def unfinished(cube, write, stop_at, tmp_path) -> Path:
    stop_at(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(cube)
    stop_at(None)
    return tmp_path / "out.zarr.unfinished"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_named(change, cube, write, unfinished):
    alter, options, message = CHANGES[change]
    before = content(unfinished)
    with pytest.raises(StoreError, match=message):
        write(alter(cube), **options)
    assert content(unfinished) == before


def test_other_weights_under_one_name_are_refused(cube, write, unfinished, make_encoder, save_weights, tmp_path):
    other = save_weights(make_encoder(seed=1), tmp_path / "student.pt")
    with pytest.raises(StoreError, match="weights: "):
        write(cube, model=other)


def test_another_version_is_refused(cube, write, unfinished, monkeypatch):
    from tessera_xr.embedding.large import fingerprint

    monkeypatch.setattr(fingerprint, "__version__", "99.0")
    with pytest.raises(StoreError, match=r"version of tessera_xr: .* before, 99\.0 now"):
        write(cube)


def test_a_finished_store_of_something_else_is_refused_until_it_may_be_replaced(cube, write, whole, stop_at):
    before = content(whole)
    with pytest.raises(StoreError, match=r"the finished store .*\n  - dims: 128 before, 32 now\n.*overwrite=True"):
        write(cube, "whole.zarr", dims=32)
    stop_at(4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(cube, "whole.zarr", dims=32, overwrite=True)
    assert content(whole) == before  # as long as the new one isn't whole
    begun = stop_at(None)
    emb = write(cube, "whole.zarr", dims=32)
    assert (emb.sizes["band"], len(begun)) == (32, 5)
    assert not whole.with_name("whole.zarr.unfinished").exists()


def test_more_dates_of_another_year_than_asked_for(cube, write, unfinished, whole, tmp_path):
    """Memory may change, the regions stay; only what enters is compared."""
    write(cube, memory="1 GB", region=None)
    assert content(tmp_path / "out.zarr") == content(whole)


def test_overwrite_starts_anew(cube, write, unfinished, stop_at):
    begun = stop_at(None)
    write(cube, overwrite=True)
    assert len(begun) == 9


def test_a_finished_store_is_checked_and_not_made_again(cube, write, whole, stop_at):
    before, begun = content(whole), stop_at(None)
    write(cube, "whole.zarr")
    assert begun == []
    assert content(whole) == before


def test_what_is_foreign_is_never_touched(cube, write, tmp_path):
    folder = tmp_path / "out.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="is no store of embed_to_zarr, so it is never replaced"):
            write(cube, overwrite=overwrite)
    assert content(tmp_path) == {"out.zarr/thesis.txt": b"all of it"}
    shutil.rmtree(folder)
    work = tmp_path / "out.zarr.unfinished"
    work.mkdir()
    (work / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match=r"holds something else \(thesis.txt\)"):
        write(cube, overwrite=True)
    assert content(tmp_path) == {"out.zarr.unfinished/thesis.txt": b"all of it"}


def test_an_empty_folder_is_filled(make_cube, write, tmp_path):
    (tmp_path / "out.zarr").mkdir()
    assert write(make_cube(size=6)).sizes["y"] == 6


def test_two_runs_at_once_are_refused(cube, write, tmp_path):
    with journal.Workplace(tmp_path / "out.zarr").locked(), pytest.raises(StoreError, match="another process"):
        write(cube)
    assert not (tmp_path / "out.zarr.unfinished").exists()


# damage


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["embeddings", "scales", "s2_obs_count", "s1_desc_obs_count"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_found_and_made_again(damage, name, cube, write, whole, stop_at):
    before = content(whole)
    file = shard(whole, name, *([0] if name == "embeddings" else []), 1, 2)
    if damage == "flip":
        flip(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    table = verify_store(whole)
    bad = table[table.fault.notna()]
    assert bad.index.tolist() == [5]
    assert bad[["y_start", "y_stop", "x_start", "x_stop"]].values.tolist() == [[32, 64, 64, 70]]
    assert bad.fault.item().startswith(f"{name}: ")
    begun = stop_at(None)
    write(cube, "whole.zarr")
    assert [r.index for r in begun] == [5]
    assert content(whole) == before


def test_any_reader_notices_a_damaged_shard(whole):
    flip(shard(whole, "embeddings", 0, 1, 1))
    with pytest.raises(RuntimeError, match=r"(?i)zstd|checksum|decompress|corrupt"):
        xr.open_zarr(whole).embeddings.load(scheduler="synchronous")


def test_damage_to_unfinished_work_is_found_before_it_is_finished(cube, write, unfinished, whole, stop_at, tmp_path):
    flip(shard(unfinished / "store", "embeddings", 0, 0, 1))
    begun = stop_at(None)
    write(cube)
    assert [r.index for r in begun] == [*range(2, 9), 1]
    assert content(tmp_path / "out.zarr") == content(whole)


def test_a_disk_that_keeps_nothing(make_cube, write, monkeypatch, tmp_path):
    monkeypatch.setattr(completion, "find_fault", lambda *_, **__: "embeddings: contents changed")
    with pytest.raises(StoreError, match="1 of 1 regions don't keep what was written"):
        write(make_cube(size=6))
    assert not (tmp_path / "out.zarr").exists()


def test_a_full_disk_leaves_nothing_that_looks_whole(cube, write, whole, tmp_path):
    """No file may grow beyond 60 KB: the shards of codes do, in the middle of being written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(cube)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "0 of 9 regions" in caught.value.__notes__[-1]
    assert not (tmp_path / "out.zarr").exists()
    assert list((tmp_path / "out.zarr.unfinished/store/embeddings").glob("c/**/*.partial")) == []
    write(cube)
    assert content(tmp_path / "out.zarr") == content(whole)


def test_room_on_the_disk_is_looked_at_first(cube, write, stop_at, unfinished, monkeypatch):
    usage = shutil.disk_usage(unfinished)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    with pytest.raises(StoreError, match=r"needs up to 0\.00 GB more, but 0\.00 GB are free there; make room"):
        write(cube)
    with pytest.raises(StoreError, match="make room"):
        write(cube, "new.zarr")
    assert not unfinished.with_name("new.zarr.unfinished").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=650_000))  # 690 KB in all, 2 of 9 are there
    write(cube)
    with pytest.raises(StoreError, match="make room"):
        write(cube, "new.zarr")


# memory and the plan


MEASURE = """
import json, sys, dask.array as da, numpy as np, xarray as xr
from odc.geo.geobox import GeoBox
from tessera_xr.embedding.large.embed import embed_to_zarr, plan_regions
from tessera_xr.grid import with_grid
from tessera_xr.sentinel.bands import S1_BANDS, S2_BANDS

SIZE, N_S2, N_S1 = 1024, 24, 12

def lazy(size):
    def made(dtype, *shape):
        def block(block_info=None):
            info = block_info[None]
            out = np.zeros(info["chunk-shape"], dtype)
            out[..., 8::64, 8::64] = 1 if dtype == bool else 3000 + sum(info["chunk-location"])
            return out  # few pixels have data: reading is what is measured
        n, *bands = shape
        chunks = ((1,) * n, *((b,) for b in bands), (256,) * (size // 256), (256,) * (size // 256))
        return da.map_blocks(block, chunks=chunks, dtype=dtype, meta=np.empty((0,) * len(chunks), dtype))
    box = GeoBox.from_bbox((5e5, 56e5, 5e5 + 10 * size, 56e5 + 10 * size), crs="EPSG:32631", resolution=10)
    dates = [np.datetime64("2020-01-03", "ns") + np.arange(n) * np.timedelta64(14, "D") for n in (N_S2, N_S1)]
    arrays = {
        "s2": (("s2_time", "s2_band", "y", "x"), made(np.uint16, N_S2, 10)),
        "s2_valid": (("s2_time", "y", "x"), made(bool, N_S2)),
        "s1": (("s1_time", "s1_band", "y", "x"), made(np.int16, N_S1, 2)),
    }
    coords = {"s2_time": dates[0], "s2_band": list(S2_BANDS), "s1_time": dates[1], "s1_band": list(S1_BANDS)}
    coords["s1_orbit"] = ("s1_time", ["ascending", "descending"] * (N_S1 // 2))
    return with_grid(xr.Dataset(arrays, coords, {"tessera_xr_kind": "cube"}), box)

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

small, cube = lazy(512), lazy(SIZE)
options = dict(model=sys.argv[2], period=2020, device="cpu", memory=sys.argv[3])
embed_to_zarr(small.isel(y=slice(64), x=slice(64)), sys.argv[1] + "/small.zarr", progress=False, **options)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forgets the peak so far
before = status("VmRSS")
plan = plan_regions(cube, **options)
emb = embed_to_zarr(cube, sys.argv[1] + "/big.zarr", progress=False, **options)
peak = status("VmHWM")
codes = emb.isel(y=slice(8, None, 64), x=slice(8, None, 64)).compute()
print(json.dumps({"before": before, "peak": peak, "cube": cube.nbytes / 2**20, "regions": plan.n_regions,
                  "planned": plan.memory / 2**20, "with data": int(codes.scales.notnull().sum())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_cube_larger_than_its_memory(weights, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    args = [sys.executable, "-c", MEASURE, str(tmp_path), str(weights), "200 MB"]
    done = subprocess.run(args, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["cube"] > 500
    assert found["regions"] > 4
    assert found["with data"] == 16**2
    assert found["peak"] < 1024, found
    assert found["peak"] - found["before"] < found["planned"] <= 200, found


edges_of = st.lists(st.integers(1, 700), min_size=1, max_size=6).map(lambda c: np.cumsum([0, *c]))


@settings(max_examples=60, deadline=None)
@given(y=edges_of, x=edges_of, lazy=st.booleans(), room=st.floats(1024, 3e5))
def test_regions_fit_and_cover_every_pixel_once(y, x, lazy, room):
    shape = int(y[-1]), int(x[-1])
    edges = [y, x] if lazy else [np.zeros(1, int)] * 2
    region = _choose(shape, edges, room)
    assert region[0] * region[1] <= room
    assert all(side % 32 == 0 and 32 <= side <= 4096 for side in region)
    plan = AreaPlan("", shape, region, 2, 128, 0, 1.0)
    seen = np.zeros((2, *shape), int)
    regions = list(plan.regions(7))
    for r in regions:
        seen[r.time, r.y, r.x] += 1
    assert (seen == 1).all()
    assert [r.index for r in regions] == list(range(7, 7 + plan.n_regions))
    assert sum(r.pixels for r in regions) == plan.n_pixels


@pytest.mark.parametrize(
    ("chunks", "room", "expected"),
    [
        ((256, 256), 300**2, (256, 256)),  # one chunk of the source
        ((256, 256), 600**2, (512, 512)),  # several
        ((1024, 1024), 256**2, (256, 256)),  # a part that divides it
        ((64, 2048), 64 * 2048, (64, 2048)),  # strips
    ],
)
def test_regions_follow_the_chunks_of_the_source(chunks, room, expected):
    edges = [np.arange(0, 2049, n) for n in chunks]
    assert _choose((2048, 2048), edges, room) == expected


def test_how_often_a_source_is_read():
    edges = np.array([0, 50, 100])
    assert _reads(100, np.zeros(1, int), 32) == 1
    assert _reads(100, edges, 64) == 1.5  # 0 to 64 reads both chunks, 64 to 100 the second
    assert _reads(100, edges, 32) == (50 + 100 + 50 + 50) / 100
    assert _reads(128, np.array([0, 64, 128]), 64) == 1


def test_the_plan_says_what_will_be_done(cube, weights, tmp_path, stop_at):
    begun = stop_at(None)
    options = {"period": [2019, 2020], "device": "cpu", "region": 32}
    plan = plan_regions({"a": cube, "b": cube.chunk(y=20)}, weights, path=tmp_path / "x/y.zarr", **options, probe=True)
    assert (plan.n_regions, plan.n_pixels, begun) == (36, 4 * SIZE**2, [])
    assert plan.seconds > 0
    text = str(plan)
    assert "19,600 pixels in 36 regions, model" in text
    assert "area b     70 x 70 px, 2 periods: 18 regions of up to 32 x 32 px; the source is read" in text
    assert "in each process" in text
    assert "px/s" in text
    assert plan.disk >= 138 * plan.n_pixels
    assert os.listdir(tmp_path) == []
    assert "not measured" in str(plan_regions(cube, weights, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "'lots' can't be read"),
        ({"memory": 0}, "memory=0 can't be read"),
        ({"memory": True}, "can't be read"),
        ({"memory": "100 MB", "region": None}, r"memory=.* is too little: one region of 32 x 32 px takes .*; give at"),
        ({"memory": "130 MB", "region": 96}, r"a region of 96 x 96 px takes .*, more than memory="),
        ({"region": 33}, r"region=33 must be .* multiples of 32 from 32 to 4096"),
        ({"region": (32, 8192)}, "multiples of 32"),
        ({"region": "big"}, "multiples of 32"),
        ({"region": True}, "multiples of 32"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"dims": 33}, "has no embedding of 33 values"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(options, message, cube, write, tmp_path):
    with pytest.raises(SchemaError, match=message):
        write(cube, **options)
    assert os.listdir(tmp_path) == []


def test_other_bad_input(cube, write, weights, tmp_path):
    with pytest.raises(SchemaError, match="is not on this machine"):
        embed_to_zarr(cube, "s3://bucket/out.zarr", weights)
    for areas, message in (({}, "there is no area"), ({"../up": cube}, r"letters, digits")):
        with pytest.raises(SchemaError, match=message):
            write(areas)
    with pytest.raises(CubeError, match="no date falls into the period"):
        write(cube, period=2011)
    with pytest.raises(DeviceError):
        write(cube, device="cuda:99")
    for function in (open_large, verify_store):
        with pytest.raises(StoreError, match="is no store that embed_to_zarr has finished"):
            function(tmp_path)
        with pytest.raises(StoreError, match="there is nothing at"):
            function(tmp_path / "nothing.zarr")
    assert os.listdir(tmp_path) == []


def test_numbers_and_texts_of_memory_and_region():
    assert check_memory("2 GB") == check_memory(2_000_000_000) == 2_000_000_000
    assert check_region(64) == check_region([64, 64]) == (64, 64)
    assert check_region(None) is None


# workers


def test_a_process_that_computes_otherwise_refuses(cube, weights, tmp_path):
    region = Region(0, "", 0, 0, 0, slice(0, 32), slice(0, 32))
    options = {"model": str(weights), "weights": None, "dims": None, "device": "cpu", "precision": "float32"}
    options |= {"seed": 0, "check_imagery": True}
    part = cube.sel(s2_time="2020", s1_time="2020").isel(y=region.y, x=region.x)
    with pytest.raises(DeviceError, match=r"computes on cpu, float32, the store was begun on cuda, bfloat16"):
        workers.embed_region(part, region, workers.Task(tmp_path, 2020, options, "", "cuda, bfloat16"))
    with pytest.raises(VersionMismatchError, match="put the same file in every place"):
        workers.embed_region(part, region, workers.Task(tmp_path, 2020, options, "0" * 64, "cpu, float32"))


def test_each_process_takes_a_gpu_of_its_own(monkeypatch, tmp_path):
    from filelock import FileLock

    monkeypatch.setattr(workers.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(workers, "_HELD", [])

    def take(n: int, visible: str = "") -> int:
        workers.take_gpu.cache_clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return workers.take_gpu(n)

    assert take(3) == 0
    assert workers.take_gpu(3) == 0  # and keeps it
    other = FileLock(next(tmp_path.glob("tessera-xr-gpus-*")) / "1.lock")
    other.acquire()  # another process
    assert take(3) == 2  # 0 is held by the one before
    assert take(2, "3,0") == 0  # the first that it sees, whatever its number on the machine
    assert take(2, "3,4") == 1
    assert take(3) in range(3)  # all taken: shared
    workers._HELD.clear()
    other.release()
    workers.take_gpu.cache_clear()


def test_a_worker_computes_on_all_its_threads(monkeypatch):
    import torch

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    workers._use_threads(2)
    workers._use_threads(4)
    assert asked == [4]


@pytest.fixture
def threads(tmp_path):
    """A cluster of two workers in this process."""
    from distributed import Client, LocalCluster

    options = {"processes": False, "dashboard_address": None, "local_directory": tmp_path / "dask"}
    with LocalCluster(n_workers=2, threads_per_worker=2, **options) as cluster, Client(cluster) as client:
        yield client


@pytest.mark.parametrize("form", ["in memory", "lazy", "persisted"])
def test_a_cluster_gives_the_same_to_the_bit(form, cube, write, whole, threads, tmp_path):
    imagery = {
        "in memory": lambda: cube,
        "lazy": lambda: cube.chunk(y=20),
        "persisted": lambda: cube.chunk(y=40).persist(),
    }
    before = threading.active_count()
    write(imagery[form](), client=None)  # the active one
    assert content(tmp_path / "out.zarr") == content(whole)
    assert before > 0


def test_a_failure_on_a_worker_is_told_and_can_be_continued(cube, write, whole, threads, stop_at, tmp_path):
    stop_at(3, MemoryError("no more"))
    with pytest.raises(MemoryError, match="no more") as caught:
        write(cube.chunk(y=20), client=threads)
    assert "the same call of embed_to_zarr goes on" in caught.value.__notes__[-1]
    assert not (tmp_path / "out.zarr").exists()
    stop_at(None)
    write(cube)  # here
    assert content(tmp_path / "out.zarr") == content(whole)


def test_small_areas_are_cut_so_that_every_worker_has_some(cube, write, threads):
    emb = write(cube, client=threads, region=None)
    assert len(emb.chunksizes["y"]) * len(emb.chunksizes["x"]) >= 4


@pytest.mark.slow
def test_a_cluster_with_a_worker_killed(cube, write, whole, tmp_path):
    from distributed import Client, LocalCluster

    lines = tmp_path / "out.zarr.unfinished" / journal.JOURNAL
    options = {"threads_per_worker": 1, "dashboard_address": None, "local_directory": tmp_path / "dask"}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
        killed = threading.Event()

        def kill() -> None:
            while not (lines.exists() and lines.read_bytes().count(b"\n") >= 2):
                if killed.wait(0.005):
                    return
            os.kill(victim, 9)
            killed.set()

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        write(cube.chunk(y=20), client=client)
        assert killed.is_set()
        killed.set()
        thread.join()
    assert content(tmp_path / "out.zarr") == content(whole)
