"""Python in Markdown: the blocks of a page, run one after another, and what they print beside what the page says."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+-->\n)?^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"^[^\w.+-]*([+-]?\d[\d,]*(?:\.\d+)?)[^\w.]*$")


@dataclass(frozen=True)
class Block:
    """One block of Python."""

    code: str
    output: str | None
    """What the page says it prints; None if it doesn't say."""
    skip: bool
    """Whether a comment above says that it isn't run here."""
    line: int


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page in order."""
    return [
        Block(m["code"], m["output"], m["skip"] is not None, text[: m.start("code")].count("\n"))
        for m in _BLOCK.finditer(text)
    ]


def run(text: str, name: str) -> None:
    """Run the blocks of a page in one namespace; raise `AssertionError` where one prints something else."""
    namespace: dict[str, Any] = {"__name__": name}
    for block in blocks(text):
        if block.skip:
            ast.parse(block.code)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * block.line + block.code, name, "exec"), namespace)
        if block.output is not None:
            where = f"{name}, line {block.line + 1}"
            assert like(printed.getvalue(), block.output), f"{where} prints\n{printed.getvalue()}"


def like(found: str, said: str) -> bool:
    """Say whether two texts are the same word by word, numbers to 3 % or 0.02."""
    ours, theirs = found.split(), said.split()
    return len(ours) == len(theirs) and all(map(_alike, ours, theirs))


def _alike(found: str, said: str) -> bool:
    numbers = [_NUMBER.match(word) for word in (found, said)]
    if found == said or not all(numbers):
        return found == said
    a, b = (float(match[1].replace(",", "")) for match in numbers if match)
    return abs(a - b) <= max(0.03 * abs(b), 0.0201)


def pages(folder: Path) -> list[Path]:
    """Return the Markdown pages below `folder`, without what a build wrote."""
    built = ("_build", "notebooks", "jupyter_execute")
    return sorted(p for p in folder.rglob("*.md") if not set(p.relative_to(folder).parts[:-1]) & set(built))
