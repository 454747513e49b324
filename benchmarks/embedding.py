"""A cube to embeddings on this CPU, beside the authors' code: `python -m benchmarks embed`.

Input: the Flanders chip of 2019 where TESSERA_XR_DATA or ../shared/data has it, else the tutorial's simulated cube.
Weights are random: speed doesn't depend on them. Operations are those that the distinct observations need; what padding
would add is not counted as work done. `benchmarks/embed.py` is the same for tuning, with its options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.authors import authors
from benchmarks.embed import load_cube, operations
from benchmarks.measure import Settings, compare
from benchmarks.rows import Row, Want

GROUP, SIZED = "embed", False
PIXELS = {"v2-nano": 4096, "v2-small": 512, "v2-medium": 256, "v2-large": 128, "v1.1-mpc": 128}
SHARES = {"mini": 0.85, "v2-nano": 0.85, "v2-small": 0.95, "v2-medium": 0.95, "v2-large": 0.95, "v1.1-mpc": 0.95}
"""Of the rate of a float32 product, wanted."""


def rows(_: int | None, settings: Settings) -> Iterator[Row]:
    """Yield rows for each model: beside the authors' default batch, and beside one that a CPU's caches hold."""
    chip = load_pixels()
    for name in settings.models or (("mini",) if settings.quick else tuple(PIXELS)):  # mini is of nano's shape
        yield from model_rows(name, chip, settings)


def load_pixels() -> tuple[np.ndarray, ...]:
    """Return the arrays that `encode` takes, of a few thousand pixels."""
    from tessera_xr.sentinel.bands import day_of_year

    cube = load_cube()
    s2, s1 = (cube[k].values.reshape(*cube[k].shape[:2], -1).transpose(2, 0, 1) for k in ("s2", "s1"))
    valid = cube["s2_valid"].values.reshape(s2.shape[1], -1).T
    days = [day_of_year(cube[f"{sensor}_time"].values) for sensor in ("s2", "s1")]
    return s2, days[0], valid, s1, days[1], cube["s1_orbit"].values == "descending"


def model_rows(name: str, chip: tuple[np.ndarray, ...], settings: Settings) -> Iterator[Row]:
    from tessera_xr.embedding.engine import encode

    encoder = make_encoder(name)
    n = min(64 if settings.quick else PIXELS.get(name, 4096), len(chip[0]))
    arrays = pick(chip, n)
    n_s2, n_s1 = arrays[2].sum(axis=1), (arrays[3] != 0).any(axis=2).sum(axis=1)
    work = operations(encoder.record.arch, n_s2, n_s1)
    row = Row(GROUP, f"{name}, {n:,} pixels to int8", operations=work, want=Want("share", SHARES.get(name, 0.95)))
    dims = encoder.record.n_dims

    def ours() -> None:
        encode(encoder, *arrays, dims=dims, dtype="int8")

    encode(encoder, *pick(chip, 16), dims=dims, dtype="int8")  # compiles
    found = compare(row, ours, [], replace(settings, patience=4 * settings.patience))[0]
    tokens = f"{n_s2.mean():.0f} + {n_s1.mean():.0f} observations a pixel"
    told = replace(found, note=f"{n / found.seconds:,.0f} px/s, {work / found.seconds / 1e9:,.0f} GFLOP/s; {tokens}")
    yield told
    for beside in authors(name, encoder, arrays, found.seconds / n, settings):
        again = compare(replace(row, want=None), ours, [beside], replace(settings, repeats=1), warm=False)[0]
        yield replace(again, peak_mb=None)


def make_encoder(name: str) -> Any:
    """Return an encoder of the true size with random weights."""
    import torch

    from tessera_xr.encoder.checkpoints import Encoder
    from tessera_xr.encoder.network import TesseraEncoder
    from tessera_xr.encoder.registry import RECORDS

    torch.manual_seed(0)
    record = RECORDS[name]
    network = TesseraEncoder(record.arch).eval().requires_grad_(requires_grad=False)
    return Encoder(record, network, "random", torch.device("cpu"), torch.float32)


def pick(chip: tuple[np.ndarray, ...], n: int) -> tuple[np.ndarray, ...]:
    """Return n pixels, evenly spread over the chip."""
    chosen = np.linspace(0, len(chip[0]) - 1, n).astype(int)
    s2, s2_doy, valid, s1, s1_doy, descending = chip
    return s2[chosen], s2_doy, valid[chosen], s1[chosen], s1_doy, descending
