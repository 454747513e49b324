"""HoloViews with Bokeh, brought into a notebook by the first plot, from this machine alone."""

from __future__ import annotations

from typing import Any

_LOADED: dict[str, Any] = {}
"""`cell` and `count`: where and when this module last put Bokeh into the page."""


def load() -> None:
    """Put Bokeh into the page of this notebook, for plots that stay blank.

    The first plot of a kernel does this by itself, without the internet. Only where the page was loaded anew and the
    output of that first plot is gone do later plots find no Bokeh; call this in a cell of its own then.
    """
    import holoviews as hv

    hv.extension("bokeh", inline=True, logo=False)
    shell = _shell()
    if shell is not None:
        _keep_styles_here()
        _LOADED.update(cell=_cell(shell), count=shell.execution_count)


def holoviews() -> Any:
    """Return HoloViews with Bokeh at hand; a page that has none yet gets it now.

    Whoever has called `hv.extension` keeps what was chosen there: its backend shows what we return.
    """
    import holoviews as hv

    shell = _shell()
    if not _is_loaded(shell) or _runs_again(shell):
        load()
    elif "bokeh" not in hv.Store.renderers:
        import holoviews.plotting.bokeh  # our options need it, whichever backend shows
    return hv


def _keep_styles_here() -> None:
    """Have Panel, which lays HoloViews' plots out, send its style sheets along instead of their addresses.

    `inline=True` does that for scripts alone: each plot would ask a server for four style sheets.
    """
    try:
        from panel.io.notebook import patch_inline_stylesheets
        from panel.viewable import Viewable
    except ImportError:  # of another version: plots look the same without
        return

    def inline(viewable: Any, root: Any) -> None:  # noqa: ARG001
        from bokeh.models.ui import UIElement

        for model in root.select({"type": UIElement}):
            patch_inline_stylesheets(model)

    if not _LOADED:
        Viewable._preprocessing_hooks.append(inline)


def _is_loaded(shell: Any) -> bool:
    """Say whether `hv.extension` was called: in a notebook for its page, elsewhere at all."""
    import holoviews as hv

    if shell is None:
        return hasattr(hv.opts, "Overlay")
    from holoviews.ipython import notebook_extension

    return bool(notebook_extension._loaded)


def _runs_again(shell: Any) -> bool:
    """Say whether this is the cell that brought Bokeh, run once more: its output, and Bokeh with it, is thrown away."""
    cell = None if shell is None else _cell(shell)
    return cell is not None and cell == _LOADED.get("cell") and shell.execution_count != _LOADED.get("count")


def _shell() -> Any:
    """Return the shell of a notebook; None in a script or a terminal."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _cell(shell: Any) -> str | None:
    """Return the identity of the cell that is running, where the front end tells it, as JupyterLab does."""
    try:
        told = shell.kernel.get_parent("shell")["metadata"]["cellId"]
    except (AttributeError, KeyError, TypeError):
        return None
    return str(told)
