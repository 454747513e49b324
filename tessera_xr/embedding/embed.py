"""A cube to embeddings: the xarray and Dask shell around the engine."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.embedding.engine import Budget, DataType, check_options, encode, resolve_dims
from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, OFFICIAL, SCALES, build_embeddings
from tessera_xr.encoder.checkpoints import (
    Encoder,
    ModelSource,
    PathLike,
    load_encoder,
    refuse_other_imagery,
    resolve_model,
)
from tessera_xr.encoder.device import Precision, resolve_device, resolve_precision
from tessera_xr.errors import VersionMismatchError
from tessera_xr.sentinel.bands import day_of_year
from tessera_xr.sentinel.cube import as_cube, as_cube_for, check_cube, is_cube, require_span, select_period
from tessera_xr.sentinel.period import Period, PeriodLike, resolve_periods


def embed(
    cube: xr.Dataset,
    model: PathLike = "mini",
    *,
    period: PeriodLike | Sequence[PeriodLike] | None = None,
    weights: PathLike | None = None,
    dims: int | None = None,
    dtype: DataType = "float32",
    device: str = "auto",
    precision: Precision = "auto",
    token_budget: Budget = "auto",
    seed: int = 0,
    check_imagery: bool = True,
    progress: bool = True,
) -> xr.Dataset:
    """Embed every pixel of a Sentinel cube: a year of observations to 128 numbers.

    Which observations enter, in which units and how standardised is the model's own and follows TESSERA's released
    code. The result doesn't depend on chunks, batches or threads (beyond rounding).

    Parameters
    ----------
    cube : Dataset
        A cube, or anything that `as_cube` reads without being told more. Dask arrays stay lazy.
    model : str or path, default "mini"
        A name (see `models`), or a file of weights, whose version is recognised.
    period : int, (start, end), or a list of them, optional
        The year or the dates, both included, that one embedding stands for, at most 366 days. A list gives a `time`
        dimension. Not needed if the cube is no longer than that.
    weights : str or path, optional
        The file of the named model, where it is shared as a file.
    dims : int, optional
        A shorter length of a Matryoshka model: 16, 32 or 64.
    dtype : {"float32", "int8"}
        "int8" gives codes and `scales`, a quarter of the memory; see `quantize`.
    device : str, default "auto"
        "auto", "cpu", "cuda", "cuda:1", "mps", "xpu".
    precision : {"auto", "float32", "bfloat16"}
        Of the matrix products; "auto" is bfloat16 on GPUs that have it, float32 elsewhere.
    token_budget : int or "auto"
        Observations that go through the network at once, which bounds memory. Halved if memory runs out.
    seed : int, default 0
        For v1.0, which draws 40 observations at random.
    check_imagery : bool, default True
        Refuse to run a v1.1 model on imagery from the other source.
    progress : bool, default True
        Show a bar if it takes longer than a second (not with Dask, which has its own).

    Returns
    -------
    Dataset
        `embeddings` ([time,] band, y, x), `scales` ([time,] y, x) with int8, and `s2_obs_count`, `s1_asc_obs_count`,
        `s1_desc_obs_count` ([time,] y, x) uint16. A pixel without any observation is NaN (int8: 0, scale NaN).

    Raises
    ------
    CubeError
        If `cube` can't be read as one, or the period holds no date.
    ModelUnavailableError, CheckpointError
        If the weights aren't to be had, or aren't right.
    VersionMismatchError
        If the model goes with another source of imagery.
    DeviceError
        If the device or precision isn't to be had.
    SchemaError
        If an option is out of range.
    """
    periods = resolve_periods(period)
    source = resolve_model(model, weights)
    check_options(dtype, token_budget, seed)
    resolve_precision(precision, resolve_device(device))
    spans = periods if isinstance(periods, list) else [periods]
    cube = _read_cube(cube, [span for span in spans if span is not None])
    for span in spans:
        require_span(cube, span)
    parts = [cube if span is None else select_period(cube, span) for span in spans]
    lazy = any(cube[name].chunks for name in ("s2", "s2_valid", "s1"))
    encoder = _load(source, device=None if lazy else device, precision=precision)
    if check_imagery:
        refuse_other_imagery(encoder.record, cube.attrs.get("source"))
    settings = {
        "dims": resolve_dims(encoder.record, dims),
        "dtype": dtype,
        "budget": token_budget,
        "seed": seed,
        "progress": progress and not lazy,
    }
    task = {"source": source, "sha256": encoder.sha256, "device": device, "precision": precision}
    results = [_embed_period(part, task if lazy else encoder, settings) for part in parts]
    attrs = _attributes(encoder, cube, parts, periods)
    if not isinstance(periods, list):
        return build_embeddings(results[0], cube, attrs)
    time = _time(periods)  # concat takes its values only, not the coordinates beside
    stacked = {name: xr.concat([r[name] for r in results], time).assign_coords(time.coords) for name in results[0]}
    return build_embeddings(stacked, cube, attrs)


def _read_cube(imagery: xr.Dataset, spans: list[Period]) -> xr.Dataset:
    """Return a checked cube; whatever else it is becomes one, only the dates that are asked for."""
    if is_cube(imagery):
        check_cube(imagery)
        return imagery
    return as_cube_for(imagery, spans) if spans else as_cube(imagery)


def _load(source: ModelSource, device: str | None, precision: Precision) -> Encoder:
    """Load the model here; for lazy work only to know it, so in the plainest way."""
    if device is None:
        return load_encoder(source, device="cpu", precision="float32")
    return load_encoder(source, device=device, precision=precision)


def _embed_period(
    cube: xr.Dataset, encoder: Encoder | dict[str, Any], settings: dict[str, Any]
) -> dict[str, xr.DataArray]:
    """Embed one period: variables (y, x[, band]), lazy if the cube is; `encoder` is then what to load on a worker."""
    cube = cube[["s2", "s2_valid", "s1"]]
    if not isinstance(encoder, Encoder):
        cube = cube.chunk(dict.fromkeys(("s2_time", "s2_band", "s1_time", "s1_band"), -1)).unify_chunks()
    days = {
        "s2_doy": day_of_year(cube["s2_time"].values),
        "s1_doy": day_of_year(cube["s1_time"].values),
        "s1_descending": cube["s1_orbit"].values == "descending",
    }
    names = [EMBEDDINGS, *([SCALES] if settings["dtype"] == "int8" else []), *COUNTS]
    options = {"days": days, "encoder": encoder, "settings": settings}
    if not isinstance(encoder, Encoder):
        return _embed_lazily(cube, names, options)
    outputs = xr.apply_ufunc(
        _embed_block,
        cube["s2"],
        cube["s2_valid"],
        cube["s1"],
        input_core_dims=[["s2_time", "s2_band"], ["s2_time"], ["s1_time", "s1_band"]],
        output_core_dims=[["band"]] + [[]] * (len(names) - 1),
        kwargs=options,
    )
    return dict(zip(names, outputs, strict=True))


def _embed_lazily(cube: xr.Dataset, names: list[str], options: dict[str, Any]) -> dict[str, xr.DataArray]:
    """Return what `_embed_block` makes, lazily, in as few tasks as can be: one a block, and one to take each result.

    `apply_ufunc` would do, but writes out three times as many, which at 100,000 blocks is what a client breaks on.
    """
    import dask.array as da

    inputs = [cube[name].transpose(..., "y", "x") for name in ("s2", "s2_valid", "s1")]
    indices = ["tbyx", "tyx", "ucyx"]  # dates and bands of either sensor: one chunk along each
    pairs = [part for pair in zip((a.data for a in inputs), indices, strict=True) for part in pair]
    blocks = da.blockwise(
        _embed_moved, "yx", *pairs, **options, concatenate=True, dtype=object, meta=np.empty((0, 0), dtype=object)
    )
    settings, found = options["settings"], {}
    for i, name in enumerate(names):
        dtype = {EMBEDDINGS: settings["dtype"], SCALES: np.float32}.get(name, np.uint16)
        dims, axes = (("band", "y", "x"), {"z": settings["dims"]}) if name == EMBEDDINGS else (("y", "x"), {})
        index = "zyx" if axes else "yx"
        meta = np.empty((0,) * len(dims), dtype=dtype)
        array = da.blockwise(itemgetter(i), index, blocks, "yx", new_axes=axes, dtype=meta.dtype, meta=meta)
        found[name] = xr.DataArray(array, dims=dims, coords={d: cube[d] for d in ("y", "x") if d in cube.coords})
    return found


def _embed_moved(*arrays: npt.NDArray[Any], **options: Any) -> tuple[npt.NDArray[Any], ...]:
    """Embed a block whose y and x come last, (t, band, y, x): (dims, y, x), the values of a pixel side by side."""
    values, *maps = _embed_block(*(np.moveaxis(a, (-2, -1), (0, 1)) for a in arrays), **options)
    return (np.moveaxis(values, -1, 0), *maps)


def _embed_block(
    s2: npt.NDArray[np.uint16],
    s2_valid: npt.NDArray[np.bool_],
    s1: npt.NDArray[np.int16],
    *,
    days: dict[str, Any],
    encoder: Encoder | dict[str, Any],
    settings: dict[str, Any],
) -> tuple[npt.NDArray[Any], ...]:
    """Embed a block in memory: (y, x, t, band) to (y, x, dims), then scales and counts (y, x)."""
    shape = s2.shape[:2]
    flat = [array.reshape(shape[0] * shape[1], *array.shape[2:]) for array in (s2, s2_valid, s1)]
    if not isinstance(encoder, Encoder):
        encoder = _load_on_worker(**encoder)
    out = encode(encoder, flat[0], days["s2_doy"], flat[1], flat[2], days["s1_doy"], days["s1_descending"], **settings)
    seen = (flat[2] != 0).any(axis=2)
    descending = days["s1_descending"]
    counts = [flat[1].sum(axis=1), seen[:, ~descending].sum(axis=1), seen[:, descending].sum(axis=1)]
    maps = [*([] if out.scales is None else [out.scales]), *(c.astype(np.uint16) for c in counts)]
    return (out.values.reshape(*shape, -1), *(m.reshape(shape) for m in maps))


def _load_on_worker(source: ModelSource, sha256: str, device: str, precision: Precision) -> Encoder:
    """Load the model where the block is computed; a graph carries its name and hash, never its weights."""
    encoder = load_encoder(source, device=device, precision=precision)
    if encoder.sha256 != sha256:
        raise VersionMismatchError(
            f"the weights of {encoder.record.name!r} on this worker ({encoder.sha256[:12]}) are not those on the "
            f"client ({sha256[:12]}); put the same file on both"
        )
    return encoder


def _time(periods: list[Period]) -> xr.DataArray:
    """Return the time coordinate: years where all periods are, else their first days, with their last beside."""
    years = [p.year for p in periods]
    if None not in years:
        return xr.DataArray(np.array(years, dtype=np.int64), dims="time", name="time")
    starts, ends = (
        np.array(days, dtype="datetime64[ns]") for days in zip(*[(p.start, p.end) for p in periods], strict=True)
    )
    return xr.DataArray(starts, dims="time", name="time", coords={"time": starts, "time_end": ("time", ends)})


def _attributes(
    encoder: Encoder, cube: xr.Dataset, parts: list[xr.Dataset], periods: list[Period] | Period | None
) -> dict[str, Any]:
    record, span = encoder.record, {"period": str(periods)}
    if isinstance(periods, list):  # a coordinate then, which selecting a time keeps true
        span = {}
    elif periods is None:
        times = np.concatenate([parts[0]["s2_time"].values, parts[0]["s1_time"].values]).astype("datetime64[D]")
        span = {"period": f"{times.min()}/{times.max()}"}
    return {
        "model": record.name,
        "model_family": record.family,
        **({} if record.official else {OFFICIAL: "no: trained with tessera_xr, not by TESSERA's authors"}),
        "weights_sha256": encoder.sha256,
        "weights_licence": record.licence,
        **span,
        "source": str(cube.attrs.get("source", "unknown")),
    }
