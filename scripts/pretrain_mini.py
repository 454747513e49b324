"""Train the small encoder that the package brings, from nothing but the package: `python scripts/pretrain_mini.py OUT`.

D-pixels are simulated; where a folder of real ones is given (--data, or TESSERA_XR_DATA), those are pooled with them:
two chips of Flanders (2018 and 2019), TreeSat and the cube of monthly composites. Every other parcel of the chips is
kept apart, to be judged on. Run again with --resume after an interruption.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr

from tessera_xr.embedding.engine import encode
from tessera_xr.encoder.checkpoints import Encoder
from tessera_xr.errors import TesseraWarning
from tessera_xr.pretraining.config import MINI, PretrainConfig
from tessera_xr.pretraining.losses import rank_me
from tessera_xr.pretraining.pool import Pool
from tessera_xr.pretraining.sources import ARRAYS
from tessera_xr.pretraining.targets import fit_targets, scaled_targets
from tessera_xr.pretraining.train import pretrain
from tessera_xr.pretraining.writing import write_pool
from tessera_xr.sentinel.bands import day_of_year
from tessera_xr.sentinel.cube import as_cube
from tessera_xr.sentinel.simulate import simulate_pixels

SIMULATED_AT_ONCE = 16_384
TREESAT_BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
HELD_OUT_SEED = 1_000_003


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    out = Path(options.out)
    pool = write_pool(sources(options), out / "pool", seed=options.seed, min_s1=10)
    print(f"{pool!r}: {sum(pool.kept)} d-pixels of {len(pool.kept)} sources")
    config = settle(options, pool, out)
    print(f"{config.steps} updates of {config.batch_size} d-pixels")
    untrained = untrained_encoder(pool, config)
    result = pretrain(pool, config, folder=out / "run", resume=options.resume, name="mini", licence="MIT")
    print(result.log.dropna(subset=["rank_me"]).round(4).to_string(index=False))
    print(f"encoder: {result.path}")
    for title, test in test_sets(options.data).items():
        print(f"\n{title}: RankMe and balanced accuracy of logistic regression from a few pixels a class")
        judge(test, {"untrained": partial(vectors, untrained), "trained": partial(vectors, result.encoder)})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="folder of the pool and the run")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=30, help="of training, measured before it begins")
    length.add_argument("--steps", type=int, help="updates instead of minutes")
    parser.add_argument("--simulated", type=int, default=131_072, help="simulated d-pixels")
    parser.add_argument("--data", default=os.environ.get("TESSERA_XR_DATA"), help="folder of real d-pixels")
    parser.add_argument("--repeat-real", type=int, default=4, help="how often the few real d-pixels enter the pool")
    parser.add_argument("--batch-size", type=int, default=MINI.batch_size)
    parser.add_argument("--learning-rate", type=float, default=MINI.learning_rate)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def sources(options: argparse.Namespace) -> list[Any]:
    """Return what the pool is made of; simulated d-pixels are made when they are read."""
    sizes = [SIMULATED_AT_ONCE] * (options.simulated // SIMULATED_AT_ONCE)
    if rest := options.simulated % SIMULATED_AT_ONCE:
        sizes.append(rest)
    found: list[Any] = [partial(simulate_pixels, n, seed=options.seed + 1 + i) for i, n in enumerate(sizes)]
    return found + real_sources(options.data, options.repeat_real)


def real_sources(data: str | None, repeat: int) -> list[Any]:
    """Return the real d-pixels, those of sparse dates several times; held-out parcels are not among them."""
    if data is None or not Path(data).is_dir():
        print("no real d-pixels: simulated ones alone (see --data)")
        return []
    folder = Path(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseraWarning)
        chips = [pixels_of(flanders(folder, year), ~parcels(folder, year)[2]) for year in (2018, 2019)]
        tiles = [treesat(path) for path in sorted((folder / "treesat").glob("*.h5"))]
        return [*chips, *tiles] * repeat + [monthly(folder)]


def pixels_of(cube: xr.Dataset, chosen: np.ndarray) -> dict[str, Any]:
    """Return chosen pixels (y, x) of a cube as arrays."""
    s2, valid, s1 = (cube[name].transpose("y", "x", ...).values[chosen] for name in ("s2", "s2_valid", "s1"))
    days = [day_of_year(cube[name].values) for name in ("s2_time", "s1_time")]
    orbit = cube["s1_orbit"].values
    return {"s2": s2, "s2_doy": days[0], "s2_valid": valid, "s1": s1, "s1_doy": days[1], "s1_orbit": orbit}


def flanders(folder: Path, year: int) -> xr.Dataset:
    s2, s1 = (xr.open_dataset(folder / f"flanders/s{n}_{year}.nc", engine="h5netcdf").load() for n in (2, 1))
    return as_cube(s2, s1, period=year)


def parcels(folder: Path, year: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return crop, parcel number and whether it is held out, (y, x) each: every other parcel of a crop is."""
    from scipy.ndimage import label

    with xr.open_dataset(folder / f"flanders/labels_{year}.nc", engine="h5netcdf") as ds:
        crops = ds["crop_type"].values.astype(int)
    number, held = np.zeros_like(crops), np.zeros(crops.shape, dtype=bool)
    for i, code in enumerate(np.unique(crops[crops > 0])):
        patch = label(crops == code)[0]
        number[patch > 0] = 1000 * i + patch[patch > 0]
        held |= (patch > 0) & (patch % 2 == 0)
    return crops, number, held


