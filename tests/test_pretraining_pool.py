"""The pool: every pixel once, as it was, shuffled over places, resumable; and its statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tessera_xr.errors import CubeError, SchemaError
from tessera_xr.pretraining import writing
from tessera_xr.pretraining.pool import Pool
from tessera_xr.pretraining.ragged import dense, monthly_means
from tessera_xr.pretraining.writing import as_pool, write_pool
from tessera_xr.sentinel.simulate import simulate_landscape, simulate_pixels


def made(n, t2, t1, seed, orbit="ascending"):
    """Arrays of n pixels with dates of their own; some pixels with few valid steps."""
    rng = np.random.default_rng(seed)
    s1 = rng.integers(2000, 9000, (n, t1, 2))
    s1[rng.random((n, t1)) < 0.2] = 0
    orbits = np.where(rng.random(t1) < 0.5, "ascending", "descending") if orbit == "both" else np.full(t1, orbit)
    return {
        "s2": rng.integers(100, 6000, (n, t2, 10)),
        "s2_doy": np.sort(rng.choice(np.arange(1, 366), t2, replace=False)),
        "s2_valid": rng.random((n, t2)) < rng.random((n, 1)),
        "s1": s1,
        "s1_doy": np.sort(rng.choice(np.arange(1, 366), t1, replace=False)),
        "s1_orbit": orbits,
    }


@pytest.fixture
def sources():
    return [made(90, 30, 25, 0, "both"), made(70, 44, 20, 1), made(50, 25, 30, 2, "descending")]


def eligible(source, least=10):
    seen = (source["s1"] != 0).any(axis=2).sum(axis=1)
    return np.flatnonzero((source["s2_valid"].sum(axis=1) >= least) & (seen >= least))


def test_every_eligible_pixel_is_there_once_as_it_was(sources, tmp_path):
    pool = write_pool(sources, tmp_path, shard_size=32, seed=4)
    kept = [eligible(source) for source in sources]
    assert pool.kept == [len(k) for k in kept]
    batch = pool.read(np.arange(len(pool)))
    found = sorted(zip(batch.source.tolist(), batch.pixel.tolist(), strict=True))
    assert found == [(i, int(p)) for i, k in enumerate(kept) for p in k]
    assert 0 < len(pool) < sum(len(s["s2"]) for s in sources)
    for i in range(0, len(pool), 7):
        source, pixel = sources[batch.source[i]], batch.pixel[i]
        valid = source["s2_valid"][pixel]
        mine = slice(*batch.s2.offsets[i : i + 2])
        assert np.array_equal(batch.s2.values[mine], source["s2"][pixel][valid])
        assert np.array_equal(batch.s2.doy[mine], source["s2_doy"][valid])
        seen = (source["s1"][pixel] != 0).any(axis=1)
        order = np.argsort(source["s1_orbit"] == "descending", kind="stable")
        order = order[seen[order]]
        mine = slice(*batch.s1.offsets[i : i + 2])
        assert np.array_equal(batch.s1.values[mine], source["s1"][pixel][order])
        assert np.array_equal(batch.s1.doy[mine], source["s1_doy"][order])
        assert np.array_equal(batch.s1.group[mine] == 1, source["s1_orbit"][order] == "descending")


def test_reading_keeps_the_order_asked_for(sources, tmp_path):
    pool = write_pool(sources, tmp_path, shard_size=32)
    whole, rows = pool.read(np.arange(len(pool))), np.array([70, 3, 40, 3, 99])
    part = pool.read(rows)
    assert np.array_equal(part.pixel, whole.pixel[rows])
    for sensor in ("s2", "s1"):
        expected = getattr(whole, sensor).take(rows)
        for name in ("values", "doy", "group", "offsets"):
            assert np.array_equal(getattr(getattr(part, sensor), name), getattr(expected, name))


def test_no_shard_and_no_batch_is_from_one_place(sources, tmp_path):
    pool = write_pool(sources, tmp_path / "a", shard_size=32)
    for step in range(2 * pool.batches_per_epoch(24)):
        assert len(set(pool.read(pool.batch_rows(step, 24, seed=0)).source)) > 1
    for first in range(0, len(pool) - 32, 32):
        assert len(set(pool.read(np.arange(first, first + 32)).source)) > 1
    plain = write_pool(sources, tmp_path / "b", shard_size=32, shuffle=False)
    assert (np.diff(plain.read(np.arange(len(plain))).source) >= 0).all()
    assert len(set(plain.read(plain.batch_rows(0, 24, seed=0)).source)) == 1


def test_batches_visit_each_pixel_once_an_epoch_in_another_order_each(sources, tmp_path):
    pool = write_pool(sources, tmp_path, shard_size=20)
    per_epoch = pool.batches_per_epoch(13)
    epochs = [
        np.concatenate([pool.batch_rows(step, 13, 5) for step in range(k * per_epoch, (k + 1) * per_epoch)])
        for k in range(2)
    ]
    for rows in epochs:
        assert len(rows) == per_epoch * 13
        assert len(set(rows.tolist())) == len(rows)
        assert rows.max() < len(pool)
    assert not np.array_equal(*epochs)
    again = Pool(tmp_path)
    assert np.array_equal(again.batch_rows(per_epoch + 2, 13, 5), epochs[1][26:39])  # from anywhere, without the rest
    assert not np.array_equal(pool.batch_rows(0, 13, 6), epochs[0][:13])
    with pytest.raises(SchemaError, match=f"pool has {len(pool)}"):
        pool.batches_per_epoch(10_000)


def test_statistics_are_those_of_the_valid_values(sources, tmp_path):
    pool = write_pool(sources, tmp_path)
    s2, orbits = [], {"ascending": [], "descending": []}
    for source in sources:
        rows = eligible(source)
        s2.append(source["s2"][rows][source["s2_valid"][rows]])
        for orbit, values in orbits.items():
            values.append(source["s1"][rows][:, source["s1_orbit"] == orbit].reshape(-1, 2))
    s2 = np.concatenate(s2)
    assert np.allclose(pool.statistics.s2_mean, s2.mean(axis=0), atol=1e-3)
    assert np.allclose(pool.statistics.s2_std, s2.std(axis=0), atol=1e-3)
    for orbit, values in orbits.items():
        values = np.concatenate(values)
        values = values[(values != 0).any(axis=1)]
        mean, std = getattr(pool.statistics, f"s1_{orbit}")
        assert np.allclose(mean, values.mean(axis=0), atol=1e-3)
        assert np.allclose(std, values.std(axis=0), atol=1e-3)


def test_an_absent_orbit_takes_the_statistics_of_the_other(tmp_path):
    pool = write_pool([made(40, 30, 30, 1)], tmp_path)
    assert pool.statistics.s1_descending == pool.statistics.s1_ascending
    assert pool.statistics.s1_ascending[0][0] > 1000


def test_an_interrupted_pool_goes_on_and_ends_the_same(sources, tmp_path, monkeypatch):
    expected = write_pool(sources, tmp_path / "whole", shard_size=32, seed=2)
    scatter, calls = writing._scatter, []

    def broken(source, index, *rest):
        calls.append(index)
        if len(calls) == 2:
            raise KeyboardInterrupt
        scatter(source, index, *rest)

    monkeypatch.setattr(writing, "_scatter", broken)
    with pytest.raises(KeyboardInterrupt):
        write_pool(sources, tmp_path / "part", shard_size=32, seed=2)
    with pytest.raises(SchemaError, match="unfinished"):
        Pool(tmp_path / "part")
    with pytest.raises(SchemaError, match="other options"):
        write_pool(sources, tmp_path / "part", shard_size=32, seed=3)
    with pytest.raises(SchemaError, match="other sources"):
        write_pool(sources[::-1], tmp_path / "part", shard_size=32, seed=2)
    pool = write_pool(sources, tmp_path / "part", shard_size=32, seed=2)
    assert calls == [0, 1, 1, 2]
    assert pool.id == expected.id
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.npy"))
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "part" / file).read_bytes()
    assert not (tmp_path / "part" / "partial").exists()


def test_a_finished_pool_is_returned_and_never_overwritten(sources, tmp_path):
    pool = write_pool(sources, tmp_path)
    assert write_pool(sources, tmp_path).id == pool.id
    assert as_pool(tmp_path, tmp_path / "unused").id == pool.id
    with pytest.raises(SchemaError, match="other sources or options"):
        write_pool(sources[:2], tmp_path)


def test_sources_of_every_kind_give_the_same_pixels(tmp_path):
    simulated = simulate_pixels(64, seed=3)
    names = ("s2", "s2_doy", "s2_valid", "s1", "s1_doy", "s1_orbit")
    arrays = {name: getattr(simulated, name) for name in names}
    own_days = arrays | {"s2_doy": np.tile(simulated.s2_doy, (64, 1)), "s1_doy": np.tile(simulated.s1_doy, (64, 1))}
    kinds = {"dpixels": simulated, "arrays": arrays, "days": own_days, "later": lambda: simulated}
    batches = [write_pool([s], tmp_path / k, min_s2=5).read(range(20)) for k, s in kinds.items()]
    for batch in batches[1:]:
        assert np.array_equal(batch.s2.values, batches[0].s2.values)
        assert np.array_equal(batch.s1.doy, batches[0].s1.doy)


def test_a_cube_is_a_source_read_in_blocks(tmp_path, monkeypatch):
    cube = simulate_landscape((16, 18), 2021, seed=2)
    pool = write_pool([cube], tmp_path / "a", shuffle=False)
    monkeypatch.setattr("tessera_xr.pretraining.sources.BLOCK", 18 * 150 * 3)
    lazy = write_pool([cube.chunk({"y": 5})], tmp_path / "b", shuffle=False)
    assert len(pool) == len(lazy) > 100
    first, second = pool.read(np.arange(len(pool))), lazy.read(np.arange(len(pool)))
    assert np.array_equal(first.s2.values, second.s2.values)
    row, column = divmod(int(first.pixel[50]), 18)
    valid = cube.s2_valid[:, row, column].values
    assert np.array_equal(first.s2.take(np.array([50])).values, cube.s2[:, :, row, column].values[valid])


def test_more_than_a_year_is_refused(tmp_path):
    with pytest.raises(CubeError, match="366 days"):
        write_pool([simulate_landscape((16, 16), [2020, 2021], seed=1)], tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shard_size": 0}, "shard_size must be a whole number, 1 or above"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"min_s2": 40}, "lower min_s2"),
        ({"sources": []}, "at least one"),
        ({"sources": [{"optical": 1}]}, "not optical"),
        ({"sources": [3]}, "simulate_pixels"),
        ({"sources": [made(20, 30, 30, 0) | {"s2": np.full((20, 30, 10), -5)}]}, "units"),
    ],
)
def test_bad_arguments_of_a_pool(change, words, tmp_path):
    arguments = {"sources": [made(20, 30, 30, 0)], "folder": tmp_path} | change
    with pytest.raises(SchemaError, match=words):
        write_pool(**arguments)


def test_another_version_or_no_pool_is_refused(sources, tmp_path):
    with pytest.raises(SchemaError, match="no pool"):
        Pool(tmp_path)
    write_pool(sources, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(SchemaError, match="version 99"):
        Pool(tmp_path)


def test_positions_outside_the_pool_are_refused(sources, tmp_path):
    pool = write_pool(sources, tmp_path)
    for rows in ([], [-1], [len(pool)]):
        with pytest.raises(SchemaError, match=f"from 0 to {len(pool) - 1}"):
            pool.read(rows)


def test_a_pixel_without_radar_is_taken_in_where_asked_for(tmp_path):
    source = made(40, 30, 30, 1)
    source["s1"][:] = 0
    pool = write_pool([source], tmp_path, min_s1=0)
    assert len(pool) > 10
    assert not pool.read(range(10)).s1.counts.any()


def test_monthly_means_and_dense_agree_with_loops(sources, tmp_path):
    s2 = write_pool(sources, tmp_path).read(range(12)).s2
    means, counts = monthly_means(s2)
    values, doy, valid = dense(s2)
    month = np.minimum((doy - 1) * 12 // 366, 11)
    for pixel in range(12):
        for m in range(12):
            mine = values[pixel][valid[pixel] & (month[pixel] == m)]
            assert counts[pixel, m] == len(mine)
            assert np.allclose(means[pixel, m], mine.mean(axis=0) if len(mine) else 0)
