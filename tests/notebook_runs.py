"""A notebook as its test runs it: solutions of exercises as cells, and a last cell that tells what it took."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)

MEASURE = """
import json as _json
import resource as _resource
from pathlib import Path as _Path

_status = _Path("/proc/self/status")
_peak = None
if _status.exists():
    _peak = next(int(line.split()[1]) / 1e3 for line in _status.read_text().splitlines() if line.startswith("VmHWM"))
_usage = [_resource.getrusage(who) for who in (_resource.RUSAGE_SELF, _resource.RUSAGE_CHILDREN)]
_seconds = sum(u.ru_utime + u.ru_stime for u in _usage)
_Path("taken.json").write_text(_json.dumps({"peak_mb": _peak, "cpu_seconds": _seconds}))
"""


def read(path: Path) -> dict[str, Any]:
    """Return a notebook as it lies on disk."""
    notebook: dict[str, Any] = json.loads(path.read_text())
    return notebook


def source(cell: dict[str, Any]) -> str:
    """Return the text of a cell."""
    return "".join(cell["source"])


def solutions(cell: dict[str, Any]) -> list[str]:
    """Return the code of the solutions that are folded into a cell of text."""
    return SOLUTION.findall(source(cell)) if cell["cell_type"] == "markdown" else []


def code(notebook: dict[str, Any]) -> list[str]:
    """Return all code from top to bottom, solutions included."""
    found = []
    for cell in notebook["cells"]:
        found += [source(cell)] if cell["cell_type"] == "code" else solutions(cell)
    return found


def write_solved(path: Path, target: Path) -> Path:
    """Write a copy of a notebook whose solutions are cells, and whose last cell writes taken.json beside it."""
    notebook = read(path)
    cells = []
    for cell in notebook["cells"]:
        cells += [cell, *(_code_cell(text) for text in solutions(cell))]
    cells.append(_code_cell(MEASURE))
    for i, cell in enumerate(cells):
        cell["id"] = f"c{i}"
    notebook["cells"] = cells
    target.write_text(json.dumps(notebook))
    return target


def _code_cell(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}
