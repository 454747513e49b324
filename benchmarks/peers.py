"""What we are held against and don't depend on: found where it is, and said where it isn't."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "TESSERA_XR_PEER"
GEOTESSERA_PYTHON = "TESSERA_XR_GEOTESSERA_PYTHON"
ROOT = Path(__file__).resolve().parent.parent


@cache
def zeit() -> tuple[Any, str]:
    """Return zeit-cdts, and why it isn't there."""
    if importlib.util.find_spec("zeit") is None:
        return None, "not installed (pip install zeit-cdts; with --no-deps and rioxarray it brings little else)"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("zeit"), ""
    except ImportError as error:
        return None, f"installed, but doesn't import: {error}"


def authors(folder: str) -> tuple[tuple[ModuleType, ModuleType] | None, str]:
    """Return the authors' modules `model` and `infer` of the v2 students, and why they aren't there.

    Parameters
    ----------
    folder : str
        tessera_infer_v2/student of their repository, or that repository; it is never copied.
    """
    if not folder:
        return None, f"the authors' code isn't here: clone github.com/ucam-eo/tessera and name it, --peer or {VARIABLE}"
    places = [Path(folder), Path(folder) / "student", Path(folder) / "tessera_infer_v2" / "student"]
    found = next((p for p in places if (p / "infer.py").exists() and (p / "model.py").exists()), None)
    if found is None:
        return None, f"no infer.py and model.py in {folder}: give tessera_infer_v2/student of the authors' repository"
    model, infer = (load_module(found / f"{name}.py") for name in ("model", "infer"))
    return (model, infer), ""


def authors_v1_1(folder: str) -> tuple[ModuleType | None, str]:
    """Return the authors' module `infer_v1_1`, and why it isn't there; `folder` is their repository or within it."""
    missing = authors("")[1]
    if not folder:
        return None, missing
    inside = Path("tessera_infer_QAT") / "src" / "infer_v1_1.py"
    found = next((p / inside for p in (Path(folder), *Path(folder).parents) if (p / inside).exists()), None)
    if found is None:
        return None, f"no {inside} in {folder}: give the authors' repository"
    return load_module(found), ""


def load_module(path: Path) -> ModuleType:
    """Import a file under its own name, as the authors' files do with each other."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def geotessera() -> tuple[str, str]:
    """Return a Python 3.12 that has geotessera, made if need be, and why there is none."""
    named = os.environ.get(GEOTESSERA_PYTHON)
    if named:
        return (named, "") if Path(named).exists() else ("", f"{GEOTESSERA_PYTHON} names {named}, which is not there")
    command = [sys.executable, str(ROOT / "scripts" / "geotessera_env.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return "", f"no environment with geotessera: {done.stderr.strip()[-200:]}"
    return done.stdout.split()[-1], ""
