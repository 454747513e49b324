"""The accessor's reference: a directive that writes an entry for each member, from the accessor's own code.

    .. accessor:: ds.tessera tessera_xr.accessor.TesseraDataset

       embed embed_to_zarr

`ds.tessera.embed` then has its signature, its sentence and a link to the function that it stands for. `__call__` is the
entry of the prefix itself.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx


def members(accessor: type) -> list[str]:
    """Return the names of an accessor's public members, in the order of its source."""
    return [name for name in vars(accessor) if not name.startswith("_")]


def find(path: str) -> type:
    """Return the class at a dotted path."""
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def entry(prefix: str, accessor: type, name: str) -> list[str]:
    """Return the lines of reStructuredText for one member."""
    member = inspect.getattr_static(accessor, name)
    if isinstance(member, property):
        return _lines(f".. py:attribute:: {prefix}.{name}", member.fget)
    function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
    if not callable(function):
        raise TypeError(f"{prefix}.{name} is neither a method nor a property")
    signature = inspect.signature(function)
    shown = list(signature.parameters.values())
    if not isinstance(member, staticmethod):
        shown = shown[1:]
    text = stringify_signature(signature.replace(parameters=shown), show_annotation=False, show_return_annotation=False)
    head = prefix if name == "__call__" else f"{prefix}.{name}"
    return _lines(f".. py:method:: {head}{text}", function)


def _lines(head: str, documented: Any) -> list[str]:
    doc = re.sub(r": see (`[^`]+`)\.$", r" (\1).", inspect.getdoc(documented) or "")
    return [head, "", *(f"   {line}".rstrip() for line in doc.splitlines()), ""]


class Accessor(SphinxDirective):
    """Entries for the members named in the content; the arguments are the prefix and the path of the class."""

    has_content = True
    required_arguments = 2

    def run(self) -> list[Node]:
        """Return the entries as parsed nodes."""
        prefix, path = self.arguments
        accessor = find(path)
        lines = [line for name in " ".join(self.content).split() for line in entry(prefix, accessor, name)]
        module = self.env.ref_context.pop("py:module", None)  # or `ds` would be a member of it
        nodes = self.parse_text_to_nodes("\n".join(lines))
        self.env.ref_context["py:module"] = module
        return nodes


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("accessor", Accessor)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
