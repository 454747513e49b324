"""How near one's own embeddings come to the published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.published.releases import RELEASES
from tessera_xr.embedding.quantize import quantize
from tessera_xr.embedding.schema import EMBEDDINGS, OFFICIAL, SCALES, check_embeddings
from tessera_xr.errors import GridError, SchemaError, VersionMismatchError
from tessera_xr.grid import crs_name, geobox_of, with_grid

NAMES = {
    "cosine": "cosine similarity of own and published embedding",
    "codes_equal": "share of equal int8 codes",
    "codes_near": "share of int8 codes that differ by one at most",
    "scale_ratio": "own scale divided by published scale",
}
ALIKE, NEAR = 0.999, 0.98
"""Median cosine from which two sets are the same but for rounding, and from which they are the same model."""


def check_against(emb: xr.Dataset, published: xr.Dataset, *, check_model: bool = True) -> xr.Dataset:
    """Compare one's own embeddings with published ones, pixel by pixel, and say in a sentence what came out.

    The same model on the same imagery gives nearly equal codes. Other dates (another catalogue, another cloud mask)
    turn vectors a little; another model gives vectors that have nothing in common.

    Parameters
    ----------
    emb : Dataset
        Own embeddings, float32 or int8, on the pixels of the published ones; the parts that both cover are compared.
    published : Dataset
        Published embeddings of the same years, from `open_published`.
    check_model : bool, default True
        Refuse if `emb` is of a model that doesn't make what was published; False compares them all the same.

    Returns
    -------
    Dataset
        `cosine`, `codes_equal`, `codes_near`, `scale_ratio` ([time,] y, x) float32, in memory, NaN where either has no
        data. Attributes: `summary` in words, `compared_pixels`, `only_own_pixels`, `only_published_pixels`,
        `median_cosine`, `low_cosine` (of the worst hundredth), `mean_codes_equal`, `median_scale_ratio`.

    Raises
    ------
    VersionMismatchError
        If the models or the lengths differ.
    GridError
        If the grids have no whole pixels in common.
    SchemaError
        If either holds no embeddings, or they have no year in common.

    Examples
    --------
    >>> from tessera_xr import tutorial
    >>> published = tutorial.embeddings().isel(time=[0, 1])
    >>> check_against(published, published).attrs["summary"]
    '8,192 pixels of 2 years compared: the same embeddings (median cosine 1.0000, 100.0 % of the codes equal)'
    """
    for ds in (emb, published):
        check_embeddings(ds)
    if check_model:
        _check_models(emb, published)
    if emb.sizes["band"] != published.sizes["band"]:
        raise VersionMismatchError(
            f"own embeddings have {emb.sizes['band']} values, published ones {published.sizes['band']}; use the same "
            "dims="
        )
    own, theirs = _same_years(emb, published)
    own, theirs = _same_pixels(own, theirs)
    own, theirs = quantize(own), quantize(theirs)
    arrays = xr.apply_ufunc(
        _compare,
        own[EMBEDDINGS],
        own[SCALES],
        theirs[EMBEDDINGS],
        theirs[SCALES],
        input_core_dims=[["band"], [], ["band"], []],
        output_core_dims=[[]] * (len(NAMES) + 1),
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[np.float32] * len(NAMES) + [np.int8],
        join="override",
    )
    named = dict(zip((*NAMES, "found"), arrays, strict=True))
    out = xr.Dataset(named).drop_vars(["spatial_ref", "band"], errors="ignore").compute()
    found = out.pop("found") if hasattr(out, "pop") else out["found"]
    out = with_grid(out[list(NAMES)], geobox_of(theirs))
    for name, text in NAMES.items():
        out[name].attrs |= {"long_name": text}
    models = {
        "own_model": str(emb.attrs.get("model", "unknown")),
        "published_model": str(published.attrs.get("model", "unknown")),
    }
    return out.assign_attrs({**_summarise(out, found.values), **models, "source": published.attrs.get("source", "")})


def _check_models(emb: xr.Dataset, published: xr.Dataset) -> None:
    """Raise unless the own model is one that makes what was published."""
    from tessera_xr.encoder.registry import RECORDS  # here, since it brings torch, which reading doesn't need

    own, theirs = (str(ds.attrs.get("model", "unknown")) for ds in (emb, published))
    release = RELEASES.get(theirs)
    makers = release.made_by if release else ()
    known = {*RECORDS, *RELEASES, "unknown"}
    families = {ds.attrs.get("model_family", "unknown") for ds in (emb, published)}
    own_file = release is not None and own not in known and OFFICIAL not in emb.attrs and len(families) == 1
    if (own == theirs != "unknown") or own in makers or own_file:
        return
    hint = f", which {' or '.join(makers)} makes" if makers else ""
    raise VersionMismatchError(
        f"embeddings of {own!r} say nothing about those of {theirs!r}{hint}. Pass check_model=False to compare them "
        "all the same"
    )


def _same_years(emb: xr.Dataset, published: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return both at the years that they share, with or without `time` as `emb` has it."""
    years = [years_of(ds) for ds in (emb, published)]
    shared: list[int] | None = None
    if years[0] is None or years[1] is None:
        unknown = "own" if years[0] is None else "published"
        if any(ds.sizes.get("time", 1) != 1 for ds in (emb, published)):
            raise SchemaError(
                f"the {unknown} embeddings don't say which calendar years they are of; embed(..., period=[2024]) does"
            )
    else:
        shared = [y for y in years[0] if y in years[1]]
        if not shared:
            raise SchemaError(
                f"own embeddings are of {_listed(years[0])}, published ones of {_listed(years[1])}: no year in common"
            )
    timed = "time" in emb.dims
    return _at_years(emb, years[0], shared, timed), _at_years(published, years[1], shared, timed)


