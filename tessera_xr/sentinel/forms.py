"""The forms that imagery comes in, read into one: a Dataset (time, y, x) with a variable per band."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.xr import assign_crs

from tessera_xr.errors import CubeError, GridError
from tessera_xr.grid import crs_of, spatial_dims
from tessera_xr.sentinel.bands import BAND_DIMS, S1_BANDS, TIME_NAMES, canonical_name, unit_in_name

DIMS = ("time", "y", "x")


@contextmanager
def collecting(faults: list[str]) -> Iterator[None]:
    """Add the faults of a `CubeError` or `GridError` to `faults`, so that the next check still runs."""
    try:
        yield
    except CubeError as error:
        faults.extend(fault for fault in error.faults if fault not in faults)
    except GridError as error:
        faults.append(str(error))


def as_dataset(obj: object, argument: str) -> xr.Dataset:
    """Return `obj` as a Dataset with a variable per band, undoing a band dimension if there is one."""
    if _is_embeddings(obj):
        raise CubeError(
            f"{argument} holds embeddings already, no imagery; use them as they are, for example .tessera.rgb(), "
            "or pass the imagery that they were made from"
        )
    if isinstance(obj, xr.DataArray):
        if obj.name is None and _band_dim(obj) is None:
            raise CubeError(
                f"{argument} is a DataArray with neither a name nor a band dimension; name it, for example 'VV'"
            )
        obj = obj.to_dataset(name=obj.name if _band_dim(obj) is None else "all bands").assign_attrs(obj.attrs)
    if not isinstance(obj, xr.Dataset):
        raise CubeError(f"{argument} is a {type(obj).__name__}; an xarray Dataset or DataArray is needed")
    mapping = {v.attrs.get("grid_mapping", v.encoding.get("grid_mapping")) for v in obj.data_vars.values()}
    aside = [n for n, v in obj.data_vars.items() if n in mapping or (v.ndim <= 1 and canonical_name(n) is None)]
    obj = obj.set_coords(aside)
    if not any(_band_dim(v) for v in obj.data_vars.values()):
        return obj
    return _split_bands(obj, argument)


def find_bands(ds: xr.Dataset, wanted: Collection[str]) -> dict[str, list[Hashable]]:
    """Return the bands of `wanted` that `ds` has, each with the variables that stand for it (one, or it is a fault)."""
    found: dict[str, list[Hashable]] = {}
    for name in ds.data_vars:
        band = canonical_name(name)
        if band is not None and band in wanted:
            found.setdefault(band, []).append(name)
    return found


def pick(ds: xr.Dataset, wanted: Collection[str], argument: str, faults: list[str]) -> xr.Dataset | None:
    """Return the variables of `ds` that stand for the bands `wanted`, under those names, as (time, y, x).

    None if there is no such variable, or if it can't be brought into this form. The result has y descending and x
    ascending, a CRS where one was found, and keeps the coordinates along time. Faults are added to `faults`; where
    other checks can go on in spite of one (a band twice, dates out of order) the result is a stand-in for them.
    """
    found = find_bands(ds, wanted)
    faults += [
        f"{band} is in {argument} {len(names)} times, as {names}; drop all but one"
        for band, names in found.items()
        if len(names) > 1
    ]
    if not found:
        return None
    names = {names[0]: band for band, names in found.items()}
    picked = ds[list(names)].copy(deep=False)
    for name, band in names.items():
        if band in S1_BANDS and (unit := unit_in_name(name)):
            picked[name].attrs["units"] = unit
    out = None
    with collecting(faults):
        crs = crs_of(ds)
        picked = picked.rename({old: new for old, new in names.items() if old != new})
        picked = _normalise(_numbers_only(picked, argument, faults), argument, faults)
        out = picked if crs is None else assign_crs(picked, crs)
    return out  # noqa: RET504 - `collecting` may have ended the block early


def nodata_of(band: xr.DataArray) -> float | None:
    """Return the value that marks no data by the attributes of `band`; None if none is stated or it is NaN."""
    for key in ("_FillValue", "nodata", "missing_value"):
        value = band.attrs.get(key)
        if isinstance(value, (int, float, np.number)) and not np.isnan(value):
            return float(value)
    return None


def sample_values(band: xr.DataArray) -> npt.NDArray[np.float64]:
    """Return a small sample of the values in `band` (time, y, x), without no data and zeros.

    Of chunked data only small windows of at most eight dates are read, so that nothing large is ever computed.
    """
    dates = np.unique(np.linspace(0, band.sizes["time"] - 1, 8).astype(int))
    nodata = nodata_of(band)
    for window in _windows(band):
        values: npt.NDArray[np.float64] = band.isel({"time": dates, **window}).values.astype(np.float64).ravel()
        values = values[np.isfinite(values) & (values != 0) & (values != nodata)]
        if values.size:
            return values
    return np.empty(0)


def _windows(band: xr.DataArray) -> Iterator[dict[str, slice]]:
    sizes = {dim: band.sizes[dim] for dim in ("y", "x")}
    if band.chunks is None:
        yield {dim: slice(None, None, max(1, size // 64)) for dim, size in sizes.items()}
        return
    for fy, fx in ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25)):
        start = {"y": int(fy * sizes["y"]), "x": int(fx * sizes["x"])}
        yield {dim: slice(max(0, at - 8), at + 8) for dim, at in start.items()}


def _band_dim(array: xr.DataArray) -> Hashable | None:
    return next((dim for dim in array.dims if str(dim).lower() in BAND_DIMS), None)


def _split_bands(ds: xr.Dataset, argument: str) -> xr.Dataset:
    arrays: dict[Hashable, xr.DataArray] = {}
    for name, array in ds.data_vars.items():
        dim = _band_dim(array)
        if dim is None:
            parts: dict[Hashable, xr.DataArray] = {name: array}
        elif dim not in array.coords:
            raise CubeError(
                f"dimension {dim!r} of {argument} has no names; assign_coords({dim}=['B04', ...]) in its order"
            )
        else:
            parts = {str(label): array.isel({dim: i}, drop=True) for i, label in enumerate(array[dim].values)}
        if both := sorted(str(label) for label in parts if label in arrays):
            raise CubeError(f"{argument} holds {', '.join(both)} in two variables; drop one of them")
        arrays.update(parts)
    return xr.Dataset(arrays, attrs=ds.attrs)


def _is_embeddings(obj: object) -> bool:
    array = obj.get("embeddings") if isinstance(obj, xr.Dataset) else obj
    return isinstance(array, xr.DataArray) and array.name == "embeddings" and "band" in array.dims


def _numbers_only(ds: xr.Dataset, argument: str, faults: list[str]) -> xr.Dataset:
    """Return `ds` with zeros in place of what are no numbers, each of which is a fault."""
    wrong = {name: array for name, array in ds.data_vars.items() if array.dtype.kind not in "uifb"}
    faults += [
        f"{name} of {argument} has dtype {array.dtype}; numbers are needed; convert them with .astype(...)"
        for name, array in wrong.items()
    ]
    return ds.assign({name: xr.zeros_like(array, dtype=np.uint16) for name, array in wrong.items()})


def _normalise(ds: xr.Dataset, argument: str, faults: list[str]) -> xr.Dataset:
    """Rename, order and check the dimensions of `ds`: (time, y, x), dates that never decrease, north up."""
    try:
        y, x = spatial_dims(ds)
    except GridError as error:
        raise CubeError(f"{argument}: {error}") from error
    ds = _with_time_dim(ds, {y, x}, argument)
    names = {y: "y", x: "x"}
    clash = [new for old, new in names.items() if old != new and new in ds.coords]
    ds = ds.drop_vars(clash).rename({old: new for old, new in names.items() if old != new})
    keep = [name for name, c in ds.coords.items() if set(c.dims) <= {"time"} or name in ("y", "x")]
    keep = [name for name in keep if not {"crs_wkt", "spatial_ref"} & set(ds[name].attrs)]
    ds = ds.drop_vars([name for name in ds.coords if name not in keep]).transpose(*DIMS)
    ds = _with_checked_times(ds, argument, faults)
    flips = {dim: slice(None, None, -1) for dim, up in (("y", True), ("x", False)) if _is_ascending(ds, dim) is up}
    return ds.isel(flips)


def _with_time_dim(ds: xr.Dataset, spatial: set[Hashable], argument: str) -> xr.Dataset:
    """Return `ds` with its one dimension besides the spatial ones called time."""
    ds = ds.squeeze(
        [d for d, n in ds.sizes.items() if d not in spatial and n == 1 and not _looks_like_time(ds, d)], drop=True
    )
    other = [dim for dim in ds.dims if dim not in spatial]
    times = [dim for dim in other if _looks_like_time(ds, dim)]
    if not other and (name := next((n for n in ds.coords if _looks_like_time(ds, n)), None)) is not None:
        ds, times = ds.expand_dims(name), [name]
    elif len(times) != 1 or len(other) != 1:
        raise CubeError(
            f"{argument} has the dimensions {[str(d) for d in ds.dims]}; one of time is needed, besides y and x only "
            f"(read as time: {', '.join(TIME_NAMES[:5])}, or any of datetime64). Rename it, or select along the others"
        )
    dim = times[0]
    if dim not in ds.coords:
        raise CubeError(
            f"dimension {dim!r} of {argument} has no dates; assign_coords({dim}=...) with datetime64 values"
        )
    static = [str(name) for name, array in ds.data_vars.items() if dim not in array.dims]
    if static:
        raise CubeError(f"{', '.join(static)} of {argument} lack the dimension {dim!r} that the other bands have")
    if dim == "time":
        return ds
    return ds.drop_vars("time" if "time" in ds.coords else []).rename({dim: "time"})


def _looks_like_time(ds: xr.Dataset, name: Hashable) -> bool:
    return str(name).lower() in TIME_NAMES or (name in ds.coords and ds[name].dtype.kind == "M")


def _is_ascending(ds: xr.Dataset, dim: str) -> bool | None:
    values = ds[dim].values if dim in ds.coords else np.empty(0)
    return bool(values[0] < values[-1]) if len(values) > 1 else None


def _with_checked_times(ds: xr.Dataset, argument: str, faults: list[str]) -> xr.Dataset:
    """Return `ds` with dates that never decrease; without them, checks that need dates can't go on."""
    times = ds["time"].values
    if times.dtype.kind != "M":
        raise CubeError(
            f"the dates of {argument} have dtype {times.dtype}, not datetime64; convert them with pandas.to_datetime, "
            "or ds.convert_calendar('standard', use_cftime=False) if they are cftime"
        )
    if len(times) == 0:
        raise CubeError(f"{argument} has no dates at all")
    missing = np.isnat(times)
    if missing.any():
        fault = f"{int(missing.sum())} dates of {argument} are missing (NaT); drop or fill these steps"
        if missing.all():
            raise CubeError(fault)
        faults.append(fault)
        ds, times = ds.isel(time=~missing), times[~missing]
    if (np.diff(times) < np.timedelta64(0)).any():
        faults.append(f"the dates of {argument} are not in order; sort them with ds.sortby('time')")
        order = np.argsort(times, kind="stable")
        ds, times = ds.isel(time=order), times[order]
    return ds.assign_coords(time=times.astype("datetime64[ns]"))
