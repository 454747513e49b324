"""What parts of the recipe are worth: encoders trained alike, briefly, but for one part."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.quality.describe import described, embeddings, markdown, pair, scored
from benchmarks.quality.fewshot import Task
from benchmarks.quality.robustness import without_radar
from scripts.pretrain_mini import real, simulated
from tessera_xr.pretraining.config import MINI, PretrainConfig
from tessera_xr.pretraining.train import pretrain
from tessera_xr.pretraining.writing import write_pool

SHOTS = (1, 5, 10)
SIMULATED = 32_768
REAL = {"flanders": 8192, "monthly": 8192, "treesat": 1024}
NO_RADAR = "no Sentinel-1"


def ablations(tasks: list[Task], data: Path | None, steps: int, n: int) -> str:
    """Train for `steps` updates with and without each part, and judge on the same tasks."""
    full = replace(MINI, steps=steps)
    ways: dict[str, tuple[PretrainConfig, bool]] = {
        "as shipped, but so short": (full, True),
        "no mix": (replace(full, mix_weight=0), True),
        "no global shuffle": (full, False),
        NO_RADAR: (replace(full, views=replace(full.views, sensor_dropout=1)), True),
        "no auxiliary loss": (replace(full, auxiliary=0, auxiliary_alone=0), True),
        "no Barlow Twins, no mix": (replace(full, auxiliary_alone=1), True),
        "output not levelled": (replace(full, level=None), True),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = simulated(SIMULATED, 0) + real(None if data is None else str(data), 0, REAL)
        pools = {
            shuffle: write_pool(found, folder / f"pool{shuffle}", shuffle=shuffle, min_s1=8)
            for shuffle in (True, False)
        }
        files = {
            way: str(pretrain(pools[shuffle], config, folder=folder / f"run{i}").path)
            for i, (way, (config, shuffle)) in enumerate(ways.items())
        }
        rows = {way: judge(tasks, file, way == NO_RADAR, n) for way, file in files.items()}
    text = f"Mean balanced accuracy of logistic regression in percent; {steps} updates each, one seed."
    return f"## Ablations\n\n{text}\n\n{markdown(rows, 'recipe')}"


def judge(tasks: list[Task], file: str, no_radar: bool, n: int) -> dict[str, float]:
    """Return the mean over real and over simulated tasks, by labels a class."""
    x = described(tasks, lambda p: embeddings(file, without_radar(p) if no_radar else p))
    jobs = [(t, k) for t in tasks for k in SHOTS]
    scores = scored((t, pair(t, x), "logistic", k, n) for t, k in jobs)
    row = {}
    for kind in ("real", "simulated"):
        for k in SHOTS:
            mine = [s.mean() for (t, shots), s in zip(jobs, scores, strict=True) if t.kind == kind and shots == k]
            if mine:
                row[f"{kind}, {k} a class"] = 100 * np.mean(mine)
    return row
