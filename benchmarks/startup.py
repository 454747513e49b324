"""What one waits for before anything is asked, each in a fresh process: `python -m benchmarks startup`.

"First ever": with an empty cache of compiled functions, as after an installation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.measure import Settings
from benchmarks.rows import Row, Want

GROUP, SIZED = "startup", False
PREFIX = """
import json, re, time
def memory(name):
    try:
        return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6
    except OSError:
        return None
start = time.perf_counter()
"""
SUFFIX = """
print(json.dumps([time.perf_counter() - start, memory("VmRSS"), memory("VmHWM")]))
"""
LOAD = """
import torch
from tessera_xr.encoder.checkpoints import load_encoder, resolve_model
source = resolve_model("mini", None)
start = time.perf_counter()
load_encoder(source, device="cpu", precision="float32")
"""
EMBED = """
import tessera_xr as txr
cube = txr.tutorial.cube(16)
start = time.perf_counter()
txr.embed(cube, "mini", progress=False)
"""


def rows(_: int | None, settings: Settings) -> Iterator[Row]:
    """Yield a row for each thing that is waited for."""
    run("import tessera_xr")  # writes byte code
    pairs = [(run("import xarray"), run("import tessera_xr")) for _ in range(settings.repeats)]
    alone, ours = ([p[i] for p in pairs] for i in (0, 1))
    task = "import tessera_xr"
    yield Row(GROUP, task, ours=[o[0] for o in ours], beside="import xarray", theirs=[a[0] for a in alone])
    more = [max(o[0] - a[0], 0.0) for a, o in zip(alone, ours, strict=True)]
    yield Row(GROUP, "import tessera_xr, less import xarray", ours=more, want=Want("seconds", 0.3))
    yield memory_row(Row(GROUP, "memory after import tessera_xr", want=Want("MB", 250)), ours[0])
    loads = [run(LOAD) for _ in range(settings.repeats)]
    yield Row(GROUP, "load a model (torch imported)", ours=[t[0] for t in loads], want=Want("seconds", 1))
    embeds = [run(EMBED) for _ in range(settings.repeats)]
    row = Row(GROUP, "first embed of a process, 16 x 16 pixels, torch imported within", want=Want("seconds", 5))
    yield replace(row, ours=[t[0] for t in embeds], peak_mb=embeds[0][2], note="peak is of the whole process")
    with tempfile.TemporaryDirectory() as cache:
        first = run(EMBED, NUMBA_CACHE_DIR=cache)
    yield replace(row, task="the same, first ever: functions compiled", ours=[first[0]], peak_mb=first[2])


def memory_row(row: Row, found: list[float]) -> Row:
    if found[2] is None:
        return replace(row, skipped="this system has no /proc to read it from")
    return replace(row, peak_mb=found[2], note=f"{found[1]:.0f} MB stay resident")


def run(code: str, **environment: str) -> list[float]:
    """Return seconds, resident and peak memory in MB of a piece of code in a process of its own."""
    command = [sys.executable, "-c", PREFIX + code + SUFFIX]
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
