"""Check a built site: every link leads somewhere, every anchor exists, nothing is loaded from elsewhere.

`python scripts/check_site.py docs/_build/html` prints what is wrong and exits with 1; standard library only.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""Elements that make a browser fetch something, and the attribute that says what."""
NAMED_ONLY = ("canonical", "next", "prev", "author", "license")
"""`<link rel=...>` that a browser does not fetch."""


class Page(HTMLParser):
    """What one page links to, what it loads, and which anchors it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        found = {name: value or "" for name, value in attrs}
        self.anchors.update(found[name] for name in ("id", "name") if name in found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADS and LOADS[tag] in found and found.get("rel") not in NAMED_ONLY:
            self.loads.append(found[LOADS[tag]])


def read(path: Path) -> Page:
    """Return what is on a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def faults_of(folder: Path) -> list[str]:
    """Return a sentence for each thing that is wrong with the site in `folder`."""
    written = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.relative_to(folder).parts]
    pages = {path: read(path) for path in written}  # those in _static are templates of the theme
    faults = [] if pages else [f"{folder} holds no page"]
    for path, page in pages.items():
        name = path.relative_to(folder)
        faults += [f"{name} loads {url}" for url in page.loads if urlsplit(url).netloc]
        for url in [*page.links, *page.loads]:
            fault = _fault(path, url, pages)
            if fault:
                faults.append(f"{name}: {url} {fault}")
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "@import url(http" in text or "url(http" in text or "url(//" in text:
            faults.append(f"{path.relative_to(folder)} loads something from elsewhere")
    return faults


def _fault(path: Path, url: str, pages: dict[Path, Page]) -> str:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return ""
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return "leads nowhere"
    found = pages.get(target)
    anchor = unquote(parts.fragment)
    if found is not None and anchor and anchor not in found.anchors:
        return "has no such anchor"
    return ""


def main() -> int:
    """Check the folder that the command line names."""
    faults = faults_of(Path(sys.argv[1]).resolve())
    print("\n".join(faults) or "every link leads somewhere, and nothing is loaded from elsewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
