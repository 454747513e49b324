"""An encoder of one's own in one file: weights as safetensors, and all that belongs to them as its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tessera_xr._version import __version__
from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.network import TesseraEncoder
from tessera_xr.encoder.registry import ModelRecord, Statistics
from tessera_xr.errors import CheckpointError, ModelUnavailableError

PathLike: TypeAlias = "str | os.PathLike[str]"
KEY, FORMAT = "tessera_xr", 1


def save_encoder(
    path: PathLike,
    network: TesseraEncoder,
    statistics: Statistics,
    *,
    name: str = "custom",
    matryoshka: tuple[int, ...] = (),
    licence: str = "unknown",
    recipe: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Path:
    """Write an encoder to one file, which `read_encoder_file` reads.

    Parameters
    ----------
    path : str or path
        Ends in ".safetensors".
    network : TesseraEncoder
        Its weights keep the names of the released checkpoints.
    statistics : Statistics
        How its inputs are standardised.
    name : str
        What embeddings will say they are from.
    matryoshka : tuple of int
        Shorter lengths that work alone.
    licence : str
        Of the weights.
    recipe : mapping, optional
        How it was trained; plain values.
    half : bool, default False
        Store the weights in float16, half the size; they are computed with in float32 all the same.

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        If the path has another suffix, or a weight is not finite in float16 where `half` asks for it.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"an encoder is saved as .safetensors, not {path.name!r}")
    content = {
        "format": FORMAT,
        "name": name,
        "architecture": asdict(network.arch),
        "statistics": asdict(statistics),
        "policy": "v2" if network.arch.pooling == "attention" else "v1.0",
        "matryoshka": list(matryoshka),
        "licence": licence,
        "package": __version__,
        "recipe": dict(recipe or {}),
    }
    state = {k: _stored(k, v, half) for k, v in network.state_dict().items()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(state, metadata={KEY: json.dumps(content)}))
    temporary.replace(path)
    return path


def _stored(key: str, weight: Tensor, half: bool) -> Tensor:
    """Return a weight as it is written, refusing what float16 can't hold."""
    stored = weight.detach().cpu().to(torch.float16 if half else torch.float32).contiguous()
    if half and not stored.isfinite().all():
        raise CheckpointError(
            f"weight {key!r} reaches {weight.abs().max():g}, which is not finite in float16 (up to 65,504); "
            "save it with half=False"
        )
    return stored


def read_encoder_file(path: PathLike) -> tuple[ModelRecord, dict[str, Tensor]]:
    """Read a file that `save_encoder` wrote: what it is, and its weights in the precision they are stored in.

    Raises
    ------
    ModelUnavailableError
        If there is no such file.
    CheckpointError
        If it is damaged, or was not written by `save_encoder`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ModelUnavailableError(f"there is no file {path}; give the path of an encoder (.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(KEY, "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as safetensors ({error}); copy it again") from error
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} says nothing of statistics and sizes under {KEY!r}: weights alone can't be used; "
            "write encoders with save_encoder, or pass an authors' checkpoint (.pt)"
        )
    return _record(content, sum(v.numel() for v in state.values())), state


def read_statistics(stored: Mapping[str, Any]) -> Statistics:
    """Return the `Statistics` that JSON holds as lists."""
    ascending, descending = ((tuple(s[0]), tuple(s[1])) for s in (stored["s1_ascending"], stored["s1_descending"]))
    return Statistics(tuple(stored["s2_mean"]), tuple(stored["s2_std"]), ascending, descending)


def _record(content: Mapping[str, Any], n_parameters: int) -> ModelRecord:
    arch = Architecture(**content["architecture"])
    return ModelRecord(
        name=content["name"],
        family="v2" if arch.pooling == "attention" else "v1.0",
        arch=arch,
        statistics=read_statistics(content["statistics"]),
        policy=content["policy"],
        n_parameters=n_parameters,
        n_dims=arch.n_out,
        matryoshka=tuple(content["matryoshka"]),
        licence=content["licence"],
        official=False,
    )
