"""The example at the top of the README prints what it shows, and its badges are true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from doc_blocks import blocks, run

README = Path(__file__).resolve().parents[1] / "README.md"


def example(text: str) -> str:
    """Return the first block of Python that has its output beside it, with it."""
    found = [block for block in blocks(text) if block.output is not None]
    assert found, "the README shows no example with its output"
    return f"```python\n{found[0].code}```\n\n```text\n{found[0].output}```\n"


def test_the_example_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_XR_OFFLINE", "1")
    text = example(README.read_text())
    lines = blocks(text)[0].code.strip().splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("import")]) <= 10
    run(text, "README.md")


def test_badges_are_true():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())
    told = re.findall(r"img\.shields\.io/badge/([^-)]+)-([^-)]+)-\w+\)", README.read_text())
    true = {
        "python": project["project"]["requires-python"].removeprefix(">=") + "+",
        "licence": project["project"]["license"],
        "types": "mypy strict" if project["tool"]["mypy"]["strict"] else "",
        "style": "ruff" if project["tool"]["ruff"] else "",
        "models": "v1.0 to v2",
    }
    unquoted = {label: value.replace("%20", " ").replace("%2B", "+") for label, value in told}
    assert unquoted.items() <= true.items()