def _at_years(ds: xr.Dataset, own: list[int] | None, shared: list[int] | None, timed: bool) -> xr.Dataset:
    """Return embeddings at the shared years, with `time` or without."""
    if "time" in ds.dims:
        index = [0] if shared is None or own is None else [own.index(y) for y in shared]
        ds = ds.isel(time=index if timed else index[0])
    elif timed:
        ds = ds.drop_vars(["time", "time_end"], errors="ignore").expand_dims(time=1)
    ds = ds.drop_vars(["time", "time_end"], errors="ignore")
    return ds.assign_coords(time=np.array(shared, np.int64)) if timed and shared else ds


def _listed(years: list[int]) -> str:
    return ", ".join(map(str, years))


def years_of(ds: xr.Dataset) -> list[int] | None:
    """Return the calendar years of embeddings; None if they aren't known, or aren't such years."""
    from tessera_xr.sentinel.period import resolve_period

    if "time" in ds.coords:
        values = np.atleast_1d(ds["time"].values)
        if values.dtype.kind in "iu":
            return [int(v) for v in values]
        return None
    period = ds.attrs.get("period")
    if period is None:
        return None
    try:
        year = resolve_period(str(period)).year
    except SchemaError:
        return None
    return None if year is None else [year]


def _same_pixels(own: xr.Dataset, theirs: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the parts of both that lie on the same pixels."""
    from tessera_xr.embedding.published.grid import northern
    from tessera_xr.embedding.published.mosaic import whole_offset

    boxes: list[GeoBox] = [northern(geobox_of(ds)) for ds in (own, theirs)]
    offset = whole_offset(boxes[0], boxes[1])
    if offset is None:
        raise GridError(
            f"the grids differ: own {_grid(boxes[0])}, published {_grid(boxes[1])}. Make the cube on the published "
            "pixels (load_cube(..., like=published)), or open_published(emb, ...) if own pixels are the store's"
        )
    spans = [_overlap(o, n, m) for o, n, m in zip(offset, boxes[0].shape, boxes[1].shape, strict=True)]
    if any(s[0].start >= s[0].stop for s in spans):
        raise GridError(f"the areas don't meet: own {_grid(boxes[0])}, published {_grid(boxes[1])}")
    (own_y, their_y), (own_x, their_x) = spans
    theirs = theirs.isel(y=their_y, x=their_x)
    own = own.isel(y=own_y, x=own_x).assign_coords(y=theirs["y"], x=theirs["x"])
    return own, theirs


def _overlap(offset: int, n: int, m: int) -> tuple[slice, slice]:
    start, stop = max(offset, 0), min(offset + m, n)
    return slice(start, stop), slice(start - offset, stop - offset)


def _grid(box: GeoBox) -> str:
    left, top = box.transform.c, box.transform.f
    return (
        f"{box.shape[0]} x {box.shape[1]} px of {box.transform.a:g} m from ({left:g}, {top:g}) in {crs_name(box.crs)}"
    )


def _compare(
    own: npt.NDArray[np.int8],
    own_scale: npt.NDArray[np.float32],
    theirs: npt.NDArray[np.int8],
    their_scale: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[Any], ...]:
    """(..., band) and (...) to the measures (...), and which of both has data: 1 own, 2 published, 3 both."""
    a, b = own.astype(np.float32), theirs.astype(np.float32)
    has = [np.isfinite(own_scale), np.isfinite(their_scale)]
    both = has[0] & has[1]
    norm = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    apart = np.abs(own.astype(np.int16) - theirs)
    with np.errstate(invalid="ignore", divide="ignore"):
        measures = [(a * b).sum(axis=-1) / norm, (apart == 0).mean(axis=-1), (apart <= 1).mean(axis=-1)]
        measures.append(own_scale / their_scale)
    blank = [np.where(both, m, np.nan).astype(np.float32) for m in measures]
    return (*blank, (has[0] + 2 * has[1].astype(np.int8)).astype(np.int8))


def _summarise(out: xr.Dataset, found: npt.NDArray[np.int8]) -> dict[str, Any]:
    cosine = out["cosine"].values
    some = np.isfinite(cosine)
    counts = {
        f"{n}_pixels": int((found == v).sum()) for n, v in (("compared", 3), ("only_own", 1), ("only_published", 2))
    }
    if not some.any():
        return {"summary": "no pixel has data in both", **counts}
    facts = {
        "median_cosine": float(np.median(cosine[some])),
        "low_cosine": float(np.quantile(cosine[some], 0.01)),
        "mean_codes_equal": float(np.nanmean(out["codes_equal"].values)),
        "median_scale_ratio": float(np.nanmedian(out["scale_ratio"].values)),
    }
    n_years = out.sizes.get("time", 1)
    sentence = (
        f"{counts['compared_pixels']:,} pixels of {n_years} year{'s' if n_years > 1 else ''} compared: "
        f"{_verdict(facts['median_cosine'])} (median cosine {facts['median_cosine']:.4f}, "
        f"{facts['mean_codes_equal']:.1%} of the codes equal)"
    ).replace("%", " %")
    return {"summary": sentence, **counts, **facts}


def _verdict(cosine: float) -> str:
    if cosine >= ALIKE:
        return "the same embeddings"
    if cosine >= NEAR:
        return "the same model, on slightly other observations or arithmetic"
    if cosine >= 0.75:
        return "related, but other imagery: compare dates, orbits (radar or none), offset and cloud mask"
    return "not the same model, or wrong input: check bands, the BOA offset and the SAR scale"
