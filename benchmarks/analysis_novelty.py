"""Novelty, change and trend, beside a float32 product, plain NumPy and zeit-cdts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from benchmarks import peers
from benchmarks.analysis_similarity import float_product
from benchmarks.maps import BANDS, arrays, plainly, simulated
from benchmarks.measure import Beside, Settings, compare
from benchmarks.rows import Row, Want
from tessera_xr.analysis.change import change, trend
from tessera_xr.analysis.novelty import fit_novelty

YEARS = 5


def rows(one: xr.Dataset, emb: xr.Dataset, values: np.ndarray | None, why: str, settings: Settings) -> Iterator[Row]:
    """Yield a row for each task; `why` tells why there are no float32 values."""
    size, n = one.sizes["y"], one.sizes["y"] * one.sizes["x"]
    fitted = fit_novelty(one)
    row = Row("analysis", "novelty", size, operations=2.0 * n * BANDS * BANDS, bytes=n * (BANDS + 8))
    product = float_product(values, BANDS, why, Want("longer", 3))
    yield from compare(row, lambda: fitted.transform(one), [product], settings)
    row = Row("analysis", "change between two years", size, operations=6.0 * n * BANDS, bytes=n * 2 * (BANDS + 6))
    if "time" not in emb.dims:
        yield Row(
            "analysis", row.task, size, skipped=settings.lacks_memory(2.4 * n * BANDS) or "one year only in memory"
        )
    else:
        yield from compare(row, lambda: change(emb, 2020, 2021), change_peers(emb, settings), settings)
    yield trend_row(size // 4, settings)


def change_peers(emb: xr.Dataset, settings: Settings) -> list[Beside]:
    codes, scales = arrays(emb)
    why = settings.lacks_memory(4.2 * 1.5 * codes.size)

    def plain() -> np.ndarray:
        first, second = (plainly(codes[year], scales[year]) for year in (0, 1))
        first /= np.linalg.norm(first, axis=-1, keepdims=True)
        second /= np.linalg.norm(second, axis=-1, keepdims=True)
        return 1 - (first * second).sum(axis=-1)

    numpy = Beside("plain NumPy from int8", None if why else plain, Want("faster", 5), why)
    name, (zeit, missing) = "zeit-cdts 'embedding_change' on float32", peers.zeit()
    missing = missing or settings.lacks_memory(4.2 * 3 * codes.size)
    if missing:
        return [numpy, Beside(name, None, skipped=missing)]
    maps = xr.DataArray(
        np.moveaxis(plainly(codes, scales), -1, 1), dims=("time", "band", "y", "x"),
        coords={"time": np.array(["2020-01-01", "2021-01-01"], "datetime64[ns]"), "band": np.arange(BANDS),
                "y": emb["y"].values, "x": emb["x"].values},
    )  # fmt: skip
    return [numpy, Beside(name, lambda: zeit.embedding_change(maps).compute())]


def trend_row(side: int, settings: Settings) -> Row:
    emb = simulated(side, YEARS)
    codes, scales = arrays(emb)

    def plain() -> np.ndarray:
        unit = plainly(codes, scales)
        unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
        return np.einsum("syxb,tyxb->yxst", unit, unit, optimize=True)  # the cosines alone

    row = Row("analysis", f"trend and break of {YEARS} years, a quarter of each side", side,
              operations=2.0 * side * side * BANDS * YEARS * (YEARS + 1) / 2, bytes=codes.nbytes)  # fmt: skip
    why = settings.lacks_memory(2.2 * 4 * codes.size)
    beside = [Beside("plain NumPy, the cosines alone", None if why else plain, skipped=why)]
    return compare(row, lambda: trend(emb), beside, settings)[0]