def treesat(path: Path) -> xr.Dataset:
    """Read a TreeSatAI time series; its dates stand in the names of the products."""
    with h5py.File(path) as file:
        s2 = on_a_grid(file["sen-2-data"][:], times_of(file["sen-2-products"][:], 2), TREESAT_BANDS)
        clear = (file["sen-2-masks"][:].max(axis=1) == 0)[np.argsort(times_of(file["sen-2-products"][:], 2))]
        orbits = [
            on_a_grid(file[f"sen-1-{k}-data"][:], times_of(file[f"sen-1-{k}-products"][:], 4), ("VV", "VH"))
            for k in ("asc", "des")
        ]
    mask = s2["B02"].copy(data=clear)
    return as_cube(s2, s1_ascending=orbits[0], s1_descending=orbits[1], mask=mask)


def times_of(products: np.ndarray, position: int) -> np.ndarray:
    stamps = [name.decode().split("_")[position] for name in products]
    iso = [f"{s[:4]}-{s[4:6]}-{s[6:11]}:{s[11:13]}:{s[13:15]}" for s in stamps]
    return np.array(iso, dtype="datetime64[ns]")


def on_a_grid(data: np.ndarray, times: np.ndarray, names: tuple[str, ...]) -> xr.Dataset:
    rows, columns = data.shape[2:]
    coords = {"time": times, "y": 5_600_000 - 10.0 * np.arange(rows), "x": 500_000 + 10.0 * np.arange(columns)}
    ds = xr.Dataset({name: (("time", "y", "x"), data[:, i]) for i, name in enumerate(names)}, coords)
    return ds.sortby("time").odc.assign_crs("EPSG:32632")


def monthly(folder: Path) -> xr.Dataset:
    """Read the monthly composites; they lack B8A, for which B08 stands in."""
    ds = xr.open_dataset(folder / "cubes/worldcereal_2021_month.nc", engine="h5netcdf").load().rename(t="time")
    names = {f"S2-L2A-{band}": band for band in TREESAT_BANDS if band != "B8A"}
    s2 = ds[list(names)].rename(names).assign(B8A=ds["S2-L2A-B08"])
    numbers = ds[["S1-SIGMA0-VV", "S1-SIGMA0-VH"]].astype("float32")
    s1 = 20 * np.log10(numbers.where(numbers < 65535)) - 83
    s1 = s1.rename({"S1-SIGMA0-VV": "VV", "S1-SIGMA0-VH": "VH"})
    s2, s1 = (part.odc.assign_crs("EPSG:32631") for part in (s2, s1))
    there = ds["S2-L2A-B08"] != 65535
    return as_cube(s2.where(there, 0).astype("uint16"), s1, mask=there, offset=0, s1_units="db", orbit="ascending")


def settle(options: argparse.Namespace, pool: Pool, out: Path) -> PretrainConfig:
    """Return the settings; the number of updates is kept, so that a resumed run has the same."""
    config = replace(
        MINI, batch_size=options.batch_size, learning_rate=options.learning_rate, seed=options.seed, steps=options.steps
    )
    kept = out / "steps.json"
    if options.steps is None and options.resume and kept.is_file():
        return replace(config, steps=json.loads(kept.read_text()))
    if options.steps is None:
        config = replace(config, steps=steps_in(options.minutes, pool, config))
    kept.write_text(json.dumps(config.steps))
    return config


