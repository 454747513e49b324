"""The suite: `python -m benchmarks [GROUP ...]` prints a table; see RESULTS.md for what was found where.

Each group, and each size of a group, runs in a process of its own, so that its memory is its own and what fails fails
alone. Seconds are medians of rounds; in each round ours, what is beside it, and the machine's rates run in turn, and
ratios are medians of the rounds' ratios, so that a machine that slows down slows all. The floor is what this machine
would take for the operations and bytes that a task needs, at the rates of its float32 product and its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks.peers import ROOT, VARIABLE
from benchmarks.rows import HEADS, Row, cells, markdown

GROUPS = {
    "embed": "embedding", "analysis": "analysis", "learning": "learning", "explorer": "explorer", "startup": "startup",
    "dask": "cluster", "gpu": "gpu", "scale": "scale",
}  # fmt: skip
SIZED = ("analysis", "learning", "explorer")
SIZES, QUICK_SIZES = (512, 1024, 2048, 4096), (128,)
JUDGED = 1024
"""Pixels a side of the smallest map of which anything is wanted: a smaller one fits into caches."""
MARKS = "<!-- made by python -m benchmarks: begin -->", "<!-- made by python -m benchmarks: end -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    options = parse(arguments)
    if options.child:
        child(*options.child)
        return
    started = time.perf_counter()
    rows = []
    for group in options.groups or GROUPS:
        print(f"\n{group}\n| {' | '.join(HEADS)} |", flush=True)
        for size in options.sizes if group in SIZED else (None,):
            for row in run(group, size, options):
                rows.append(row)
                print(f"| {' | '.join(cells(row))} |", flush=True)
    machine = describe(options, time.perf_counter() - started)
    table = markdown(rows, machine)
    print(f"\n{table.splitlines()[0]}")
    missed = [row for row in rows if row.met is False]
    print(f"{len(rows)} rows, {sum(bool(r.skipped) for r in rows)} not run, {len(missed)} short of what is wanted")
    if options.json:
        text = json.dumps({"machine": machine, "rows": [row.to_dict() for row in rows]}, indent=1, allow_nan=False)
        options.json.write_text(text + "\n")
    if options.markdown:
        write_markdown(options.markdown, table)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all if none is named")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"pixels a side of maps, {SIZES} if not told")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round: only to see that all works")
    parser.add_argument("--repeats", type=int, help="rounds of each row, 3 if not told")
    parser.add_argument(
        "--patience", type=float, default=15.0, help="seconds: calls that would take longer are not run"
    )
    parser.add_argument("--memory", type=float, default=8.0, help="GB: what needs more is not run")
    parser.add_argument("--peer", default=os.environ.get(VARIABLE, ""), help=f"the authors' code; or {VARIABLE}")
    parser.add_argument("--models", nargs="+", default=(), help="to embed with")
    parser.add_argument("--price", type=float, default=3.0, help="dollars for an hour of a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables there, between the marks if any"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    strange = set(options.groups) - set(GROUPS)
    if strange:
        parser.error(f"no such group: {', '.join(sorted(strange))}; there are {', '.join(GROUPS)}")
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    return {
        "repeats": options.repeats, "patience": options.patience, "memory_gb": options.memory, "quick": options.quick,
        "peer": os.path.abspath(options.peer) if options.peer else "", "price": options.price,
        "models": list(options.models), "torch_rates": not options.quick,
    }  # fmt: skip


def run(group: str, size: int | None, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of a group, or the reason why there are none, from a process of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "benchmarks", "--child", group, str(size or 0)]
        command += [json.dumps(settings_of(options)), file.name]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                yield from read(file)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        yield from read(file)
        errors.seek(0)
        said = errors.read().strip().splitlines() or ["without a word"]
    if process.returncode:
        killed = "killed, for want of memory perhaps: " if process.returncode < 0 else "it failed: "
        yield Row(group, "the rest of this group", size, skipped=f"{killed}{said[-1][:300]}")


def read(file) -> Iterator[Row]:
    """Yield the rows that were written since."""
    while True:
        where = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(where)
            return
        yield Row.from_dict(json.loads(line))


def child(group: str, size: str, told: str, path: str) -> None:
    """Measure a group in this process, and write each row when it is there."""
    import warnings

    from benchmarks.measure import Settings

    warnings.simplefilter("ignore")
    found = json.loads(told)
    settings = Settings(**found | {"models": tuple(found["models"])})
    with open(path, "a") as file:
        if group == "machine":
            from benchmarks import machine

            file.write(json.dumps(machine.describe(settings)) + "\n")
            return
        for row in import_module(f"benchmarks.{GROUPS[group]}").rows(int(size) or None, settings):
            told_of = replace(row, want=None) if settings.quick or int(size) in range(1, JUDGED) else row
            file.write(json.dumps(told_of.to_dict(), allow_nan=False) + "\n")
            file.flush()


def describe(options: argparse.Namespace, seconds: float) -> dict[str, object]:
    """Return the machine, described by a process of its own, for torch's rates would slow those after."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "--child",
            "machine",
            "0",
            json.dumps(settings_of(options)),
            file.name,
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        machine = json.loads(file.read())
    words = ["python -m benchmarks", *options.groups, *(["--quick"] if options.quick else [])]
    return machine | {"command": " ".join(words), "seconds": seconds}


def write_markdown(path: Path, table: str) -> None:
    """Write the tables, between the marks of a file that has them; all else of it stays."""
    begin, end = MARKS
    text = path.read_text() if path.exists() else f"{begin}\n{end}\n"
    if begin not in text or end not in text:
        sys.exit(f"{path} has no lines '{begin}' and '{end}': put them where the tables belong, or name another file")
    before, rest = text.split(begin, 1)
    path.write_text(f"{before}{begin}\n\n{table}\n{end}{rest.split(end, 1)[1]}")


if __name__ == "__main__":
    main()
