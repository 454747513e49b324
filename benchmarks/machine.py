"""This machine: what it is, what runs on it, and the two rates that bound any task, a matrix product's and memory's."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

SIDE, BUFFER = 2048, 1 << 27
"""Side of the matrix product, and bytes that are read: more than caches hold."""
LARGE = 1e10
"""Operations above which a task is held against a product of that side, the better of two; else against half of it."""
PACKAGES = (
    "tessera-xr",
    "numpy",
    "torch",
    "numba",
    "scikit-learn",
    "xarray",
    "dask",
    "distributed",
    "zarr",
    "zeit-cdts",
)


def describe(settings: Any) -> dict[str, Any]:
    """Return what a reader must know to compare numbers."""
    rates = {"float32 product, GFLOP/s": best(sgemm) / 1e9, "reading memory, GB/s": best(bandwidth) / 1e9}
    if settings.torch_rates:
        rates |= torch_rates()
    return {
        "date": date.today().isoformat(), "processor": processor(), "cores": cores(), "system": platform.platform(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, "rates": rates,
        "versions": {"Python": platform.python_version(), **versions()},
    }  # fmt: skip


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    told = {k.strip(): v.strip() for k, v in lines.items()}
    flags = told.get("flags", "").split()
    kinds = [name for flag, name in FLAGS.items() if flag in flags]
    return f"{told.get('model name', platform.machine())} ({', '.join(kinds)})" if kinds else platform.machine()


FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "bfloat16", "amx_tile": "AMX"}


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def floor(operations: float, n_bytes: float) -> float:
    """Return the seconds that this many operations and bytes take at the rates of now, the greater of the two."""
    side, tries = (SIDE, 2) if operations > LARGE else (SIDE // 2, 1)
    rate = max(sgemm(side) for _ in range(tries)) if operations else 1.0
    return max(operations / rate, n_bytes / bandwidth() if n_bytes else 0.0)


def sgemm(side: int = SIDE) -> float:
    """Return operations a second of a float32 product, on all cores: NumPy's, or torch's if it is loaded and faster."""
    a, out = _matrix(side)
    rate = 2 * side**3 / clock(lambda: np.matmul(a, a, out=out))
    torch = sys.modules.get("torch")
    if torch is None:
        return rate
    left, product = torch.from_numpy(a), torch.from_numpy(out)
    return max(rate, 2 * side**3 / clock(lambda: torch.mm(left, left, out=product)))


def bandwidth() -> float:
    """Return bytes a second that all cores together read."""
    return BUFFER / clock(reader(_buffer(), cores()))


def torch_rates() -> dict[str, float]:
    """Return torch's rates, which the encoder works with."""
    import torch

    matrix = torch.rand(SIDE, SIDE)
    half = matrix.bfloat16()
    return {
        f"torch's {name}, GFLOP/s": best(lambda m=m: 2 * SIDE**3 / clock(lambda: torch.mm(m, m))) / 1e9
        for name, m in (("float32", matrix), ("bfloat16", half))
    }


def best(rate: Callable[[], float], rounds: int = 7) -> float:
    return max(rate() for _ in range(rounds))


def clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@cache
def _matrix(side: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.random.default_rng(0).random((side, side), dtype=np.float32)
    return a, a @ a


@cache
def _buffer() -> np.ndarray:
    buffer = np.ones(BUFFER // 8, dtype=np.uint64)
    reader(buffer, 1)()  # compiles
    return buffer


def reader(array: np.ndarray, threads: int) -> Callable[[], int]:
    """Return a function that reads an array once, as 8-byte words."""
    parts = np.array_split(array.reshape(-1).view(np.uint64), 8 * threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: sum(map(int, pool.map(_total, parts)))


@numba.njit(nogil=True, cache=True)
def _total(words: np.ndarray) -> int:
    out = np.uint64(0)
    for i in range(len(words)):
        out ^= words[i]
    return out
