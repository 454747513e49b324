"""Train the small encoder that the package brings: `python -m scripts.pretrain_mini OUT`.

D-pixels are simulated; where a folder of real ones is given (--data, or TESSERA_XR_DATA), those are pooled with them:
two chips of Flanders (2018 and 2019), TreeSat and a cube of monthly composites. Every other parcel of the chips and
all labelled tables are kept apart, to be judged on. Run again with --resume after an interruption, with the same
options. The encoder lies in OUT/run then: judge it with `python -m benchmarks.encoder_quality --model`, put it into
the package with `scripts/bundle_mini.py`.
"""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality import pixels as sets
from tessera_xr.pretraining.config import MINI
from tessera_xr.pretraining.train import pretrain
from tessera_xr.pretraining.writing import write_pool
from tessera_xr.sentinel.simulate import simulate_pixels

AT_ONCE = 16_384
PURE = 0.4  # share of the real pixels that stay as they are; the others are mixtures of two
SIMULATED = 131_072
REAL = {"flanders": 40_960, "monthly": 32_768, "treesat": 4_096}
STEPS = 16_000


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    out = Path(options.out)
    found = simulated(options.simulated, options.seed) + real(options.data, options.seed)
    pool = write_pool(found, out / "pool", seed=options.seed, min_s1=8)
    print(f"{pool!r}: {sum(pool.kept)} d-pixels of {len(pool.kept)} sources")
    config = replace(MINI, steps=options.steps, seed=options.seed)
    result = pretrain(pool, config, folder=out / "run", resume=options.resume, name="mini", licence="MIT")
    print(result.log.dropna(subset=["rank_me"]).tail(10).round(4).to_string(index=False))
    print(f"encoder: {result.path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="folder of the pool and the run")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates")
    parser.add_argument("--simulated", type=int, default=SIMULATED, help="simulated d-pixels")
    parser.add_argument("--data", default=os.environ.get("TESSERA_XR_DATA"), help="folder of real d-pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def simulated(n: int, seed: int) -> list[Any]:
    """Return sources of simulated d-pixels, which are made when they are read."""
    sizes = [AT_ONCE] * (n // AT_ONCE) + [n % AT_ONCE] * (n % AT_ONCE > 0)
    return [partial(simulate_pixels, size, seed=seed + 1 + i) for i, size in enumerate(sizes)]


def real(data: str | None, seed: int, counts: dict[str, int] = REAL) -> list[Any]:
    """Return the real d-pixels and mixtures of them; held-out parcels are not among them."""
    if data is None:
        print("no real d-pixels: simulated ones alone (see --data)")
        return []
    folder = sets.check_data(Path(data))
    chips = [sets.flanders(folder, year) for year in sets.YEARS]
    found = [(chip.take(~chip.held).arrays, counts["flanders"]) for chip in chips]
    found.append((sets.monthly_cube(folder), counts["monthly"]))
    found += [(sets.treesat(path), counts["treesat"]) for path in sorted((folder / "treesat").glob("*.h5"))]
    return [mixtures(arrays, n, seed + i) for i, (arrays, n) in enumerate(found)]


def mixtures(arrays: dict[str, np.ndarray], n: int, seed: int) -> dict[str, np.ndarray]:
    """Return `n` pixels as they lie at the edges of fields: shares of two, on the dates that both have.

    Reflectance mixes as it is, radar in power.
    """
    rng = np.random.default_rng([seed, 9])
    i, j = rng.integers(len(arrays["s2"]), size=(2, n))
    share = np.where(rng.random(n) < PURE, 1, rng.random(n)).astype(np.float32)[:, None, None]
    pure = share[:, 0] == 1
    s2, valid, s1 = (arrays[name] for name in ("s2", "s2_valid", "s1"))
    power = 10 ** ((s1.astype(np.float32) / 200 - 50) / 10)
    mixed = 10 * np.log10(share * power[i] + (1 - share) * power[j])
    there = (s1[i] != 0) & ((s1[j] != 0) | pure[..., None])
    return {
        **arrays,
        "s2": np.rint(share * s2[i] + (1 - share) * s2[j]).astype(np.uint16),
        "s2_valid": valid[i] & (valid[j] | pure),
        "s1": np.where(there, np.clip(np.rint((mixed + 50) * 200), 1, 32767), 0).astype(np.int16),
    }


if __name__ == "__main__":
    main()
