"""The explorer: a map, what a click on it does, and a panel for each of the five things to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import xarray as xr

from tessera_xr.errors import SchemaError
from tessera_xr.learning.labels import LabelSet
from tessera_xr.views.asking import Asking
from tessera_xr.views.compare import Compare
from tessera_xr.views.controls import button, choice, panel, row
from tessera_xr.views.inspector import Inspector
from tessera_xr.views.labeller import Labeller
from tessera_xr.views.looking import looking_panel
from tessera_xr.views.map_view import MapView
from tessera_xr.views.session import Session
from tessera_xr.views.session_files import open_session
from tessera_xr.views.settings import LAYERS, MODES
from tessera_xr.views.style import Keys
from tessera_xr.views.teaching import Teaching
from tessera_xr.views.wiring import Wiring

MODE_NAMES = {
    "ask": ("Ask", "a", "Where else is it like here?"),
    "like": ("+ Like", "p", "Add an example of what you look for"),
    "unlike": ("− Unlike", "n", "Add an example of what you don't look for"),
    "inspect": ("Inspect", "i", "What is known of this pixel"),
    "label": ("Label", "l", "Label this place with the chosen class"),
}
TABS = ("Look", "Ask", "Inspect", "Label", "Learn", "Compare", "Files")
TAB_OF_MODE = {"ask": 1, "like": 1, "unlike": 1, "inspect": 2, "label": 3}


class Explorer(widgets.VBox):
    """Embeddings on a map that you can question; see `explore`.

    Parameters
    ----------
    session : Session
        What to explore.
    background : bool, default True
        Whether slow work runs beside the clicks.
    """

    def __init__(self, session: Session, *, background: bool = True) -> None:
        self.session = session
        self.wiring = Wiring(session, background=background)
        guard = self.wiring.guard
        self.view = MapView(self.wiring)
        self.asking = Asking(self.wiring, self.view)
        self.inspector = Inspector(self.wiring)
        self.labeller = Labeller(self.wiring, self.view)
        self.teaching = Teaching(self.wiring, self.view)
        self.compare: Compare | None = None
        self.modes = widgets.ToggleButtons(
            options=[(MODE_NAMES[m][0], m) for m in MODES], value=session.settings.mode, style={"button_width": "auto"},
            tooltips=[f"{tip} (key {key})" for _, key, tip in MODE_NAMES.values()],
        )  # fmt: skip
        self.modes.observe(guard(self._choose_mode), names="value")
        self.undo_button = button("Undo", guard(self.undo), "Take back the last example or label (key z)", "undo")
        self.redo_button = button("Redo", guard(self.redo), "Make it again (key y)", "repeat")
        self.tabs = self._tabs()
        self.keyboard = Keys(listened=["a", "p", "n", "i", "l", "z", "y", "Escape", *map(str, range(1, 10))])
        self.keyboard.on_msg(lambda _, content, __: self.wiring.run(self.press, str(content.get("key", ""))))
        top = row(self.modes, self.undo_button, self.redo_button)
        self.view.layout.width, self.view.layout.flex = "auto", "3 1 400px"
        self.tabs.layout.width, self.tabs.layout.flex = "auto", "2 1 330px"
        body = widgets.HBox([self.view, self.tabs], layout=widgets.Layout(flex_flow="row wrap", align_items="stretch"))
        self.below = widgets.VBox()
        super().__init__([top, body, self.below, self.wiring.status, self.keyboard])
        self.add_class("tessera-explorer")
        self.view.clicked.append(self.click)
        self.wiring.on("query labels", self._follow_history)
        self.wiring.on("mode", self._follow_mode)
        self._follow_history()

    def _tabs(self) -> widgets.Tab:
        tabs = widgets.Tab(
            children=[
                looking_panel(self.wiring, self.view), self.asking.panel, self.inspector, self.labeller,
                self.teaching.panel, self._compare_panel(), self._files_panel(),
            ],
            titles=TABS, selected_index=0,
        )  # fmt: skip
        tabs.layout.max_height = "640px"
        return tabs

    def _compare_panel(self) -> widgets.VBox:
        return panel(
            widgets.HTML(
                "Two layers, or two times, by swipe or on two maps that move together. They open below the map."
            ),
            button("Compare", self.wiring.guard(self.toggle_compare)),
        )

    def _files_panel(self) -> widgets.VBox:
        guard = self.wiring.guard
        layers = [(LAYERS[name], name) for name in self.session.layer_names()]
        self.layer = choice("Layer", layers, "embedding", guard(lambda: None))
        names = {"tif": "map.tif", "head": "head.txr", "session": "session.json"}
        self.paths = {k: widgets.Text(value=v, layout=widgets.Layout(width="170px")) for k, v in names.items()}
        return panel(
            widgets.HTML("Files are written where the notebook runs."),
            row(self.layer, self.paths["tif"], button("Export GeoTIFF", guard(self.export_layer))),
            row(self.paths["head"], button("Save head", guard(self.save_head))),
            row(
                self.paths["session"],
                button("Save session", guard(self.save_session)),
                button("Open", guard(self.open_session), "Open a saved session"),
            ),
        )

    def click(self, lon: float, lat: float) -> None:
        """Do what a click does in the present mode."""
        actions: dict[str, Callable[[float, float], Any]] = {
            "ask": self.asking.ask,
            "like": lambda x, y: self.asking.add(x, y, like=True),
            "unlike": lambda x, y: self.asking.add(x, y, like=False),
            "inspect": self.inspector.inspect,
            "label": self.labeller.label,
        }
        actions[self.session.settings.mode](lon, lat)

    def press(self, key: str) -> None:
        """Do what a key does."""
        modes = {letter: mode for mode, (_, letter, _) in MODE_NAMES.items()}
        if key in modes:
            self.session.set(mode=modes[key])
            self.wiring.tell("mode")
        elif key.isdigit():
            self.labeller.choose_number(int(key))
        elif key in ("z", "y", "Escape"):
            {"z": self.undo, "y": self.redo, "Escape": self.asking.clear}[key]()

    def undo(self) -> None:
        """Take back the last example or edit of labels."""
        self.session.undo()
        self.wiring.tell("query labels")

    def redo(self) -> None:
        """Make it again."""
        self.session.redo()
        self.wiring.tell("query labels")

    def _follow_history(self) -> None:
        self.undo_button.disabled = not self.session.can_undo
        self.redo_button.disabled = not self.session.can_redo

    def _choose_mode(self) -> None:
        if self.modes.value != self.session.settings.mode:
            self.session.set(mode=self.modes.value)
            self._follow_mode()

    def _follow_mode(self) -> None:
        mode = self.session.settings.mode
        self.modes.value = mode
        self.tabs.selected_index = TAB_OF_MODE[mode]
        self.view.map.default_style = {"cursor": "crosshair"}

    def toggle_compare(self) -> None:
        """Show two layers beside each other, or no longer."""
        if self.compare is None:
            self.compare = Compare(self.wiring)
            self.below.children = (self.compare,)
        else:
            self.below.children = ()
            self.compare.close()
            self.compare = None

    def export_layer(self) -> None:
        """Write a layer as a GeoTIFF."""
        path, layer = self.paths["tif"].value, self.layer.value
        self.wiring.later("export", lambda: self.session.export_geotiff(layer, path), self._wrote, "Writing ...")

    def save_head(self) -> None:
        """Write the head."""
        self._wrote(self.teaching.save_head(self.paths["head"].value))

    def save_session(self) -> None:
        """Write the session."""
        self._wrote(self.session.save(self.paths["session"].value))

    def _wrote(self, path: Path) -> None:
        self.wiring.say(f"{path} is written.")

    def open_session(self) -> None:
        """Open a session file over these embeddings."""
        found = open_session(self.paths["session"].value, self.session.emb, self.session.cube)
        self.session.history.become(found.history)
        self.session.settings = found.settings
        self.wiring.tell("query threshold labels layers time mode place")
        self.wiring.say("The session is open; fit the head again to see its map.")


def explore(
    emb: xr.Dataset, cube: xr.Dataset | None = None, *, labels: LabelSet | None = None, session: Any = None
) -> Explorer:
    """Open embeddings on a map that you can question.

    Click for similarity; examples and counter-examples; the series of a pixel; labels as points and areas; heads with
    honest scores; undo; files. In JupyterLab, Notebook 7, Voila, VS Code, Binder and JupyterHub, without a server, a
    port or the internet.

    Parameters
    ----------
    emb : Dataset
        Embeddings, ([time,] band, y, x). Lazy ones are loaded.
    cube : Dataset, optional
        The imagery they were made of: its pictures, and the series of each pixel.
    labels : LabelSet, optional
        To go on with.
    session : Session or path, optional
        A session to go on with, or the file of one.

    Returns
    -------
    Explorer
        An ipywidgets widget; what it holds is `.session`: `.session.labels`, `.session.head`.

    Raises
    ------
    SchemaError
        If there are no embeddings, or they are too large to hold, or the session isn't of them.

    Examples
    --------
    >>> import tessera_xr as txr
    >>> explorer = txr.explore(txr.tutorial.embeddings())
    >>> explorer.session.ask(-120.3375, 38.6890)
    """
    if session is None:
        return Explorer(Session(emb, cube, labels))
    if labels is not None:
        raise SchemaError("a session has labels of its own: give labels= or session=, not both")
    return Explorer(session if isinstance(session, Session) else open_session(session, emb, cube))
