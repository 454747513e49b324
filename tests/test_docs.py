"""The pages say what is so: every name is documented, every block runs, every path and link leads somewhere."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from doc_blocks import blocks, like, pages, run

import tessera_xr as txr

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = pages(DOCS)
RUNNING = [page for page in PAGES if any(not block.skip for block in blocks(page.read_text()))]
TEXTS = [*PAGES, ROOT / "README.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


EVERY = pytest.mark.parametrize("page", TEXTS, ids=name_of)
ACCESSOR = (DOCS / "reference" / "accessor.md").read_text()


# Reference ------------------------------------------------------------------------------------------------------------


def documented_names() -> Counter[str]:
    """Count the names of the package that the reference has an entry for."""
    found: Counter[str] = Counter()
    for page in (DOCS / "reference").glob("*.md"):
        for kind, name in re.findall(
            r"^\.\. (autofunction|autoclass|automodule|module|py:data):: (\S+)", page.read_text(), re.M
        ):
            found[name.removeprefix("tessera_xr.")] += kind != "currentmodule"
    return found


def test_every_public_name_has_one_entry():
    assert documented_names() == Counter(txr.__all__)


@pytest.mark.parametrize("path", ["errors", "tutorial", "plots"])
def test_modules_of_the_reference_show_what_they_hold(path):
    module = getattr(txr, path)
    own = [
        n
        for n, o in vars(module).items()
        if not n.startswith("_") and getattr(o, "__module__", "").startswith(module.__name__)
    ]
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    options = re.search(rf"automodule:: tessera_xr\.{path}\n((?:   :.*\n)+)", text)[1]
    listed = re.search(r":members: (.+)", options)
    shown = listed[1].split(", ") if listed else getattr(module, "__all__", own)
    assert set(own) <= set(shown)


def accessor_entries() -> dict[tuple[str, str], list[str]]:
    entries: dict[tuple[str, str], list[str]] = {}
    for prefix, path, names in re.findall(r"^\.\. accessor:: (\S+) (\S+)\n\n((?:   .+\n)+)", ACCESSOR, re.M):
        entries.setdefault((prefix, path), []).extend(names.split())
    return entries


def test_every_member_of_the_accessors_has_one_entry():
    entries = accessor_entries()
    assert {prefix for prefix, _ in entries} == {"ds.tessera", "da.tessera", "ds.tessera.plot", "da.tessera.plot"}
    for (prefix, path), names in entries.items():
        module, _, kind = path.rpartition(".")
        accessor = getattr(importlib.import_module(module), kind)
        wanted = {name for name in vars(accessor) if not name.startswith("_")}
        wanted |= {"__call__"} & set(vars(accessor))
        if not prefix.endswith(".plot"):
            wanted -= {"plot"}  # has entries of its own
        assert Counter(names) == Counter(wanted), prefix


def test_accessor_entries_are_written_from_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    pytest.importorskip("sphinx")
    from accessor_pages import entry

    from tessera_xr.accessor import TesseraDataset

    head, _, sentence, *_ = entry("ds.tessera", TesseraDataset, "similarity")
    assert head.startswith(".. py:method:: ds.tessera.similarity(query, *, negative=None")
    assert sentence.strip() == "Return how like a query every pixel is (`tessera_xr.similarity`)."
    assert entry("ds.tessera", TesseraDataset, "crs")[0] == ".. py:attribute:: ds.tessera.crs"
    assert entry("ds.tessera", TesseraDataset, "dequantise")[0].endswith("dequantise(emb_int8, scales)")


def public_objects() -> dict[str, object]:
    found: dict[str, object] = {name: getattr(txr, name) for name in txr.__all__ if name != "__version__"}
    for name, obj in list(found.items()):
        members = vars(obj).items() if inspect.isclass(obj) else ()
        found |= {f"{name}.{key}": value for key, value in members if not key.startswith("_") and inspect.getdoc(value)}
    accessors = vars(txr.accessor.TesseraDataset) | vars(txr.accessor.TesseraDataArray)
    return found | {f"accessor.{key}": value for key, value in accessors.items() if not key.startswith("_")}


def test_every_public_object_has_a_docstring():
    assert [name for name, obj in public_objects().items() if not inspect.getdoc(obj)] == []


def resolve(path: str) -> object:
    """Import the object at a dotted path."""
    parts = path.split(".")
    found: object = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], 2):
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(parts[:depth]))
    return found


def test_names_in_docstrings_exist():
    wrong = []
    for name, obj in public_objects().items():
        for path in re.findall(r"`~?(tessera_xr(?:\.\w+)+)`", inspect.getdoc(obj) or ""):
            try:
                resolve(path)
            except (ImportError, AttributeError):
                wrong.append(f"{name}: {path}")
    assert wrong == []


# Pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    import holoviews as hv

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_XR_OFFLINE", "1")
    try:
        run(page.read_text(), name_of(page))
    finally:
        import matplotlib.pyplot as plt

        plt.close("all")
        hv.Store.current_backend = "bokeh" if "bokeh" in hv.Store.renderers else hv.Store.current_backend


def test_printed_numbers_may_differ_a_little_and_words_not_at_all():
    assert like("F1 0.849 (0.78 to 0.9), 98 px", "F1 0.85 (0.79 to 0.89), 100 px")
    assert not like("F1 0.80", "F1 0.85")
    assert not like("F1 0.85", "f1 0.85")
    assert not like("0.85", "0.85 0.85")


def test_blocks_are_found_with_what_they_print_and_those_left_out():
    text = (
        "a\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n<!-- not run: needs the internet -->\n```python\nx\n```\n"
    )
    first, second = blocks(text)
    assert (first.code, first.output, first.skip, first.line) == ("print(1)\n", "1\n", False, 3)
    assert (second.code, second.output, second.skip) == ("x\n", None, True)
    with pytest.raises(AssertionError, match="line 4 prints"):
        run(text.replace("\n1\n", "\n2\n"), "page")


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(r"^#{1,6} +(.+?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@EVERY
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            wrong.append(target)
        elif anchor and file.suffix == ".md" and anchor not in anchors_of(file.read_text()):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


FOLDERS = "benchmarks|binder|docs|notebooks|scripts|tests|tessera_xr"


@EVERY
def test_paths_of_the_repository_exist(page):
    named = re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w)", page.read_text())
    missing = [path for path in named if not (ROOT / path).exists() and "_build" not in path]
    modules = re.findall(rf"python -m ((?:{FOLDERS})\.\w+)", page.read_text())
    missing += [m for m in modules if not (ROOT / m.replace(".", "/")).with_suffix(".py").exists()]
    assert missing == []


@EVERY
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^|and )make ([a-z]+)", page.read_text(), re.M)) <= targets


def test_pictures_are_small_and_used():
    text = "\n".join(page.read_text() for page in TEXTS)
    for picture in [*DOCS.glob("*.png"), *(DOCS / "pictures").glob("*.png")]:
        assert picture.stat().st_size < 150_000, picture.name
        assert picture.name in text, f"{picture.name} is on no page"


def test_every_page_is_reached():
    text = "\n".join(page.read_text() for page in PAGES)
    listed = {
        line.strip()
        for body in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.M)
        for line in body.splitlines()
    }
    for page in PAGES:
        own, inside = page.stem, page.relative_to(DOCS).with_suffix("")
        assert (page.name == "index.md" and page.parent == DOCS) or own in listed or str(inside) in listed, page


# Conventions: the tables against the code -----------------------------------------------------------------------------

CONVENTIONS = (DOCS / "conventions.md").read_text()


def rows(first_header: str, text: str = CONVENTIONS) -> list[list[str]]:
    """Return the cells of the table whose header begins so."""
    body = re.search(rf"^\| {re.escape(first_header)} \|.*\n\|[-:|]+\|\n((?:\|.*\n)+)", text, re.M)[1]
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in body.splitlines()]


def test_band_order_is_the_code_s():
    from tessera_xr.sentinel.bands import S2_ALIASES, S2_BANDS

    table = rows("position")
    assert [int(row[0]) for row in table] == list(range(10))
    assert tuple(row[1] for row in table) == S2_BANDS
    assert {row[1]: tuple(row[3].split(", ")) for row in table} == S2_ALIASES


def test_cloud_codes_are_the_code_s():
    from tessera_xr.sentinel.bands import SCL_INVALID

    header = re.search(r"^\| SCL \|(.+)\|$", CONVENTIONS, re.M)[1]
    assert tuple(int(code) for code in header.split("|")) == SCL_INVALID


def test_sar_scale_is_the_code_s():
    from tessera_xr.sentinel.sar import _TO_DB

    values = re.search(r"^\| value \|(.+)\|$", CONVENTIONS, re.M)[1].split("|")
    decibels = re.search(r"^\| dB \|(.+)\|$", CONVENTIONS, re.M)[1].replace("or less", "").split("|")
    assert [_TO_DB["tessera"](float(v)) for v in values] == [float(d) for d in decibels]


def test_statistics_are_those_of_the_checkpoints():
    from tessera_xr.encoder import registry
    from tessera_xr.sentinel.bands import S2_BANDS

    sets = (
        registry.V1_0,
        registry.V1_1_MPC,
        registry.V1_1_AWS,
        registry.V2_STUDENT,
        registry.V2_TEACHER,
        registry.MINI,
    )

    def pairs(row: list[str]) -> list[tuple[float, float]]:
        return [tuple(map(float, cell.split(" / "))) for cell in row[1:]]

    for number, row in enumerate(rows("band")):
        assert row[0] == S2_BANDS[number]
        assert pairs(row) == [pytest.approx((s.s2_mean[number], s.s2_std[number]), abs=0.006) for s in sets]
    for number, row in enumerate(rows("orbit, band")):
        orbit, band = divmod(number, 2)
        statistics = [(s.s1_ascending, s.s1_descending)[orbit] for s in sets]
        assert pairs(row) == [pytest.approx((mean[band], std[band]), abs=0.006) for mean, std in statistics]


def test_models_are_those_of_the_registry():
    from tessera_xr.encoder.registry import RECORDS

    def cells(record):
        short = ", ".join(map(str, record.matryoshka)) or "must not be cut"
        return [f"`{record.name}`", record.family, str(record.n_dims), short, record.imagery or "any", record.licence]

    assert rows("name") == [cells(record) for record in RECORDS.values()]


def test_repeats_are_those_of_the_policies():
    from tessera_xr.encoder.sampling import sequence_v1_1, sequence_v2

    told = re.findall(r"((?:\d ){7}\d) with (v[\d.]+)", CONVENTIONS)
    assert {version: list(map(int, steps.split())) for steps, version in told} == {
        "v1.1": sequence_v1_1(5).tolist(),
        "v2": sequence_v2(5).tolist(),
    }


def test_quality_flags_are_the_schema_s():
    from tessera_xr.embedding.schema import COUNTS, QUALITY_FLAGS

    told = dict(re.findall(r"(\d) (no data|valid|water|corrupt)", CONVENTIONS))
    assert {int(k): v.replace(" ", "_") for k, v in told.items()} == {v: k for k, v in QUALITY_FLAGS.items()}
    assert all(f"`{name}`" in CONVENTIONS for name in ("embeddings", "scales", "quality", *COUNTS))


def test_versions_that_are_published_are_all_told():
    from tessera_xr.embedding.published.releases import ALIASES, RELEASES

    text = (DOCS / "howto" / "published.md").read_text()
    assert all(f'"{name}"' in text for name in RELEASES)
    assert ALIASES["v1.1"] == "v1.1-dclimate"


def test_environment_variables_are_told():
    text = (DOCS / "howto" / "offline.md").read_text()
    from tessera_xr._optional import OFFLINE
    from tessera_xr.encoder.hub import WEIGHTS_FOLDER

    assert OFFLINE in text
    assert WEIGHTS_FOLDER in text


def test_extras_are_told():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = {row[0].strip("`") for row in rows("extra", (DOCS / "start.md").read_text())}
    assert table == set(extras) - {"dev", "docs"}


# The build ------------------------------------------------------------------------------------------------------------


def test_notebooks_become_pages_with_a_note(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import json

    from notebook_pages import copy_notebooks, relink

    old = tmp_path / "pages" / "99_gone.ipynb"
    old.parent.mkdir()
    old.write_text("{}")
    copy_notebooks(ROOT / "notebooks", old.parent, run=False)
    assert sorted(p.name for p in old.parent.glob("*")) == sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))
    for path in old.parent.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert "without outputs" in cells[1]["source"]
        assert path.name in cells[1]["source"]
    assert relink("[hub](../docs/hub.md#gpu)") == "[hub](../hub.md#gpu)"
    assert relink("[this](../scripts/bundle_mini.py)") == "this (`scripts/bundle_mini.py`)"
    assert relink("[other](02_more.ipynb)") == "[other](02_more.ipynb)"


def test_links_of_notebooks_to_pages_lead_somewhere(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    from notebook_pages import PAGES as FILES
    from notebook_pages import relink

    assert all((ROOT / path).exists() and (DOCS / page).exists() for path, page in FILES.items())
    import json

    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for target in re.findall(r"\]\((\.\./[^)#\s]+)", relink(text)):
            assert (DOCS / "notebooks" / target).resolve().exists() or (DOCS / target.removeprefix("../")).exists(), (
                target
            )
        for target in re.findall(r"\]\((\w[\w.]*\.ipynb)", text):
            assert (notebook.parent / target).exists(), target


def test_the_site_checker_finds_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from scripts.check_site import faults_of

    (tmp_path / "index.html").write_text(
        '<a href="two.html#here">fine</a><a href="two.html#there">no</a><a href="three.html">no</a>'
        '<a href="https://example.org">fine</a><script src="https://cdn.example.org/x.js"></script>'
    )
    (tmp_path / "two.html").write_text('<h1 id="here">Here</h1><link rel="next" href="https://example.org/">')
    assert faults_of(tmp_path) == [
        "index.html loads https://cdn.example.org/x.js",
        "index.html: two.html#there has no such anchor",
        "index.html: three.html leads nowhere",
    ]


@pytest.mark.skipif(not os.environ.get("TESSERA_XR_SITE"), reason="set TESSERA_XR_SITE to a built site to check it")
def test_the_built_site(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from scripts.check_site import faults_of

    assert faults_of(Path(os.environ["TESSERA_XR_SITE"])) == []
