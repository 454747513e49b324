"""The notebooks as pages: copied beside the other sources, with a line that says how they come to be shown so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

STILL = """:::{{note}}
This page shows the notebook **without outputs**. To see them, run it: `make lab` opens JupyterLab on the notebooks,
and this one is `notebooks/{name}`.
:::"""
RUN = """:::{{note}}
The outputs on this page were made when the documentation was built. The notebook itself is `notebooks/{name}`.
:::"""

PAGES = {
    "tessera_xr/data/mini/README.md": "model_card.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "README.md": "start.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository that are pages here."""


def relink(text: str) -> str:
    """Return Markdown whose links out of `notebooks/` lead to pages; a file that is none is named instead.

    Examples
    --------
    >>> relink("[card](../tessera_xr/data/mini/README.md), [script](../scripts/bundle_mini.py)")
    '[card](../model_card.md), script (`scripts/bundle_mini.py`)'
    """

    def page_of(link: re.Match[str]) -> str:
        mark, words, target, anchor = (part or "" for part in link.groups())
        if target in PAGES:
            return f"{mark}[{words}](../{PAGES[target]}{anchor})"
        if target.startswith("docs/"):
            return f"{mark}[{words}](../{target.removeprefix('docs/')}{anchor})"
        return f"{words} (`{target}`)"

    return re.sub(r"(!?)\[([^\]]*)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)", page_of, text)


def copy_notebooks(source: Path, target: Path, *, run: bool) -> None:
    """Copy every notebook of `source` to `target`, a note after its first cell; what is no longer there goes."""
    target.mkdir(exist_ok=True)
    names = {path.name for path in source.glob("*.ipynb")}
    for old in target.glob("*.ipynb"):
        if old.name not in names:
            old.unlink()
    for name in sorted(names):
        text = page(json.loads((source / name).read_text(encoding="utf-8")), name, run=run)
        path = target / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # untouched: not built again
            path.write_text(text, encoding="utf-8")


def page(notebook: dict[str, Any], name: str, *, run: bool) -> str:
    """Return the notebook as JSON text, with the note."""
    note = (RUN if run else STILL).format(name=name)
    cell = {"cell_type": "markdown", "id": "how-this-page-was-made", "metadata": {}, "source": note}
    for written in notebook["cells"]:
        if written["cell_type"] == "markdown":
            written["source"] = relink("".join(written["source"]))
    notebook["cells"].insert(1, cell)
    return json.dumps(notebook, indent=1, ensure_ascii=False)
