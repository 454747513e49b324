"""The panel for learning: a head from the labels, its map, its score on held-out blocks, where to label next."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from tessera_xr.errors import SchemaError
from tessera_xr.views.controls import button, choice, panel, row
from tessera_xr.views.map_view import MapView
from tessera_xr.views.wiring import Wiring

MODELS = ["logistic", "ridge", "knn", "forest", "gradient_boosting", "mlp"]
BLOCKS = "Accuracy on blocks of the map that were held out"


class Teaching:
    """The controls of a head."""

    def __init__(self, wiring: Wiring, view: MapView) -> None:
        self.wiring, self.view, self.session = wiring, view, wiring.session
        guard = wiring.guard
        model = self.session.settings.model
        models = MODELS if model in MODELS else [*MODELS, model]
        self.model = choice("Head", models, model, guard(self._choose))
        self.refit = widgets.Checkbox(value=True, description="Fit again after each edit", indent=False)
        self.fade = widgets.Checkbox(value=self.session.settings.fade, description="Unsure is faint", indent=False)
        self.fade.observe(guard(self._set_fade), names="value")
        self.told, self.scores = widgets.HTML(), widgets.HTML()
        self.scores.add_class("tessera-scores")
        self.panel = panel(
            self.model,
            row(
                button("Fit", guard(self.fit), "Fit the head to all labels and draw its map", style="primary"),
                button("Judge", guard(self.judge), BLOCKS),
                button("Where next?", guard(self.suggest), "The next places worth labelling"),
            ),
            row(self.refit, self.fade),
            self.told,
            self.scores,
        )
        wiring.on("labels", self._edited)
        wiring.on("head labels", self.follow)
        self.follow()

    def fit(self) -> None:
        """Fit the head and show its map."""
        self._check()
        self.wiring.later("head", self._fitted, self._show, f"Fitting {self.session.settings.model} ...")

    def _fitted(self) -> Any:
        self.session.fit()
        return self.session.picture("classes")

    def _show(self, _: Any) -> None:
        self.session.show("classes", opacity=0.75)
        self.wiring.tell("head layers")
        self.wiring.say("")

    def judge(self) -> None:
        """Score the head where it was not taught."""
        self._check()
        self.wiring.later("judge", self.session.validate, self._judged, "Holding out blocks of the map ...")

    def _judged(self, _: Any) -> None:
        self.wiring.tell("head")
        self.wiring.say("")

    def suggest(self) -> None:
        """Mark the places worth labelling next."""
        self._check()
        self.wiring.later("suggest", self.session.suggest, self._suggested, "Looking for doubtful places ...")

    def _suggested(self, places: Any) -> None:
        self.view.places = [(p.lon, p.lat, str(p.rank)) for p in places.itertuples()]
        self.wiring.tell("place")
        self.wiring.say(f"Label the {len(places)} numbered places; 1 would teach most.")

    def _check(self) -> None:
        if self.session.labels.task == "classes" and sum(n > 0 for n in self.session.class_counts().values()) < 2:
            raise SchemaError("label places of two classes at least, then fit")

    def _edited(self) -> None:
        taught = self.session.head is not None and self.refit.value and self.session.is_stale
        if taught and sum(n > 0 for n in self.session.class_counts().values()) > 1:
            self.fit()

    def _choose(self) -> None:
        self.session.set(model=self.model.value)
        if self.session.head is not None and self.refit.value:
            self.fit()

    def _set_fade(self) -> None:
        self.session.set(fade=self.fade.value)
        self.wiring.tell("layers")

    def follow(self) -> None:
        """Show what the session's head is."""
        head, warning = self.session.head, self.session.balance_warning()
        lines = [f'<div role="alert" class="tessera-error">{escape(warning)}</div>'] if warning else []
        if head is None:
            lines.append("Label places of two classes, then fit.")
        else:
            stale = " <i>(the labels have changed since)</i>" if self.session.is_stale else ""
            lines.append(
                f"<b>{escape(head.name)}</b>, taught {sum(self.session.class_counts().values())} labels{stale}"
            )
        self.told.value = "".join(f"<div>{line}</div>" for line in lines)
        found = self.session.validation
        self.scores.value = "" if found is None else scores_html(found)

    def save_head(self, path: str | Path) -> Path:
        """Write the head to a file."""
        if self.session.head is None:
            raise SchemaError("there is no head yet; fit one first")
        return self.session.head.save(path)


def scores_html(found: Any) -> str:
    """Return the scores of a validation as a table, with their intervals."""
    names = {"macro_f1": "macro F1", "accuracy": "accuracy", "auc": "AUC", "rmse": "RMSE", "r2": "R2", "mae": "MAE"}
    rows = []
    for name, label in names.items():
        if name in found.scores:
            ends = found.intervals.get(name)
            span = f"{ends[0]:.2f} to {ends[1]:.2f}" if ends is not None else ""
            rows.append(f"<tr><td>{label}</td><td><b>{found.scores[name]:.3f}</b></td><td>{span}</td></tr>")
    table = "".join(rows)
    per_class = ""
    if found.per_class is not None:
        cells = (
            f"<tr><td>{escape(str(name))}</td><td>{line.f1:.2f}</td><td>{line.support:.0f}</td></tr>"
            for name, line in found.per_class.iterrows()
        )
        per_class = f"<table><tr><th>class</th><th>F1</th><th>pixels</th></tr>{''.join(cells)}</table>"
    return f"<div>{escape(BLOCKS)}:</div><table>{table}</table>{per_class}"
