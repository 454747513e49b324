"""How fast this machine embeds, beside what its matrix product could do: `python benchmarks/embed.py [MODEL ...]`.

Input: the Flanders chip of 2019 (64x64 pixels, every date of the year) where TESSERA_XR_DATA or ../shared/data has it,
else the tutorial's simulated cube. Weights are random: speed doesn't depend on them. The operations are those that the
distinct observations need; what padding would add is not counted as work done. Each round times the matrix product
(2048 cubed, float32) and the embedding in turn, and the share is the median of the rounds' ratios, so that a machine
that slows down slows both.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

MODELS = ["v2-nano", "v2-small", "v2-medium", "v1.1-mpc"]
SGEMM = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=4096, help="at most; v1.1 and medium take a quarter")
    parser.add_argument("--budget", type=int, help="tokens a batch, instead of the package's choice")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        report(options.models[0], options.rounds, options.pixels, options.budget)
        return
    print(f"{'model':10} {'px/s':>8} {'tokens/s':>9} {'GFLOP/s':>8} {'sgemm':>6} {'share':>6} {'peak MB':>8}  pixels")
    for model in options.models:  # a process each, so that each peak of memory is its own
        flags = ["--here", "--rounds", str(options.rounds), "--pixels", str(options.pixels)]
        flags += ["--budget", str(options.budget)] if options.budget else []
        subprocess.run([sys.executable, __file__, model, *flags], check=True)


def report(model: str, rounds: int, n_pixels: int, budget: int | None) -> None:
    import torch

    from tessera_xr.embedding.engine import encode
    from tessera_xr.encoder.checkpoints import Encoder
    from tessera_xr.encoder.network import TesseraEncoder
    from tessera_xr.encoder.registry import RECORDS
    from tessera_xr.sentinel.bands import day_of_year

    record = RECORDS[model]
    cube = load_cube()
    step = 4 if record.arch.width > 256 else 1
    s2, valid, s1 = (cube[name].values for name in ("s2", "s2_valid", "s1"))
    chosen = np.arange(valid[0].size)[::step][:n_pixels]
    s2, s1 = (a.reshape(*a.shape[:2], -1)[:, :, chosen].transpose(2, 0, 1) for a in (s2, s1))
    valid = valid.reshape(len(valid), -1)[:, chosen].T
    arrays = (s2, day_of_year(cube["s2_time"].values), valid, s1, day_of_year(cube["s1_time"].values))
    descending = cube["s1_orbit"].values == "descending"
    torch.manual_seed(0)
    network = TesseraEncoder(record.arch).eval().requires_grad_(requires_grad=False)
    encoder = Encoder(record, network, "random", torch.device("cpu"), torch.float32)

    def run() -> None:
        encode(encoder, *arrays, descending, dims=record.n_dims, dtype="int8", budget=budget or "auto")

    run()
    n_s2, n_s1 = valid.sum(axis=1), (s1 != 0).any(axis=2).sum(axis=1)
    work = operations(record.arch, n_s2, n_s1)
    matrix = torch.rand(SGEMM, SGEMM)
    timed = [(seconds(lambda: torch.mm(matrix, matrix), 5), seconds(run, 1)) for _ in range(rounds)]
    rates = [2 * SGEMM**3 / product / 1e9 for product, _ in timed]
    ours = [work / embedding / 1e9 for _, embedding in timed]
    took = statistics.median(embedding for _, embedding in timed)
    share = statistics.median(a / b for a, b in zip(ours, rates, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = int(n_s2.sum() + n_s1.sum())
    print(
        f"{model:10} {len(chosen) / took:8,.0f} {tokens / took:9,.0f} {work / took / 1e9:8.0f} "
        f"{statistics.median(rates):6.0f} {share:6.2f} {peak:8,.0f}  {len(chosen)}",
        flush=True,
    )


def load_cube():
    import xarray as xr

    import tessera_xr as txr
    from tessera_xr.sentinel.cube import select_period

    data = Path(os.environ.get("TESSERA_XR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "flanders"
    if not data.exists():
        return txr.tutorial.cube(64)
    s2, s1 = (xr.open_dataset(data / f"{sensor}_2019.nc", engine="h5netcdf").load() for sensor in ("s2", "s1"))
    return select_period(txr.as_cube(s2, s1), 2019)


def operations(arch, *counts: np.ndarray) -> float:
    """Return the floating-point operations that pixels with these numbers of observations need."""
    d, hidden, n_layers = arch.width, arch.feedforward, arch.n_layers
    total = 0.0
    for n_bands, count in zip((10, 2), counts, strict=True):
        n = count.astype(float)
        total += (n * (2 * n_bands * d + 2 * d * d + n_layers * (8 * d * d + 4 * d * hidden))).sum()
        total += (n_layers * 4 * n * n * d).sum()  # attention
        if arch.pooling == "gru":  # inputs once for each observation, the state at every step of the padded sequence
            total += (n * 6 * d * d + np.ceil(n / 8) * 8 * 6 * d * d).sum()
    return total + len(counts[0]) * (16 * d * d + 8 * d * arch.n_out)


def seconds(function, repeats: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
