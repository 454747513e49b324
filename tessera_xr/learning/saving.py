"""Heads as files: one archive, no pickle, checked before anything in it is made.

An archive holds `head.json` (what the head is), and the estimator: `estimator.skops` for scikit-learn's,
`estimator.safetensors` for the package's own. `manifest.json` has a hash of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_xr._version import __version__
from tessera_xr.errors import CheckpointError, SchemaError
from tessera_xr.learning.heads import Head
from tessera_xr.learning.recipes import Scaling

FORMAT = 1
MANIFEST, FACTS, SKOPS, TENSORS = "manifest.json", "head.json", "estimator.skops", "estimator.safetensors"
LARGEST = 4 << 30
"""Bytes that a head may unpack to."""
PACKAGES = ("numpy", "scikit-learn", "skops", "torch", "xarray")
TREES = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
"""Types that skops leaves to us: arrays of numbers, whose branches `check_trees` follows."""
OWN = {
    "KNNClassifier": "neighbours",
    "KNNRegressor": "neighbours",
    "MLPClassifier": "estimators",
    "MLPRegressor": "estimators",
    "UNetClassifier": "unet",
    "UNetRegressor": "unet",
}


def save_head(head: Head, path: str | os.PathLike[str]) -> Path:
    """Write a head into one file; an existing one is replaced. The file appears whole or not at all.

    Raises
    ------
    SchemaError
        If the path is a folder, or the estimator can't be written without pickle.
    """
    path = Path(path)
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; give the name of a file, for example {path / 'head.txr'}")
    facts, members = _describe(head)
    members[FACTS] = json.dumps(facts, indent=1, allow_nan=False).encode()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = {"format": "tessera_xr head", "version": FORMAT, "tessera_xr": __version__, "sha256": hashes}
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".head-", delete=False) as file:
        temporary = Path(file.name)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in {MANIFEST: json.dumps(manifest, indent=1).encode(), **members}.items():
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # no date: same head, same file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_head(path: str | os.PathLike[str], *, trusted: Sequence[str] = ()) -> Head:
    """Open a head that `Head.save` wrote.

    Nothing in the file is run: numbers, text, and objects of scikit-learn that skops knows to be harmless. A hash shows
    that the file is as it was written, not who wrote it.

    Parameters
    ----------
    path : str or path
        The file.
    trusted : sequence of str
        Names of further types to allow, where the estimator is of another package; the error names them.

    Returns
    -------
    Head

    Raises
    ------
    CheckpointError
        If the file is damaged, changed, foreign, of a later version, or holds types that are not trusted.
    FileNotFoundError
        If there is none.
    """
    path = Path(path)
    members = _read(path)
    facts = _parsed(path, members[FACTS])
    try:
        estimator = _unpack(path, facts, members, trusted)
        scaling = Scaling(*(np.array(facts["scaling"][k], dtype=np.float32) for k in ("mean", "scale")))
        residuals = facts["residuals"]
        return Head(
            facts["name"], facts["task"], tuple(facts["classes"]), tuple(facts["colours"]), facts["target"], estimator,
            scaling, facts["attrs"], facts["n_labelled"], None if residuals is None else np.array(residuals),
            facts["scores"], facts["versions"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no head that this version can read: {error!r}") from error


def _describe(head: Head) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what goes into head.json, and the estimator as bytes by the name of their file."""
    facts: dict[str, Any] = {
        "name": head.name,
        "task": head.task,
        "classes": list(head.classes),
        "colours": list(head.colours),
        "target": head.target,
        "scaling": {"mean": head.scaling.mean.tolist(), "scale": head.scaling.scale.tolist()},
        "attrs": {k: str(v) for k, v in head.attrs.items()},
        "n_labelled": dict(head.n_labelled),
        "residuals": None if head.residuals is None else head.residuals.tolist(),
        "scores": dict(head.scores),
        "versions": _versions(),
    }
    kind = type(head.estimator)
    if kind.__module__.startswith("tessera_xr.") and kind.__name__ in OWN:
        from safetensors.numpy import save

        settings, arrays = head.estimator.state()
        facts |= {"estimator": kind.__name__, "settings": settings}
        return facts, {TENSORS: save({k: np.ascontiguousarray(v) for k, v in arrays.items()})}
    return facts | {"estimator": f"{kind.__module__}.{kind.__qualname__}"}, {SKOPS: _skops(head)}


