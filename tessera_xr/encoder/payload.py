"""What a file of weights holds: read without running anything in it, and its version recognised."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from tessera_xr.encoder.architecture import Architecture, Pooling
from tessera_xr.encoder.registry import RECORDS, ModelRecord
from tessera_xr.errors import CheckpointError

_DROPPED = ("projector.", "segmented_matryoshka_projector.")


def read_payload(path: Path) -> Mapping[str, Any]:
    """Read a file of PyTorch weights; a foreign or damaged one raises `CheckpointError`."""
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
        twins = (r for r in RECORDS.values() if (r.family, r.arch) == (family, plain) and r.official)
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
