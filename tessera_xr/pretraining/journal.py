"""The log of a run, as CSV and as curves; and its checkpoints."""

from __future__ import annotations

import csv
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import pandas as pd
import torch

from tessera_xr.encoder.checkpoints import PathLike
from tessera_xr.errors import CheckpointError

PARTS = ("barlow_twins", "mix", "rebuild", "reconstruction", "distillation")
COLUMNS = ("step", "pixels", "seconds", "learning_rate", "loss", *PARTS, "rank_me")


class Journal:
    """Lines of the log, written as they come.

    Parameters
    ----------
    path : Path
        Of the CSV file.
    last_step : int
        Lines after this update are dropped: an interrupted run wrote them after its last checkpoint.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:  # csv keeps every digit, read_csv may not
                lines = [{k: float(v) if v else None for k, v in line.items()} for line in csv.DictReader(file)]
            self.rows = [line for line in lines if int(line["step"] or 0) <= last_step]
        temporary = path.with_suffix(".tmp")
        self.table().to_csv(temporary, index=False)
        temporary.replace(path)

    @property
    def seconds(self) -> float:
        """Time that the run took up to its last line."""
        return float(self.rows[-1]["seconds"]) if self.rows else 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        self.rows.append(dict(row))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join("" if (v := row.get(name)) is None else repr(v) for name in COLUMNS) + "\n")

    def table(self) -> pd.DataFrame:
        """Return the log: a line for each `log_every` updates, NaN where something was not measured."""
        table = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return table.astype(dict.fromkeys(COLUMNS[2:], "float64")).astype({"step": "int64", "pixels": "int64"})

    def plot(self, path: Path) -> None:
        """Draw the parts of the loss and RankMe over the updates."""
        from matplotlib.figure import Figure

        table = self.table()
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        losses, rank = figure.subplots(1, 2)
        for name in PARTS:
            if table[name].notna().any():
                losses.plot(table["step"], table[name], label=name.replace("_", " "), lw=1)
        losses.set(xlabel="update", ylabel="loss (weighted)", yscale="log")
        if losses.lines:
            figure.legend(loc="outside upper left", ncols=len(PARTS), frameon=False)
        measured = table.dropna(subset=["rank_me"])
        rank.plot(measured["step"], measured["rank_me"], marker=".")
        rank.set(xlabel="update", ylabel="RankMe of the embeddings")
        figure.savefig(path, dpi=110)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint that is either whole or the one before."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(dict(content), temporary)
    temporary.replace(path)


def load_checkpoint(path: PathLike) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises
    ------
    CheckpointError
        If it can't be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint {path} can't be read ({type(error).__name__}); delete it and train anew"
        ) from error
    assert isinstance(content, dict)
    return content


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first interrupt (Ctrl-C) into an event, so that a run can save before it stops; the second stops it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            signal.default_int_handler(number, frame)
        event.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
