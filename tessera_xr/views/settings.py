"""How an explorer looks at things: what isn't undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from tessera_xr.errors import SchemaError

Mode: TypeAlias = Literal["ask", "like", "unlike", "inspect", "label"]
MODES: tuple[Mode, ...] = ("ask", "like", "unlike", "inspect", "label")
LAYERS = {
    "embedding": "Embedding colours",
    "true_colour": "Sentinel-2, true colour",
    "false_colour": "Sentinel-2, infrared",
    "similarity": "Similarity",
    "clusters": "Clusters",
    "classes": "Classes of the head",
    "novelty": "Novelty",
    "change": "Change",
}
"""What can be shown, from the bottom up."""
OF_CUBE = ("true_colour", "false_colour")
"""Layers on the grid of the cube; all others are on that of the embeddings."""


@dataclass(frozen=True)
class Layer:
    """How a layer is shown."""

    visible: bool = False
    opacity: float = 1.0


@dataclass
class Settings:
    """What isn't undone: how things are looked at."""

    time: str = ""
    """Of `Session.times`."""
    before: str = ""
    """The time that change is measured from."""
    threshold: float | None = None
    """Similarity below which nothing is shown."""
    mode: Mode = "ask"
    """What a click does."""
    current: str | None = None
    """The class that a click labels."""
    model: str = "logistic"
    """Of the head."""
    n_clusters: int = 8
    channels: tuple[int, int, int] = (0, 1, 2)
    """Components shown as red, green and blue, from 0."""
    date: str | None = None
    """Of the Sentinel-2 scene shown; the median if None."""
    fade: bool = True
    """Whether unsure classes are fainter."""
    layers: dict[str, Layer] = field(default_factory=dict)
    centre: tuple[float, float] | None = None
    """(lat, lon) of the view."""
    zoom: float | None = None


def checked_settings(changes: Mapping[str, Any], times: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Return changes of settings, each of the right kind.

    Raises
    ------
    SchemaError
        If there is no such setting, or its value isn't allowed.
    """
    allowed: dict[str, Sequence[Any]] = {"time": times, "before": times, "mode": MODES, "current": [None, *classes]}
    numbers = {"threshold": (-1.0, 1.0), "zoom": (0.0, 30.0), "n_clusters": (2, 254)}
    known = [f.name for f in fields(Settings)]
    changes = {name: str(v) if name in ("time", "before") else v for name, v in changes.items()}
    for name, value in changes.items():
        if name not in known:
            raise SchemaError(f"there is no setting {name!r}; there are {', '.join(known)}")
        if name in allowed and value not in allowed[name]:
            choice = ", ".join(map(repr, allowed[name]))
            raise SchemaError(f"{name}={value!r} is not to be had; choose one of {choice}")
        if name in numbers and (value is not None or name == "n_clusters"):
            _check_number(name, value, *numbers[name])
        if name == "channels" and not (len(value) == 3 and all(isinstance(c, int) and c >= 0 for c in value)):
            raise SchemaError(f"channels are three components, from 0, not {value!r}")
        if name == "model" and not isinstance(value, str):
            raise SchemaError(f"model is the name of a head, not {value!r}")
    return dict(changes)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    whole = isinstance(low, int)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise SchemaError(f"{name} must be a {kind} from {low} to {high}, not {value!r}")
