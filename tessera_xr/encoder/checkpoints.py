"""Weights: found or downloaded, checked, recognised, loaded strictly."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from tessera_xr._optional import have
from tessera_xr.encoder.device import Precision, resolve_device, resolve_precision
from tessera_xr.encoder.network import MAX_DOY, Architecture, Backbone, Pooling, TesseraEncoder, doy_encoding
from tessera_xr.encoder.registry import RECORDS, ModelRecord
from tessera_xr.encoder.teacher import TesseraTeacher
from tessera_xr.errors import CheckpointError, ModelUnavailableError, TesseraWarning, VersionMismatchError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

PathLike: TypeAlias = "str | os.PathLike[str]"
WEIGHTS_FOLDER = "TESSERA_XR_WEIGHTS"
OFFLINE = "TESSERA_XR_OFFLINE"
UNTRAINED_SEED = 2024
_DROPPED = ("projector.", "segmented_matryoshka_projector.")


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


@dataclass(frozen=True)
class ModelSource:
    """A model by its name or its file, before anything is loaded: cheap to pass around and to send to workers."""

    name: str | None
    """A name in the registry; None if the file alone tells."""
    path: Path | None
    """A file of weights; None to use the bundled, cached or downloaded one."""


def models() -> pd.DataFrame:
    """List the models by name: generation, parameters, dimensions, size, licence, where from, and whether it is here.

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
            "source": "untrained, for trying out" if r.name == "mini" else r.repo or "a file that you have",
            "available": r.name == "mini" or _on_disk(r) is not None,
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
        if model not in RECORDS:
            raise CheckpointError(f"weights= goes with the name of a model, not {str(model)!r}; {_names()}")
        return ModelSource(str(model), _existing(weights))
    if model == "mini":
        warnings.warn(
            "model 'mini' is not trained yet: its embeddings are random features, for trying out only. "
            "Choose a trained one from txr.models()",
            TesseraWarning,
            stacklevel=3,
        )
    if model in RECORDS:
        return ModelSource(str(model), None)
    if isinstance(model, os.PathLike) or os.sep in model or Path(model).suffix in (".pt", ".pth"):
        return ModelSource(None, _existing(model))
    raise CheckpointError(f"there is no model {model!r}; {_names()}, or give the path of a file of weights (.pt)")


def load_encoder(
    model: PathLike | ModelSource = "mini",
    weights: PathLike | None = None,
    *,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
) -> Encoder:
    """Load a model; the same one is loaded once in a process.

    Downloads it from the Hugging Face Hub if it is neither in the folder named by the environment variable
    ``TESSERA_XR_WEIGHTS`` nor in the hub's cache; never if ``TESSERA_XR_OFFLINE`` or ``HF_HUB_OFFLINE`` is set.

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
    if source.name == "mini" and source.path is None:
        return _untrained(place, dtype)
    path = source.path or locate(RECORDS[str(source.name)])
    stat = path.stat()
    with _LOADING:
        return _load(path, (stat.st_mtime_ns, stat.st_size), source.name, place, dtype)


def describe_model(source: ModelSource) -> tuple[ModelRecord, str]:
    """Return the record of a model and the hash of its weights, reading the file if it must."""
    encoder = load_encoder(source, device="cpu", precision="float32")
    return encoder.record, encoder.sha256


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


def locate(record: ModelRecord) -> Path:
    """Return the file of a model, downloading it if need be (with progress; hash checked where known)."""
    path = _on_disk(record)
    if path is None:
        if record.repo is None:
            raise ModelUnavailableError(
                f"the weights of {record.name!r} are shared by their authors as a file"
                f"{f' ({record.filename})' if record.filename else ''}, not on a hub: pass its path, "
                f"embed({record.name!r}, weights='…/{record.filename or 'encoder.pt'}'), "
                f"or put it in a folder and name that folder in the environment variable {WEIGHTS_FOLDER}"
            )
        path = _download(record)
    _check_file(path, record)
    return path


def _on_disk(record: ModelRecord) -> Path | None:
    """Return the file if it is in the user's own folder of weights or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if record.filename is None:
        return None
    folder = os.environ.get(WEIGHTS_FOLDER)
    if folder and (own := Path(folder).expanduser() / Path(record.filename).name).is_file():
        return own
    cached = try_to_load_from_cache(record.repo, record.filename) if record.repo else None
    return Path(cached) if isinstance(cached, str) else None


def _download(record: ModelRecord) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    offline = os.environ.get(OFFLINE, "").lower() not in ("", "0", "false")
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        if offline:
            raise OfflineModeIsEnabled(f"{OFFLINE} is set")
        filename = record.filename or _only_weights(HfApi(endpoint=endpoint).list_repo_files(str(record.repo)))
        return Path(hf_hub_download(str(record.repo), filename, endpoint=endpoint))
    except _download_errors() as error:
        raise ModelUnavailableError(
            f"the weights of {record.name!r} are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}). "
            f"Where there is internet, run: hf download {record.repo} {record.filename or ''}".rstrip()
            + f"; then copy the file here and pass embed({record.name!r}, weights='path/to/file.pt'), "
            f"or name its folder in the environment variable {WEIGHTS_FOLDER}"
        ) from error


