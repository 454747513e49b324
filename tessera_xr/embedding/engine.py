"""Arrays of d-pixels to embeddings: no xarray here, no Dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tessera_xr.encoder import streaming
from tessera_xr.encoder.checkpoints import Encoder, PathLike, load_encoder
from tessera_xr.encoder.device import Precision
from tessera_xr.encoder.forward import count_workers, in_threads, is_fast, run_backbone, token_budget
from tessera_xr.encoder.network import MAX_DOY, S1_BANDS, S2_BANDS
from tessera_xr.encoder.registry import ModelRecord
from tessera_xr.encoder.tokens import Series, gather, step_statistics
from tessera_xr.errors import SchemaError

DataType: TypeAlias = Literal["float32", "int8"]
Budget: TypeAlias = "int | Literal['auto']"
_UNITS = {"s2": "reflectance x 10,000, offset removed", "s1": "(dB + 50) * 200"}
SLAB_STEPS = 1 << 19
"""Observations (pixels x steps of both sensors) that are prepared at once: tens of megabytes."""


@dataclass(frozen=True)
class Output:
    """Embeddings of n pixels."""

    values: npt.NDArray[Any]
    """(n, dims) float32, NaN without data; or int8 codes, 0 without data."""
    scales: npt.NDArray[np.float32] | None
    """(n,) what to multiply int8 codes by, NaN without data; None for float32."""


def embed_pixels(
    s2: npt.ArrayLike | None = None,
    s2_doy: npt.ArrayLike | None = None,
    s2_valid: npt.ArrayLike | None = None,
    s1: npt.ArrayLike | None = None,
    s1_doy: npt.ArrayLike | None = None,
    s1_orbit: npt.ArrayLike | str | None = None,
    *,
    model: PathLike = "mini",
    weights: PathLike | None = None,
    dims: int | None = None,
    dtype: DataType = "float32",
    device: str = "auto",
    precision: Precision = "auto",
    token_budget: Budget = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Embed d-pixels given as arrays: n pixels, t observations of a year, in TESSERA's units and band order.

    For Sentinel data as xarray, `embed` finds bands, units and dates by itself.

    Parameters
    ----------
    s2 : array_like, shape (n, t, 10), optional
        Reflectance x 10,000, offset removed; bands B04 B02 B03 B08 B8A B05 B06 B07 B11 B12.
    s2_doy : array_like of int, shape (t,) or (n, t)
        Day of year, 1 to 366.
    s2_valid : array_like of bool, shape (n, t), optional
        Which observations are clear; without it, those that are not zero in all bands.
    s1 : array_like, shape (n, t, 2), optional
        VV and VH in TESSERA's scale, (dB + 50) * 200; 0 is missing.
    s1_doy : array_like of int, shape (t,) or (n, t)
        Day of year, 1 to 366.
    s1_orbit : array_like of str, shape (t,), or str
        "ascending" or "descending", for each step or for all.
    model, weights, dims, dtype, device, precision, token_budget, seed, progress
        As in `embed`.

    Returns
    -------
    ndarray, shape (n, dims)
        float32, NaN where a pixel has no valid observation. With ``dtype="int8"`` a pair: codes (n, dims) and
        scales (n,), whose product is the embedding.

    Raises
    ------
    SchemaError
        If shapes, days or orbits don't fit.
    TesseraError
        As `embed`, of the model and the device.

    Examples
    --------
    >>> import numpy as np, tessera_xr as txr
    >>> rng = np.random.default_rng(0)
    >>> s2 = rng.integers(200, 4000, (5, 20, 10))
    >>> txr.embed_pixels(s2, np.arange(10, 210, 10), progress=False).shape
    (5, 128)
    """
    arrays = check_pixels(s2, s2_doy, s2_valid, s1, s1_doy, s1_orbit)
    encoder = load_encoder(model, weights, device=device, precision=precision)
    n_dims = resolve_dims(encoder.record, dims)
    check_options(dtype, token_budget, seed)
    out = encode(encoder, *arrays, dims=n_dims, dtype=dtype, budget=token_budget, seed=seed, progress=progress)
    return out.values if out.scales is None else (out.values, out.scales)