def _skops(head: Head) -> bytes:
    import skops.io

    try:
        data: bytes = skops.io.dumps(head.estimator)
        # what was just made here is safe to load, and shows that the file can be opened again
        skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    except Exception as error:  # skops raises whatever an object's own code does
        raise SchemaError(
            f"{type(head.estimator).__name__} can't be written without pickle ({error}); use an estimator of "
            "scikit-learn, without functions of your own inside"
        ) from error
    return data


def _versions() -> dict[str, str]:
    found = {"tessera_xr": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a distribution under another name
            continue
    return found


def _read(path: Path) -> dict[str, bytes]:
    """Return the members of an archive, all of them there and as they were written."""
    if not path.exists():
        raise FileNotFoundError(f"there is no head {path}; head.save(path) writes one")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > LARGEST:
                raise CheckpointError(f"{path} would unpack to over {LARGEST >> 30} GB; it is no head")
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no head, or damaged: {error}; heads are written by head.save(path)"
        ) from error
    manifest = _parsed(path, members.pop(MANIFEST, b"{}"))
    if manifest.get("format") != "tessera_xr head":
        raise CheckpointError(f"{path} is no head of tessera_xr; it holds {sorted(members)[:5]}")
    if manifest.get("version") != FORMAT:
        raise CheckpointError(
            f"{path} is of format {manifest.get('version')}, this version reads {FORMAT}: it was written by tessera_xr "
            f"{manifest.get('tessera_xr')}; install that, or fit the head again"
        )
    hashes = manifest.get("sha256")
    found = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    if not isinstance(hashes, Mapping) or found != dict(hashes) or FACTS not in members:
        raise CheckpointError(f"{path} was changed or damaged after it was written: contents and hashes differ")
    return members


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


def _unpack(path: Path, facts: dict[str, Any], members: dict[str, bytes], trusted: Sequence[str]) -> Any:
    """Return the estimator."""
    if TENSORS in members:
        return _unpack_own(path, facts, members[TENSORS])
    import skops.io

    data = members[SKOPS]
    try:
        types = skops.io.get_untrusted_types(data=data)
    except (zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    unknown = sorted(set(types) - set(trusted) - set(TREES))
    if unknown:
        raise CheckpointError(
            f"{path} holds types that are not known to be harmless: {', '.join(unknown)}. If you trust who wrote it, "
            f"pass load_head(path, trusted={unknown})"
        )
    estimator = skops.io.loads(data, trusted=[*trusted, *TREES])
    check_trees(path, estimator)
    return estimator


def check_trees(path: Path, thing: Any, n_features: int = 0) -> None:
    """Raise `CheckpointError` if a decision tree in an estimator would lead out of its own memory."""
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    n_features = int(getattr(thing, "n_features_in_", n_features))  # so many has what a tree is shown
    if kind in TREES:
        if kind == TREES[0]:
            inner = thing.children_left != -1
            branches, feature = (thing.children_left, thing.children_right), thing.feature
        else:
            inner = thing.nodes["is_leaf"] == 0
            branches, feature = (thing.nodes["left"], thing.nodes["right"]), thing.nodes["feature_idx"]
        at = np.arange(len(inner))
        sound = all(((b > at) & (b < len(at)))[inner].all() for b in branches)  # branches lead onwards, so they end
        if not (sound and (feature[inner] >= 0).all() and (feature[inner] < n_features).all()):
            raise CheckpointError(f"{path} holds a decision tree that leads nowhere; it was changed or damaged")
        return
    if isinstance(thing, dict):
        inside: Iterable[Any] = thing.values()
    elif isinstance(thing, list | tuple) or (isinstance(thing, np.ndarray) and thing.dtype == object):
        inside = np.ravel(thing).tolist() if isinstance(thing, np.ndarray) else thing
    else:
        inside = vars(thing).values() if hasattr(thing, "get_params") else []
    for part in inside:
        check_trees(path, part, n_features)


def _unpack_own(path: Path, facts: dict[str, Any], data: bytes) -> Any:
    from importlib import import_module

    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = facts["estimator"]
    if name not in OWN:
        raise CheckpointError(f"{path} is of an unknown estimator {name!r}; known are {sorted(OWN)}")
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    kind = getattr(import_module(f"tessera_xr.learning.{OWN[name]}"), name)
    return kind.from_state(facts["settings"], arrays)