def steps_in(minutes: float, pool: Pool, config: PretrainConfig) -> int:
    """Measure a few updates of both kinds; return how many fit into so many minutes."""
    trial = replace(config, steps=20, auxiliary_alone=0.5, log_every=1, watch_every=1000, watched=2)
    with tempfile.TemporaryDirectory() as folder:
        seconds = pretrain(pool, trial, folder=folder, progress=False).log["seconds"].to_numpy()
    alone, twins = (seconds[10] - seconds[2]) / 8, (seconds[19] - seconds[11]) / 8
    share = config.auxiliary_alone
    return max(round(60 * minutes / (share * alone + (1 - share) * twins)), 10)


def untrained_encoder(pool: Pool, config: PretrainConfig) -> Encoder:
    with tempfile.TemporaryDirectory() as folder:
        return pretrain(pool, config, folder=folder, stop_after=0, progress=False).encoder


def test_sets(data: str | None) -> dict[str, dict[str, Any]]:
    """Return labelled d-pixels: what to embed, and functions that say which may train a head and which are judged."""
    pixels = simulate_pixels(4096, seed=HELD_OUT_SEED)
    arrays = {name: getattr(pixels, name) for name in ARRAYS}
    sets = {"Simulated places": {"arrays": arrays, "labels": pixels.land_cover, "split": half_of(pixels.place)}}
    for year in (2018, 2019) if data is not None and Path(data).is_dir() else ():
        crops, _, held = parcels(Path(data), year)
        common = np.isin(crops, np.intersect1d(crops[held], crops[~held & (crops > 0)]))
        split = partial(fixed, ~held[common])
        arrays = pixels_of(flanders(Path(data), year), common)
        sets[f"Flanders {year}, held-out parcels"] = {"arrays": arrays, "labels": crops[common], "split": split}
    return sets


def half_of(groups: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws half of the groups: pixels of the others are judged."""
    names = np.unique(groups)
    return lambda rng: np.isin(groups, rng.permutation(names)[: len(names) // 2])


def fixed(training: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    return training


def vectors(encoder: Encoder, arrays: dict[str, np.ndarray]) -> np.ndarray:
    *values, orbit = (arrays[name] for name in ARRAYS)
    return encode(encoder, *values, orbit == "descending", dims=encoder.record.n_dims).values


def judge(test: dict[str, Any], ways: dict[str, Callable[[Any], np.ndarray]]) -> None:
    """Print RankMe and few-shot accuracy of each way to describe the d-pixels, and of plain annual features."""
    found = {name: way(test["arrays"]) for name, way in ways.items()} | {"no network": features(test["arrays"])}
    seen = np.all([np.isfinite(x).all(axis=1) for x in found.values()], axis=0)
    print(f"{'':12} {'RankMe':>7} {'1 shot':>7} {'5 shot':>7} {'20 shot':>7}")
    for name, x in found.items():
        scores = [few_shot(x, test["labels"], seen, test["split"], shots) for shots in (1, 5, 20)]
        rank = rank_me(torch.from_numpy(x[seen]))
        print(f"{name:12} {rank:7.1f} " + " ".join(f"{score:7.3f}" for score in scores))


def features(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return monthly log-bands, indices, radar and their annual statistics, standardised: a baseline."""
    with tempfile.TemporaryDirectory() as folder:
        pool = write_pool([arrays], folder, shuffle=False, min_s2=1, min_s1=0)
        batch = pool.read(np.arange(len(pool)))
        target, known = scaled_targets(batch, fit_targets(batch))
    out = np.full((len(arrays["s2"]), target.shape[1]), np.nan, dtype=np.float32)
    out[batch.pixel] = torch.where(known, target, 0.0).numpy()
    return out


def few_shot(
    x: np.ndarray,
    labels: np.ndarray,
    seen: np.ndarray,
    split: Callable[[np.random.Generator], np.ndarray],
    shots: int,
    repeats: int = 10,
) -> float:
    """Return the mean balanced accuracy on places that no training pixel is from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        training = split(rng)
        both = np.intersect1d(labels[training & seen], labels[~training & seen])
        chosen = [rng.permutation(np.flatnonzero(training & seen & (labels == c)))[:shots] for c in both]
        rows, judged = np.concatenate(chosen), ~training & seen & np.isin(labels, both)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x[rows], labels[rows])
        scores.append(balanced_accuracy_score(labels[judged], model.predict(x[judged])))
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