def encode(
    encoder: Encoder,
    s2: npt.NDArray[Any],
    s2_doy: npt.NDArray[Any],
    s2_valid: npt.NDArray[np.bool_],
    s1: npt.NDArray[Any],
    s1_doy: npt.NDArray[Any],
    s1_descending: npt.NDArray[np.bool_],
    *,
    dims: int,
    dtype: DataType = "float32",
    budget: Budget = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Output:
    """Embed checked arrays, as `embed_pixels` documents them; `s1_descending` is (t,) bool.

    Pixels are taken a slab at a time, so that memory stays bounded; the inputs may be views of any layout.
    """
    if streaming.can_stream(encoder):
        arrays = (s2, s2_doy, s2_valid, s1, s1_doy, s1_descending)
        return encode_streaming(encoder, *arrays, dims=dims, dtype=dtype, budget=budget, progress=progress)
    s1_valid = (s1 != 0).any(axis=2)
    pixels = np.flatnonzero(s2_valid.any(axis=1) | s1_valid.any(axis=1))
    values, scales = _no_data(len(s2), dims, dtype)
    size = max(SLAB_STEPS // max(s2.shape[1] + s1.shape[1], 1), 1)
    by_orbit = np.argsort(s1_descending, kind="stable")  # ascending first, each in order of time
    tokens = token_budget(encoder.record.arch, encoder.device) if budget == "auto" else budget
    s2_statistics, s1_statistics = step_statistics(encoder.record, s2.shape[1], s1_descending)
    with tqdm(total=len(pixels), unit="px", desc="embedding", delay=1, disable=not progress) as bar:
        for start in range(0, len(pixels), size):
            slab = pixels[start : start + size]
            optical = _series(s2, s2_doy, s2_valid, slab, s2_statistics)
            radar = _series(s1, s1_doy, s1_valid, slab, s1_statistics, by_orbit)
            vectors = _encode_slab(encoder, optical, radar, tokens, seed, _whole(bar.update, len(slab)))[:, :dims]
            if scales is None:
                values[slab] = vectors.cpu().numpy()
            else:
                codes, slab_scales = quantize_tensor(vectors)
                values[slab], scales[slab] = codes.cpu().numpy(), slab_scales.cpu().numpy()
    return Output(values, scales)


def encode_streaming(
    encoder: Encoder,
    s2: npt.NDArray[Any],
    s2_doy: npt.NDArray[Any],
    s2_valid: npt.NDArray[np.bool_],
    s1: npt.NDArray[Any],
    s1_doy: npt.NDArray[Any],
    s1_descending: npt.NDArray[np.bool_],
    *,
    dims: int,
    dtype: DataType = "float32",
    budget: Budget = "auto",
    progress: bool = False,
) -> Output:
    """Do what `encode` does where all but the copying is left to a GPU; any device will do."""
    values, scales = _no_data(len(s2), dims, dtype)
    tokens = streaming.token_budget(encoder) if budget == "auto" else budget
    by_orbit = np.argsort(s1_descending, kind="stable")
    s2_statistics, s1_statistics = step_statistics(encoder.record, s2.shape[1], s1_descending)
    sources = [
        streaming.Source(s2, s2_doy, s2_valid, *s2_statistics),
        streaming.Source(s1, s1_doy, None, *s1_statistics, by_orbit),
    ]

    def finish(vectors: Tensor, empty: Tensor) -> tuple[Tensor, ...]:
        if scales is None:
            return (vectors[:, :dims].masked_fill(empty[:, None], torch.nan),)
        codes, factors = quantize_tensor(vectors[:, :dims])
        return codes.masked_fill_(empty[:, None], 0), factors.masked_fill_(empty, torch.nan)

    with tqdm(total=len(s2), unit="px", desc="embedding", delay=1, disable=not progress) as bar:

        def receive(pixels: slice, results: list[npt.NDArray[Any]]) -> None:
            for whole, part in zip((values, scales), results, strict=False):
                assert whole is not None
                whole[pixels] = part
            bar.update(pixels.stop - pixels.start)

        streaming.stream(encoder, sources, tokens, finish, receive)
    return Output(values, scales)


def _whole(advance: Callable[[int], object], n: int) -> Callable[[float], None]:
    """Return a function that takes fractions of n pixels done, and tells `advance` of whole ones."""
    done = [0.0, 0]

    def add(pixels: float) -> None:
        done[0] += pixels
        now = min(round(done[0]), n)
        advance(now - int(done[1]))
        done[1] = now

    return add


def _encode_slab(
    encoder: Encoder, s2: Series, s1: Series, budget: int, seed: int, advance: Callable[[float], object]
) -> Tensor:
    """Encode one slab of pixels, (P,) series of each sensor to (P, n_out)."""
    if not is_fast(encoder.network.s2_backbone, encoder.precision):
        return _encode_part(encoder, s2, s1, budget, seed, advance)
    lengths = [series.valid.sum(axis=1) for series in (s1, s2)]
    order = np.lexsort(lengths)  # equal lengths side by side
    parts = np.split(order, _cuts(np.maximum(sum(lengths)[order], 1), budget))
    out = torch.empty(len(s2), encoder.record.arch.n_out)

    def work(part: npt.NDArray[np.intp]) -> int:
        out[torch.from_numpy(part)] = _encode_part(encoder, s2.take(part), s1.take(part), budget, seed, lambda _: None)
        return len(part)

    for n in in_threads(work, parts):
        advance(n)
    return out


def _cuts(lengths: npt.NDArray[np.intp], budget: int) -> npt.NDArray[np.intp]:
    """Return where to cut pixels of these lengths into equal parts of about `budget`, as many for every core."""
    ends, n_cores = np.cumsum(lengths), count_workers()
    n_parts = -(-int(ends[-1]) // (budget * n_cores)) * n_cores
    cuts = np.unique(np.searchsorted(ends, np.arange(1, n_parts) * (ends[-1] / n_parts)))
    return cuts[(cuts > 0) & (cuts < len(lengths))]


def _encode_part(
    encoder: Encoder, s2: Series, s1: Series, budget: int, seed: int, advance: Callable[[float], object]
) -> Tensor:
    network, policy = encoder.network, encoder.record.policy
    gathered = [gather(series, policy, seed) for series in (s2, s1)]
    share = len(s2) / max(sum(len(tokens.x) for tokens, _ in gathered), 1)  # pixels that a token stands for
    pooled = []
    for backbone, (tokens, pixels) in zip((network.s2_backbone, network.s1_backbone), gathered, strict=True):
        rows = run_backbone(backbone, tokens, budget, lambda n: advance(n * share), encoder.precision)
        pooled.append(torch.empty_like(rows).index_copy_(0, torch.from_numpy(pixels).to(rows.device), rows))
    mixed = torch.autocast(encoder.device.type, encoder.precision, enabled=encoder.precision != torch.float32)
    with torch.inference_mode(), mixed:
        return network.fuse(*pooled)


def quantize_tensor(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes and float32 scales of vectors (n, dims), on their device; see `quantize`."""
    scales = vectors.abs().amax(dim=1) / 127
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (vectors / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def resolve_dims(record: ModelRecord, dims: int | None) -> int:
    """Return the length of the embedding: the model's own, or one of its shorter ones if it is a Matryoshka model.

    Raises
    ------
    SchemaError
        If the model can't be cut to that length.
    """
    allowed = (*record.matryoshka, record.n_dims)
    if dims is None or dims in allowed:
        return dims or record.n_dims
    why = f"its lengths are {allowed}" if record.matryoshka else "it is not a Matryoshka model and must not be cut"
    raise SchemaError(f"model {record.name!r} has no embedding of {dims} values: {why}")


def check_options(dtype: object, budget: object, seed: object) -> None:
    """Raise `SchemaError` unless all are among the allowed values."""
    if dtype not in ("float32", "int8"):
        raise SchemaError(f"dtype {dtype!r} is not to be had; choose 'float32' or 'int8'")
    if budget != "auto" and (not _is_whole(budget) or int(budget) < 1):  # type: ignore[call-overload]
        raise SchemaError(f"token_budget must be 'auto' or a whole number of at least 1, not {budget!r}")
    if not _is_whole(seed):
        raise SchemaError(f"seed must be a whole number, not {seed!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _no_data(n: int, dims: int, dtype: DataType) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    if dtype == "int8":
        return np.zeros((n, dims), dtype=np.int8), np.full(n, np.nan, dtype=np.float32)
    return np.full((n, dims), np.nan, dtype=np.float32), None


def _series(
    values: npt.NDArray[Any],
    doy: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    pixels: npt.NDArray[np.intp],
    statistics: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    order: npt.NDArray[np.intp] | None = None,
) -> Series:
    """Return the series of some pixels, contiguous, steps in the given order; `statistics` (mean, std) of all steps."""
    steps = np.arange(values.shape[1]) if order is None else order
    mean, std = (rows[steps] for rows in statistics)
    values, valid = (a[pixels] if order is None else a[pixels][:, order] for a in (values, valid))
    doy = doy[steps] if doy.ndim == 1 else doy[pixels][:, steps]
    return Series(np.ascontiguousarray(values), doy, np.ascontiguousarray(valid), mean, std)


def check_pixels(
    s2: npt.ArrayLike | None,
    s2_doy: npt.ArrayLike | None,
    s2_valid: npt.ArrayLike | None,
    s1: npt.ArrayLike | None,
    s1_doy: npt.ArrayLike | None,
    s1_orbit: npt.ArrayLike | str | None,
) -> tuple[npt.NDArray[Any], ...]:
    """Return (s2, s2_doy, s2_valid, s1, s1_doy, s1_descending), a missing sensor with no steps."""
    if s2 is None and s1 is None:
        raise SchemaError("give s2, s1 or both")
    n = len(np.asarray(s2 if s2 is not None else s1))
    optical, optical_doy = _check_sensor("s2", s2, s2_doy, S2_BANDS, n)
    radar, radar_doy = _check_sensor("s1", s1, s1_doy, S1_BANDS, n)
    valid = (optical != 0).any(axis=2) if s2_valid is None else np.asarray(s2_valid, dtype=bool)
    if valid.shape != optical.shape[:2]:
        raise SchemaError(f"s2_valid must have shape (n, t) = {optical.shape[:2]}, not {valid.shape}")
    orbit = np.asarray(np.asarray(s1_orbit if s1_orbit is not None else "", dtype=object), dtype=str)
    if orbit.shape not in ((), radar.shape[1:2]):
        raise SchemaError(f"s1_orbit must have shape (t,), here {radar.shape[1:2]}, or be one word, not {orbit.shape}")
    orbit = np.broadcast_to(orbit, radar.shape[1])
    unknown = sorted(set(orbit.tolist()) - {"ascending", "descending"})
    if unknown:
        raise SchemaError(f"s1_orbit must be 'ascending' or 'descending' for each step of s1, not {unknown}")
    return optical, optical_doy, valid, radar, radar_doy, orbit == "descending"


def _check_sensor(
    name: str, values: npt.ArrayLike | None, doy: npt.ArrayLike | None, n_bands: int, n: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    if values is None:
        return np.zeros((n, 0, n_bands), dtype=np.int16), np.zeros(0, dtype=np.intp)
    array = np.asarray(values)
    if array.ndim != 3 or array.shape[0] != n or array.shape[2] != n_bands:
        raise SchemaError(f"{name} must have shape (n, t, {n_bands}), here ({n}, t, {n_bands}), not {array.shape}")
    whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool((array == np.rint(array)).all()))
    if not whole or (array.size and array.min() < 0):
        raise SchemaError(
            f"{name} must hold whole numbers of at least 0 in TESSERA's units, 0 for missing: {_UNITS[name]}; "
            "as_cube converts other units"
        )
    array = array if array.dtype.kind in "iu" else array.astype(np.int32)
    days = np.asarray(doy if doy is not None else [])
    if days.shape not in (array.shape[1:2], array.shape[:2]):
        raise SchemaError(f"{name}_doy must have shape (t,) or (n, t), here {array.shape[:2]}, not {days.shape}")
    if days.size and (days.dtype.kind not in "iu" or days.min() < 1 or days.max() > MAX_DOY):
        raise SchemaError(f"{name}_doy must hold days of the year, whole numbers from 1 to {MAX_DOY}")
    return array, days.astype(np.intp)
