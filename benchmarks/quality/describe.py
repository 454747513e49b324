"""Describe the pixels of many tasks, score the descriptions, and print tables."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from joblib import Parallel, delayed

import tessera_xr as txr
from benchmarks.quality.fewshot import Task, accuracies, standardised
from benchmarks.quality.pixels import Pixels

Describe = Callable[[Pixels], np.ndarray]


def embeddings(model: str, pixels: Pixels, dims: int = 128, dtype: Any = "float32") -> np.ndarray:
    """Embed; pixels without any observation get zeros."""
    found = txr.embed_pixels(**pixels.arrays, model=model, dims=dims, dtype=dtype, progress=False)
    return np.nan_to_num(found[0] * found[1][:, None] if dtype == "int8" else found)


def described(tasks: list[Task], describe: Describe) -> dict[int, np.ndarray]:
    """Return the description of all pixels of all tasks, by their identity."""
    every = {id(p): p for t in tasks for p in (t.train, t.judged)}
    return {key: describe(p) for key, p in every.items()}


def pair(task: Task, x: dict[int, np.ndarray], *, scale: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the descriptions of what a head learns from and of what is judged; embeddings need no scaling."""
    known, judged = x[id(task.train)], x[id(task.judged)]
    return standardised(known, judged) if scale else (known, judged)


def scored(jobs: Iterable[tuple[Any, ...]]) -> list[np.ndarray]:
    """Return the accuracies of each job, worked on side by side."""
    found: list[np.ndarray] = Parallel(n_jobs=-1)(delayed(accuracies)(*job) for job in jobs)
    return found


def markdown(rows: Mapping[str, Mapping[str, float | str]], title: str, digits: int = 1) -> str:
    """Return a table: a row for each key, a column for each key of its values."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| " + " | ".join([title, *columns]) + " |", "|---" + "|---:" * len(columns) + "|"]
    for name, row in rows.items():
        values = [row.get(column, "") for column in columns]
        cells = [value if isinstance(value, str) else f"{value:.{digits}f}" for value in values]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)
