"""Sphinx configuration. `make docs` builds the site into docs/_build/html, offline and without warnings.

Environment variables: NOTEBOOKS=run executes the notebooks (with a cache); INTERSPHINX=1 links the names of other
packages to their documentation, which needs the internet.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT)]
os.environ.setdefault("TESSERA_XR_OFFLINE", "1")

from notebook_pages import copy_notebooks  # noqa: E402

import tessera_xr  # noqa: E402

sys.modules["tessera_xr.plots"] = tessera_xr.plots  # a public name that is a module elsewhere

RUN_NOTEBOOKS = os.environ.get("NOTEBOOKS", "") == "run"
copy_notebooks(ROOT / "notebooks", DOCS / "notebooks", run=RUN_NOTEBOOKS)

project = "tessera_xr"
author = "The tessera_xr developers"
copyright = "the tessera_xr developers, MIT licence"  # noqa: A001
version = release = tessera_xr.__version__
language = "en-GB"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "myst_nb",
    "accessor_pages",
    "offline_math",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints", "jupyter_execute"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
html_math_renderer = "mathml"

# Docstrings: single backticks are names, and link where the name is documented
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Warns", "params_style")]

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache" if RUN_NOTEBOOKS else "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["08_*", "09_*"]
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the default is a CDN
suppress_warnings = [
    "myst.header",  # notebooks may go from # to ###
    "mystnb.unknown_mime_type",  # HoloViews has one for JupyterLab beside its HTML
]

if os.environ.get("INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "xarray": ("https://docs.xarray.dev/en/stable", None),
    }

html_theme = "pydata_sphinx_theme"
html_title = "tessera_xr"
html_static_path = ["_static"]
html_css_files = ["tessera.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
ALONE = "index start conventions benchmarks scaling model_card comparison hub contributing changelog"
html_sidebars: dict[str, list[str]] = {name: [] for name in ALONE.split()}
html_theme_options = {
    "logo": {"text": "tessera_xr"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["sphinx-version"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def _names_with_a_dot(*arguments: Any) -> None:
    """Make `.session` a literal: as a reference it would mean any member of that name."""
    lines = arguments[-1]
    lines[:] = [re.sub(r"(?<!`)`(\.\w[\w.]*(?:\(\))?)`(?!`)", r"``\1``", line) for line in lines]


def _public_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link `predict` in the docstrings of another module to `tessera_xr.predict`."""
    target = f"tessera_xr.{node.get('reftarget')}"
    if node.get("refdomain") != "py" or target not in env.domains["py"].objects:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def setup(app: Any) -> None:
    """Connect what only these pages need."""
    app.connect("autodoc-process-docstring", _names_with_a_dot, priority=400)
    app.connect("missing-reference", _public_name)
