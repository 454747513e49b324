"""Sessions as files, and what leaves an explorer as files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr

from tessera_xr.embedding.schema import identity
from tessera_xr.errors import GridError, SchemaError, VersionMismatchError
from tessera_xr.learning.label_files import write_json
from tessera_xr.learning.labels import LabelSet
from tessera_xr.views.answers import Query
from tessera_xr.views.session import Session
from tessera_xr.views.settings import Layer

KEY, VERSION = "tessera_xr_session", 1
MOST_BYTES = 64 << 20


def session_state(session: Session) -> dict[str, Any]:
    """Return all that a session file holds: the question, labels, settings, and whose embeddings they are of.

    The head isn't: it is taught again from the labels, or saved by itself with `Head.save`.
    """
    query, settings = session.query, asdict(session.settings)
    return {
        KEY: VERSION,
        "embeddings": {"identity": identity(session.emb), "grid": _grid(session), "times": session.times},
        "query": {
            "positives": [list(p) for p in query.positives],
            "negatives": [list(p) for p in query.negatives],
            "combine": query.combine,
        },
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "labels": session.labels.to_geojson(),
    }


def save_session(session: Session, path: str | os.PathLike[str]) -> Path:
    """Write a session to a JSON file, whole or not at all; see `open_session`."""
    path = Path(path)
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; give the name of a file, for example {path / 'session.json'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(session_state(session), path)
    return path


def open_session(path: str | os.PathLike[str], emb: xr.Dataset, cube: xr.Dataset | None = None) -> Session:
    """Open a session that was saved, over the embeddings that it was of.

    Parameters
    ----------
    path : str or path
        What `Session.save` wrote.
    emb : Dataset
        The same embeddings: model, grid and times.
    cube : Dataset, optional
        The imagery.

    Returns
    -------
    Session
        As it was saved, but for the head, which `fit` teaches again from the labels; undo begins anew.

    Raises
    ------
    SchemaError
        If the file is none, is damaged, or holds what can't be.
    VersionMismatchError
        If it is of embeddings of another model.
    GridError
        If it is of another place.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise SchemaError(
            f"open_session takes the path of a file first, then the embeddings; not {type(path).__name__}"
        )
    state = _read(Path(path))
    session = Session(emb, cube)
    _check_same(session, state["embeddings"], path)
    try:
        _restore(session, state)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SchemaError(f"{path} is damaged ({type(error).__name__}: {error}); save the session again") from error
    return session


def _restore(session: Session, state: dict[str, Any]) -> None:
    session.history.labels = LabelSet.from_geojson(state["labels"])
    query, height_width = state["query"], session.box.shape
    sides = [tuple((int(r), int(c)) for r, c in query[side]) for side in ("positives", "negatives")]
    for pixel in sides[0] + sides[1]:
        if not all(0 <= v < n for v, n in zip(pixel, height_width, strict=True)):
            raise SchemaError(f"an example lies at {pixel}, outside the {height_width[0]} x {height_width[1]} pixels")
    session.history.query = Query()
    session.set_combine(query["combine"])
    session.history.query = Query(sides[0], sides[1], session.query.combine)
    session.history.forget()
    settings = dict(state["settings"])
    for name, layer in settings.pop("layers").items():
        if name in session.settings.layers:  # a cube that isn't there now has no layers
            session.settings.layers[name] = Layer(bool(layer["visible"]), float(layer["opacity"]))
    settings["channels"] = tuple(int(c) for c in settings["channels"])
    settings["centre"] = None if settings["centre"] is None else tuple(map(float, settings["centre"]))
    session.set(**settings)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SchemaError(f"there is no file {path}; give one that an explorer saved")
    if path.stat().st_size > MOST_BYTES:
        raise SchemaError(f"{path} has {path.stat().st_size / 1e6:.0f} MB: more than a session takes")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} is no session: it can't be read as JSON ({error})") from error
    if not isinstance(state, dict) or state.get(KEY) != VERSION:
        found = state.get(KEY) if isinstance(state, dict) else None
        raise SchemaError(f"{path} is no session of version {VERSION} (it says {found!r}); save one with Session.save")
    missing = [k for k in ("embeddings", "query", "settings", "labels") if not isinstance(state.get(k), dict)]
    if missing:
        raise SchemaError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return state


def _check_same(session: Session, was: dict[str, Any], path: Any) -> None:
    here = identity(session.emb)
    then = was.get("identity")
    if not isinstance(then, dict):
        raise SchemaError(f"{path} is damaged: it doesn't say whose embeddings it is of; save the session again")
    differ = [k for k in here if k in then and here[k] != then[k]]
    if differ:
        raise VersionMismatchError(
            f"{path} is of embeddings whose {differ[0]} is {then[differ[0]]!r}, these have {here[differ[0]]!r}; "
            "open it over those that it was made with"
        )
    if was.get("grid") != _grid(session):
        raise GridError(
            f"{path} is of another grid, {_told(was.get('grid'))}, than these embeddings, {_told(_grid(session))}"
        )
    if was.get("times") != session.times:
        raise SchemaError(f"{path} is of the times {was.get('times')}; these embeddings have {session.times}")


def _grid(session: Session) -> dict[str, Any]:
    box = session.box
    return {"crs": str(box.crs), "transform": [float(v) for v in box.transform[:6]], "shape": list(box.shape)}


def _told(grid: Any) -> str:
    """Return a grid in a few words."""
    try:
        (height, width), (step, _, left, _, _, top) = grid["shape"], grid["transform"]
        told = f"{height} x {width} pixels of {step:g} from ({left:.6f}, {top:.6f})"
    except (KeyError, TypeError, ValueError):
        return "one that can't be read"
    return told
