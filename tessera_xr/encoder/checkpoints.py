"""Weights: found or downloaded, checked, recognised, loaded strictly."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from tessera_xr.encoder.device import Precision, resolve_device, resolve_precision
from tessera_xr.encoder.files import read_encoder_file
from tessera_xr.encoder.hub import hash_file, is_here, locate
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.payload import read_payload, recognise
from tessera_xr.encoder.registry import RECORDS, UNOFFICIAL, ModelRecord
from tessera_xr.encoder.teacher import TesseraTeacher
from tessera_xr.errors import CheckpointError, ModelUnavailableError, VersionMismatchError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

PathLike: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Encoder:
    """A network with its weights, on a device, and all that belongs to it."""

    record: ModelRecord
    """What it is."""
    network: TesseraEncoder | TesseraTeacher
    """In evaluation mode, on `device`."""
    sha256: str
    """Hash of the file of weights."""
    device: torch.device
    """Where it is."""
    precision: torch.dtype
    """Of its matrix products."""

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in self.network.parameters())
        precision = str(self.precision).removeprefix("torch.")
        facts = [repr(self.record.name), *([] if self.record.official else [UNOFFICIAL]), f"{size:,} parameters"]
        return f"Encoder({', '.join([*facts, str(self.device), precision, f'weights {self.sha256[:12]}'])})"


@dataclass(frozen=True)
class ModelSource:
    """A model by its name or its file, before anything is loaded: cheap to pass around and to send to workers."""

    name: str | None
    """A name in the registry; None if the file alone tells."""
    path: Path | None
    """A file of weights; None to use the bundled, cached or downloaded one."""


def models() -> pd.DataFrame:
    """List the models by name: generation, parameters, dimensions, size, licence, where from, and whether it is here.

    `official` says that TESSERA's authors trained it; the bundled "mini" is an encoder of our own.

    Returns
    -------
    pandas.DataFrame
        One row a model; `available` says that it can be used offline.
    """
    import pandas as pd

    rows = [
        {
            "name": r.name,
            "generation": r.family,
            "parameters": r.n_parameters,
            "dims": ", ".join(map(str, (*r.matryoshka, r.n_dims))),
            "size_mb": round((r.n_bytes or 4 * r.n_parameters) / 1e6, 1),
            "imagery": r.imagery or "any",
            "licence": r.licence,
            "official": r.official,
            "source": "in the package" if r.bundled else r.repo or "a file that you have",
            "available": is_here(r),
        }
        for r in RECORDS.values()
    ]
    return pd.DataFrame(rows).set_index("name")


def resolve_model(model: PathLike, weights: PathLike | None = None) -> ModelSource:
    """Settle which model is meant, before anything is read.

    Parameters
    ----------
    model : str or path
        A name (see `models`) or a file of weights.
    weights : str or path, optional
        The file of the named model, where it isn't bundled, cached or downloaded.

    Raises
    ------
    CheckpointError
        If there is no such model.
    ModelUnavailableError
        If the file doesn't exist.
    """
    if weights is not None:
        if model not in RECORDS or RECORDS[str(model)].bundled:
            raise CheckpointError(
                f"weights= goes with the name of the model that is in the file, not {str(model)!r}; {names()}; "
                "or pass the file itself as the model, and its version is recognised"
            )
        return ModelSource(str(model), _existing(weights))
    if model in RECORDS:
        return ModelSource(str(model), None)
    if isinstance(model, os.PathLike) or os.sep in model or Path(model).suffix in (".pt", ".pth", ".safetensors"):
        return ModelSource(None, _existing(model))
    close = get_close_matches(model.lower(), RECORDS, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise CheckpointError(
        f"there is no model {model!r}{hint}; {names()}, or give the path of a file of weights (.pt, .safetensors)"
    )


def load_encoder(
    model: PathLike | ModelSource = "mini",
    weights: PathLike | None = None,
    *,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
) -> Encoder:
    """Load a model; the same one is loaded once in a process.

    "mini" comes with the package. Any other is downloaded from the Hugging Face Hub if it is neither in the folder
    named by the environment variable ``TESSERA_XR_WEIGHTS`` nor in the hub's cache; never if ``TESSERA_XR_OFFLINE`` or
    ``HF_HUB_OFFLINE`` is set.

    Parameters
    ----------
    model : str or path, default "mini"
        A name (see `models`) or a file of weights, whose version is recognised.
    weights : str or path, optional
        The file of the named model.
    device : str, default "auto"
        "auto", "cpu", "cuda", "cuda:1", "mps", "xpu".
    precision : {"auto", "float32", "bfloat16"}
        Of the matrix products; "auto" is bfloat16 on GPUs that have it.

    Raises
    ------
    ModelUnavailableError
        If the weights are neither here nor to be had.
    CheckpointError
        If the file is damaged, foreign, or of another version than asked for.
    DeviceError
        If the device or precision isn't to be had.
    """
    source = model if isinstance(model, ModelSource) else resolve_model(model, weights)
    place = resolve_device(device)
    dtype = resolve_precision(precision, place)
    path = source.path or locate(RECORDS[str(source.name)])
    stat = path.stat()
    with _LOADING:
        return _load(path, (stat.st_mtime_ns, stat.st_size), source.name, place, dtype)


def refuse_other_imagery(record: ModelRecord, source: str | None) -> None:
    """Raise `VersionMismatchError` if the model goes with one source of imagery and the cube is from another.

    Imagery of unknown source passes: nothing speaks against it.
    """
    known = {r.imagery for r in RECORDS.values()} - {None}
    if record.imagery and source in known and source != record.imagery:
        other = next(r.name for r in RECORDS.values() if r.imagery == source)
        raise VersionMismatchError(
            f"model {record.name!r} was trained on imagery from {record.imagery!r}, this cube is from {source!r}, "
            f"which is processed differently; use {other!r} or a v2 model, or pass check_imagery=False to run it anyway"
        )


_LOADING = threading.Lock()  # two threads of a worker must not load the same weights twice


@lru_cache(maxsize=4)
def _load(
    path: Path, stamp: tuple[int, int], name: str | None, device: torch.device, precision: torch.dtype
) -> Encoder:
    if path.suffix == ".safetensors":
        record, state = read_encoder_file(path)
        _same_sizes(record, path, name)
    else:
        record, state = recognise(read_payload(path), path, name)
    network = _build(record, state, path)
    logger.info("loaded %s from %s on %s", record.name, path, device)
    return Encoder(record, network.to(device), hash_file(path, stamp), device, precision)


def _same_sizes(record: ModelRecord, path: Path, name: str | None) -> None:
    """Raise `CheckpointError` if an encoder of one's own was passed under the name of another model or its sizes."""
    known = (record.name, record.family, record.arch)
    if name is not None and (name, RECORDS[name].family, RECORDS[name].arch) != known:
        raise CheckpointError(f"{path} holds {record.name!r}, not {name!r} as asked for; name the file alone")


def _build(record: ModelRecord, state: dict[str, Tensor], path: Path) -> TesseraEncoder | TesseraTeacher:
    with torch.device("meta"):  # no memory, no random initialisation: the weights are put in place
        network = (TesseraTeacher if record.family == "v2-teacher" else TesseraEncoder)(record.arch)
    try:
        network.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} doesn't fit {record.name!r}: {str(error)[:600]}") from error
    return network.eval().requires_grad_(requires_grad=False)


def _existing(path: PathLike) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise ModelUnavailableError(f"there is no file {found}; {names()}, or give the path of a file of weights")
    return found


def names() -> str:
    """Return the names of all models, as part of a sentence."""
    return f"the models are {', '.join(RECORDS)}"
