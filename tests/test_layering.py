"""The house: a module imports from its own folder and from those above it, never from below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tessera_xr

ROOT = Path(tessera_xr.__file__).parent
LAYERS = (
    ("errors", "_version"),
    ("_optional", "_registration", "_warn"),
    ("grid",),
    ("area",),
    ("sentinel",),
    ("encoder",),
    ("embedding",),
    ("export", "tutorial"),
    ("analysis",),
    ("learning",),
    ("pretraining",),
    ("views",),
    ("inventory", "plot_accessor", "accessor", "cli", "doctor", "__init__"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
DOORS = {
    "accessor": {"__init__"},
    "cli": set(),
    "inventory": {"accessor"},
    "plot_accessor": {"accessor"},
    "__init__": {"cli"},
    "doctor": {"cli"},
}
BARRED = {"encoder": ("xarray", "dask")}


def imports(source: str, module: str) -> Iterator[tuple[str, bool]]:
    """Yield every name that a module imports anywhere, and whether for the type checker alone."""
    tree = ast.parse(source)
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
                if node.level
                else node.module
            )
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        else:
            continue
        for name in names:
            yield name, id(node) in typing_only


def faults(source: str, module: str) -> list[str]:
    """Return what in the source of `module` ("tessera_xr.encoder.network") breaks the rules."""
    own = module.split(".")[1] if "." in module else "__init__"
    found = []
    for name, typing_only in imports(source, module):
        parts = name.split(".")
        if parts[0] in BARRED.get(own, ()):
            found.append(f"{module} imports {name}")
        if parts[0] != "tessera_xr":
            continue
        target = parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"
        if target == own or (target == "__init__" and parts[1:] == ["__version__"]):
            continue
        through_a_door = target in DOORS and own not in DOORS[target]
        below = RANK[target] > RANK[own] or (RANK[target] == RANK[own] and target not in DOORS)
        if through_a_door or (below and not typing_only):
            found.append(f"{module} imports {name}")
    return found


def modules() -> dict[str, Path]:
    return {
        ".".join(("tessera_xr", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")
    }


def test_every_folder_has_its_place():
    assert {module.split(".")[1] for module in modules()} <= set(RANK)
    assert len(modules()) > 50


@pytest.mark.parametrize("folder", RANK)
def test_imports_go_upwards(folder):
    found = []
    for module, path in modules().items():
        if module.split(".")[1] == folder:
            found += faults(path.read_text(encoding="utf-8"), module)
    assert found == []


PLANTED = {
    "from below": ("tessera_xr.grid", "from tessera_xr.sentinel.cube import as_cube"),
    "in a function": ("tessera_xr.sentinel.cube", "def f():\n    from tessera_xr.embedding import embed"),
    "in a class": ("tessera_xr.encoder.network", "class A:\n    import tessera_xr.embedding.engine"),
    "a whole folder": ("tessera_xr.encoder.network", "from tessera_xr import embedding"),
    "relative": ("tessera_xr.encoder.network", "from ..embedding import engine"),
    "relative, the folder": ("tessera_xr.encoder.network", "from .. import embedding"),
    "under try": ("tessera_xr.grid", "try:\n    import tessera_xr.views.render\nexcept ImportError:\n    pass"),
    "by name": ("tessera_xr.grid", "import importlib\nimportlib.import_module('tessera_xr.views.render')"),
    "under another test": ("tessera_xr.grid", "if True:\n    import tessera_xr.views.render"),
    "after the type checker's": (
        "tessera_xr.grid",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import tessera_xr.views.render",
    ),
    "the same layer": ("tessera_xr.export", "from tessera_xr.tutorial import cube"),
    "the accessor": ("tessera_xr.views.render", "from tessera_xr.accessor import TesseraDataset"),
    "the accessor, typing": ("tessera_xr.cli", "if TYPE_CHECKING:\n    from tessera_xr import accessor"),
    "the command line": ("tessera_xr.accessor", "from tessera_xr import cli"),
    "the inventory": ("tessera_xr.cli", "from tessera_xr.inventory import describe"),
    "the package itself": ("tessera_xr.views.render", "import tessera_xr as txr"),
    "the package's function": ("tessera_xr.accessor", "from tessera_xr import embed"),
    "xarray": ("tessera_xr.encoder.tokens", "def f():\n    import xarray as xr"),
    "xarray, typing": ("tessera_xr.encoder.tokens", "if TYPE_CHECKING:\n    from xarray import Dataset"),
    "the engine": ("tessera_xr.encoder.tokens", "from tessera_xr.embedding.engine import encode"),
}
ALLOWED = {
    "from above": ("tessera_xr.encoder.network", "from tessera_xr.errors import CubeError\nimport numpy"),
    "own folder": ("tessera_xr.encoder.network", "from tessera_xr.encoder.tokens import Tokens\nfrom . import tokens"),
    "types from below": ("tessera_xr.grid", "if TYPE_CHECKING:\n    from tessera_xr.views.render import picture"),
    "the door": ("tessera_xr.__init__", "from tessera_xr import accessor, errors\nfrom tessera_xr import tutorial"),
    "the inventory": ("tessera_xr.accessor", "from tessera_xr.inventory import describe"),
    "version": ("tessera_xr.export", "from tessera_xr._version import __version__"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case):
    module, source = PLANTED[case]
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_allowed_passes(case):
    module, source = ALLOWED[case]
    assert faults(source, module) == []
