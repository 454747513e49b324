"""Every notebook runs top to bottom, solutions included, within its limits; together they show the whole package."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_runs import FOLDER, NOTEBOOKS, code, read, solutions, source, write_solved

import tessera_xr as txr

LIMIT_MB = 2**30 / 1e6
"""A gibibyte, what Binder promises. Notebook 09 runs a cluster and 08 reads from the cloud, so they are free of it."""
LIMIT_CPU_SECONDS = 240.0
"""Two minutes on two cores, in seconds of computing: a busy machine doesn't change it."""
FREE = ("08", "09")
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
ACCESSOR_NAMES = {"fit": "fit_head", "cluster": "fit_clusters", "components": "fit_components", "rgb": "fit_components"}


def test_all_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 11)]


@EVERY
def test_is_kept_without_outputs(path):
    cells = [c for c in read(path)["cells"] if c["cell_type"] == "code"]
    assert cells
    assert not any(c["outputs"] or c["execution_count"] for c in cells)


@EVERY
def test_says_what_a_learner_must_know_first(path):
    head = source(read(path)["cells"][0])
    assert head.startswith(f"# {path.stem[:2]} · ")
    for wanted in (r"\d+ minutes", r"memory", r"internet", r"You will", r"You need"):
        assert re.search(wanted, head), f"the first cell doesn't say {wanted}"


@EVERY
def test_exercises_have_solutions_and_cells_are_thin(path):
    cells = read(path)["cells"]
    exercises = [c for c in cells if c["cell_type"] == "markdown" and re.search(r"^#+ Exercise", source(c), re.M)]
    solved = [c for c in cells if solutions(c)]
    assert exercises
    assert len(solved) >= len(exercises)
    for text in code(read(path)):
        ast.parse(re.sub(r"^[%!].*$", "pass", text, flags=re.M))
        assert "from tessera_xr" not in text, "a notebook needs public names only"
        assert len([line for line in text.splitlines() if line.strip()]) <= 20


def used_names() -> set[str]:
    """Return every txr.NAME and .tessera.NAME of all notebooks, by the names of functions."""
    found = set()
    for path in NOTEBOOKS:
        for text in code(read(path)):
            for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "pass", text, flags=re.M))):
                if not isinstance(node, ast.Attribute):
                    continue
                owner = ast.unparse(node.value)
                if owner == "txr" or owner.endswith(".tessera"):
                    found.add(ACCESSOR_NAMES.get(node.attr, node.attr))
    return found


def test_together_they_use_every_public_function():
    functions = {name for name in txr.__all__ if inspect.isfunction(getattr(txr, name))}
    assert functions - used_names() == set()


def test_together_they_show_every_plot():
    kinds = {name for name in txr.plots.__all__ if inspect.isfunction(getattr(txr.plots, name))}
    text = "\n".join("\n".join(code(read(path))) for path in NOTEBOOKS)
    shown = set(re.findall(r"plots?\.(\w+)\(", text))
    assert kinds - shown <= {"load", "picture", "plot"}  # what .tessera.plot() itself uses
    assert ".tessera.plot()" in text


@pytest.mark.slow
@EVERY
def test_runs_within_its_limits(path, tmp_path):
    pytest.importorskip("nbmake")
    copy = write_solved(path, tmp_path / path.name)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--nbmake-timeout=300",
        "--overwrite",
        "-p",
        "no:cacheprovider",
    ]
    options = ["-c", os.devnull, "--rootdir", tmp_path, copy]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]

    outputs = [o for c in read(copy)["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert any({"image/png", "text/html"} & set(o.get("data", {})) for o in outputs), "it shows no picture"
    said = "".join("".join(o.get("text", "")) for o in outputs if o.get("name") == "stderr")
    assert "Warning" not in said, said[-2000:]
    taken = json.loads((tmp_path / "taken.json").read_text())
    assert taken["cpu_seconds"] < LIMIT_CPU_SECONDS
    if taken["peak_mb"] is not None and path.stem[:2] not in FREE:
        assert taken["peak_mb"] < LIMIT_MB
    keep = os.environ.get("TESSERA_XR_NOTEBOOKS")
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        (Path(keep) / path.name).write_text(copy.read_text())
        (Path(keep) / f"{path.stem}.json").write_text(json.dumps(taken))


def test_the_folder_holds_nothing_that_a_run_left():
    assert {p.suffix for p in FOLDER.iterdir() if p.is_file()} <= {".ipynb", ".md"}
