"""Reading a store of the published layout, beside geotessera, both in one process of Python 3.12 without torch."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.explorer import tiled
from benchmarks.measure import Settings
from benchmarks.rows import Row
from tessera_xr.embedding.published.writing import to_published

TASKS = {
    "region": "a published store on disk: the whole area, as float32",
    "points": "the same: 100 pixels by coordinates",
}


def rows(size: int, settings: Settings) -> Iterator[Row]:
    """Yield a row for each way of reading: a rectangle, and points."""
    python, why = peers.geotessera()
    if why:
        yield from (Row("analysis", task, size, skipped=why) for task in TASKS.values())
        return
    emb = tiled(size).assign_attrs(period="2022")
    with tempfile.TemporaryDirectory() as folder:
        path = to_published(emb, Path(folder) / "store.zarr", progress=False)
        script = Path(__file__).with_name("published_side.py")
        command = [python, str(script), str(path), str(settings.repeats)]
        env = {**os.environ, "PYTHONPATH": str(peers.ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"it failed in Python 3.12: {done.stderr.strip().splitlines()[-1][:300]}"
        yield from (Row("analysis", task, size, skipped=reason) for task in TASKS.values())
        return
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        yield Row("analysis", TASKS[name], size, found["ours"], "geotessera " + found["version"], found["theirs"],
                  bytes=found["bytes"], note=found["note"])  # fmt: skip