def _download_errors() -> tuple[type[Exception], ...]:
    """Return what a download may fail with; the client under huggingface_hub is httpx up to its 1.x, httpx2 since."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    of_client = [import_module(name).HTTPError for name in ("httpx", "httpx2") if have(name)]
    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *of_client)


def _only_weights(files: list[str]) -> str:
    found = [f for f in files if f.endswith((".pt", ".pth"))]
    if len(found) != 1:
        raise FileNotFoundError(f"expected one .pt file in the repository, found {found}")
    return found[0]


def _check_file(path: Path, record: ModelRecord) -> None:
    size = path.stat().st_size
    if record.n_bytes and size != record.n_bytes:
        raise CheckpointError(
            f"{path} has {size} bytes, {record.name!r} has {record.n_bytes}: the file is truncated or another one; "
            "delete it and download it again"
        )
    if record.sha256 and _hash(path, (path.stat().st_mtime_ns, size)) != record.sha256:
        raise CheckpointError(
            f"{path} is not the published file of {record.name!r} (its SHA-256 differs); delete it, download it again"
        )


_LOADING = threading.Lock()  # two threads of a worker must not load the same weights twice


@lru_cache(maxsize=4)
def _load(
    path: Path, stamp: tuple[int, int], name: str | None, device: torch.device, precision: torch.dtype
) -> Encoder:
    payload = _read(path)
    record, state = recognise(payload, path, name)
    network = _build(record, state, path)
    logger.info("loaded %s from %s on %s", record.name, path, device)
    return Encoder(record, network.to(device), _hash(path, stamp), device, precision)


@lru_cache(maxsize=4)
def _untrained(device: torch.device, precision: torch.dtype) -> Encoder:
    record = RECORDS["mini"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        network = TesseraEncoder(record.arch).eval()
    return Encoder(record, network.to(device), f"untrained-{UNTRAINED_SEED}", device, precision)


@lru_cache(maxsize=16)
def _hash(path: Path, stamp: tuple[int, int]) -> str:  # noqa: ARG001 (a changed file has another stamp)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read as PyTorch weights ({type(error).__name__}): it is truncated, or no checkpoint; "
            "download or copy it again"
        ) from error
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a TESSERA checkpoint")
    return payload


def recognise(payload: Mapping[str, Any], path: Path, name: str | None) -> tuple[ModelRecord, dict[str, Tensor]]:
    """Tell from a file's contents which model it is.

    Parameters
    ----------
    payload : mapping
        What the file holds.
    path : Path
        Its name may tell which imagery a v1.1 model belongs to.
    name : str or None
        The model that was asked for, to be verified.

    Returns
    -------
    record : ModelRecord
        That of the registry if the sizes agree, else one of its own, named "<family>-custom".
    state : dict of Tensor
        The weights, without training's leftovers.

    Raises
    ------
    CheckpointError
        If it is no TESSERA checkpoint, or another version than asked for.
    """
    raw = next(
        (payload[k] for k in ("model", "model_state", "model_state_dict", "encoder_state_dict") if k in payload), None
    )
    settings: Any = next((payload[k] for k in ("args", "config", "arch") if k in payload), {})
    state = {k.removeprefix("_orig_mod."): v for k, v in raw.items()} if isinstance(raw, Mapping) else {}
    state = {k: v for k, v in state.items() if not k.startswith(_DROPPED)}
    if "s2_backbone.embedding.0.weight" not in state or not isinstance(settings, Mapping):
        raise CheckpointError(f"{path} is no TESSERA checkpoint: it holds {sorted(map(str, payload))[:8]}")
    family = _family(state)
    arch = _architecture(state, family, settings)
    plain = replace(arch, qk_norm=family == "v2-teacher")  # QK-norm comes in any size of v2 student
    if family == "v1.1":
        record = _v1_1_record(settings, path, name)
    else:
        record = {"v2-teacher": RECORDS["v2-teacher"], "v2": RECORDS["v2-nano"]}.get(family) or RECORDS[family]
        twins = (r for r in RECORDS.values() if (r.family, r.arch) == (family, plain) and r.name != "mini")
        record = next(twins, record)
    if plain != record.arch:
        record = _custom(record, arch, settings, sum(v.numel() for v in state.values()))
    if name is not None and (RECORDS[name].family, RECORDS[name].arch) != (family, plain):
        raise CheckpointError(f"{path} holds {record.name!r}, not {name!r} as asked for; name the model that it is")
    return replace(record, arch=arch), state


def _custom(record: ModelRecord, arch: Architecture, settings: Mapping[str, Any], n_parameters: int) -> ModelRecord:
    """Return the record of a checkpoint of a known generation with sizes of its own."""
    n_dims = arch.n_out if record.family == "v2-teacher" else min(128, arch.n_out)
    base = record.name if record.family == "v1.1" else record.family
    return replace(
        record,
        name=f"{base}-custom",
        arch=arch,
        n_parameters=n_parameters,
        n_dims=n_dims,
        matryoshka=_matryoshka(settings, n_dims),
        repo=None,
        filename=None,
        n_bytes=None,
        sha256=None,
    )


def _family(state: Mapping[str, Tensor]) -> str:
    if "fusion_modality_embed" in state:
        return "v2-teacher"
    if "s2_backbone.attn_pool.temporal_context.weight_ih_l0" in state:
        return "v1.0-early"
    if "s2_backbone.attn_pool.temporal_context.gru_cell.W_ir.weight" not in state:
        return "v2"
    return "v1.1" if "dim_reducer.4.weight" in state else "v1.0"


def _architecture(state: Mapping[str, Tensor], family: str, settings: Mapping[str, Any]) -> Architecture:
    first = "s2_backbone.transformer_encoder."
    d = state["s2_backbone.embedding.0.weight"].shape[0]
    layers = {m[1] for k in state if (m := re.match(re.escape(first) + r"(?:layers\.)?(\d+)\.", k))}
    prefix = first if f"{first}0.linear1.weight" in state else f"{first}layers."
    q_norm = state.get(f"{prefix}0.q_norm.weight")
    default = RECORDS["v2-nano" if family == "v2" else "v1.1-mpc" if family == "v1.1" else family].arch.n_heads
    n_heads = settings.get("nhead", settings.get("s2_num_heads", default)) if q_norm is None else d // len(q_norm)
    pooling: dict[str, Pooling] = {"v1.0-early": "torch_gru", "v1.0": "gru", "v1.1": "gru"}
    deep = "dim_reducer.4.weight" in state
    return Architecture(
        latent_dim=d // 4,
        n_layers=len(layers),
        n_heads=int(n_heads),
        feedforward=state[f"{prefix}0.linear1.weight"].shape[0] if f"{prefix}0.linear1.weight" in state else 0,
        n_out=state[f"dim_reducer.{4 if deep else 0}.weight"].shape[0],
        pooling=pooling.get(family, "attention"),
        deep_reducer=deep,
        final_norm=family.startswith("v2"),
        qk_norm=q_norm is not None,
    )


def _v1_1_record(settings: Mapping[str, Any], path: Path, name: str | None) -> ModelRecord:
    """Tell the two v1.1 checkpoints apart: by what the file says, by its name, then by what was asked for."""
    said = str(settings.get("data_source") or "").lower()
    if said not in ("mpc", "aws"):
        said = next((s for s in ("mpc", "aws") if s in path.stem.lower().replace("-", "_").split("_")), "")
    if name in ("v1.1-mpc", "v1.1-aws") and said and not name.endswith(said):
        raise CheckpointError(f"{path} holds 'v1.1-{said}', not {name!r} as asked for; name the model that it is")
    if not said and name not in ("v1.1-mpc", "v1.1-aws"):
        raise CheckpointError(
            f"{path} is TESSERA v1.1, but doesn't tell which: pass it as weights= of 'v1.1-mpc' "
            "(trained on Planetary Computer imagery) or 'v1.1-aws' (Earth Search)"
        )
    return RECORDS[f"v1.1-{said}" if said else str(name)]


def _matryoshka(settings: Mapping[str, Any], n_dims: int) -> tuple[int, ...]:
    dims = str(settings.get("matryoshka_dims") or "")
    return tuple(int(k) for k in dims.split(",") if k.strip().isdigit() and int(k) < n_dims)


def _build(record: ModelRecord, state: dict[str, Tensor], path: Path) -> TesseraEncoder | TesseraTeacher:
    with torch.device("meta"):  # no memory, no random initialisation: the weights are put in place
        network = (TesseraTeacher if record.family == "v2-teacher" else TesseraEncoder)(record.arch)
    try:
        network.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} doesn't fit {record.name!r}: {str(error)[:600]}") from error
    for backbone in (network.s2_backbone, network.s1_backbone):
        assert isinstance(backbone, Backbone)
        backbone.doy_table = doy_encoding(torch.arange(MAX_DOY + 1), record.arch.width)
    return network.eval().requires_grad_(requires_grad=False)


def _existing(path: PathLike) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise ModelUnavailableError(f"there is no file {found}; {_names()}, or give the path of a file of weights")
    return found


def _names() -> str:
    return f"the models are {', '.join(RECORDS)}"
