"""What is to be done to imagery to make it a cube: every decision and every fault, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import assign_crs

from tessera_xr.errors import CubeError, GridError
from tessera_xr.grid import crs_of, geobox_of
from tessera_xr.sentinel.align import common_grid
from tessera_xr.sentinel.bands import CLEAR, S1_BANDS, S2_BANDS, SCL, accepted_names
from tessera_xr.sentinel.forms import as_dataset, collecting, find_bands, nodata_of, pick
from tessera_xr.sentinel.masks import check_codes, mask_dataset, vague_masks
from tessera_xr.sentinel.period import Period
from tessera_xr.sentinel.pieces import Inputs, Piece, Plan, Request
from tessera_xr.sentinel.radiometry import check_offset, find_source, reflectance_scale, resolve_offset, with_offset
from tessera_xr.sentinel.sar import find_orbits, sar_unit


def make_plan(request: Request) -> Plan:
    """Return how to make a cube of what was passed.

    Raises
    ------
    CubeError
        With every fault found, not only the first.
    """
    plan, faults = Plan(), list[str]()
    inputs = _read(request, faults)
    if not inputs and not faults:
        raise CubeError("nothing to read: pass s2= (a Dataset of Sentinel-2 bands), s1=, or both")
    _check_arguments(plan, request, inputs, faults)
    _check_bands(plan, inputs, faults)
    _find_sensors(plan, request, inputs, faults)
    _check_times(plan, request.periods, faults)
    _crop(plan, request.periods)
    if plan.optical:
        _decide_optical(plan, request, inputs, faults)
    for piece in plan.radar:
        _decide_radar(plan, piece, inputs[piece.name][1], request.s1_units, faults)
    _find_grid(plan, faults)
    if faults:
        raise CubeError(list(dict.fromkeys(faults)), heading="this can't be read as a Sentinel cube")
    return plan


def missing_sensor(sensor: str, where: str, periods: str) -> str:
    """Return the warning for a `sensor` that has dates, but none in these `periods`."""
    with_it = "radar" if sensor == "Sentinel-1" else "Sentinel-2"
    return (
        f"{where}: no {sensor} date falls into {periods}, though it has others; embeddings with and without {with_it} "
        "differ (by 0.13-0.25 in cosine distance for radar): don't compare them"
    )


def _read(request: Request, faults: list[str]) -> Inputs:
    s2 = request.s2
    many = isinstance(s2, Sequence) and not isinstance(s2, str)
    given = [(f"s2[{i}]", item, request.orbit) for i, item in enumerate(s2)] if many else [("s2", s2, request.orbit)]
    given += [
        ("s1", request.s1, request.orbit),
        ("s1_ascending", request.s1_ascending, "ascending"),
        ("s1_descending", request.s1_descending, "descending"),
    ]
    if request.s1 is not None and (request.s1_ascending is not None or request.s1_descending is not None):
        faults.append("s1= was given and s1_ascending= or s1_descending= too; give the one or the others")
    inputs: Inputs = {}
    for name, item, orbit in given:
        if item is not None:
            with collecting(faults):
                inputs[name] = (as_dataset(item, name), orbit)
    return inputs


def _check_arguments(plan: Plan, request: Request, inputs: Inputs, faults: list[str]) -> None:
    """Check what does not depend on the imagery; an `offset` or `source` at fault leaves the offset open."""
    before = len(faults)
    plan.attrs["source"] = "unknown"
    with collecting(faults):
        plan.attrs["source"] = find_source(request.source, [ds for ds, _ in inputs.values()])
    with collecting(faults):
        check_offset(request.offset)
    plan.offset_is_open = len(faults) > before
    if isinstance(request.mask, str) and request.mask != "auto":
        faults.append(
            f"mask={request.mask!r} is not known; give 'auto', None or a DataArray such as ds[{request.mask!r}]"
        )


def _find_sensors(plan: Plan, request: Request, inputs: Inputs, faults: list[str]) -> None:
    """Fill in the pieces of `plan`."""
    auto = isinstance(request.mask, str) and request.mask == "auto"
    optical_bands = (*S2_BANDS, SCL, CLEAR) if auto else S2_BANDS
    radar_apart = any(name.startswith("s1") for name in inputs)
    for name, (ds, _) in inputs.items():
        if name.startswith("s2"):
            _add_piece(plan.optical, ds, optical_bands, name, faults)
        if name.startswith("s1") or not radar_apart:
            _add_piece(plan.radar, ds, S1_BANDS, name, faults)
    if not any(set(piece.data) & set(S2_BANDS) for piece in plan.optical):
        plan.optical = []
    if plan.optical and request.mask is not None and not isinstance(request.mask, str):
        with collecting(faults):
            _add_mask(plan, request.mask, faults)
    if plan.optical and not plan.offset_is_open:
        with collecting(faults):
            plan.optical[0].data = with_offset(plan.optical[0].data, request.offset)
    _drop_foreign_steps(plan)


def _add_piece(pieces: list[Piece], ds: xr.Dataset, bands: Sequence[str], name: str, faults: list[str]) -> None:
    if (found := pick(ds, bands, name, faults)) is not None:
        pieces.append(Piece(found, name))


def _add_mask(plan: Plan, mask: Any, faults: list[str]) -> None:
    found = pick(mask_dataset(mask), (SCL, CLEAR), "mask", faults)
    if found is None:
        return
    crs = crs_of(plan.optical[0].data)
    if crs is not None and crs_of(found) is None:
        found = assign_crs(found, crs)
    plan.optical.append(Piece(found, "mask"))


def _check_bands(plan: Plan, inputs: Inputs, faults: list[str]) -> None:
    """Hold the names of the variables against the bands needed, whatever the variables hold."""
    here = {name: set(find_bands(ds, (*S2_BANDS, *S1_BANDS))) for name, (ds, _) in inputs.items()}
    optical, radar = ([name for name in here if name.startswith(sensor)] for sensor in ("s2", "s1"))
    held = set().union(*(here[name] for name in optical))
    radar = radar or [name for name in optical if here[name] & set(S1_BANDS)]
    if radar and optical and set(radar) <= set(optical) and not held & set(S2_BANDS):
        plan.warnings.append(
            "no Sentinel-2 band in s2; this makes a Sentinel-1-only cube. Pass it as s1= if that is meant"
        )
    elif optical:
        _require_bands("s2", S2_BANDS, held, inputs, faults)
    for name in radar:
        _require_bands(name, S1_BANDS, here[name], inputs, faults)


def _require_bands(name: str, bands: Sequence[str], held: set[str], inputs: Inputs, faults: list[str]) -> None:
    missing = [band for band in bands if band not in held]
    if missing:
        there = [str(v) for key, (ds, _) in inputs.items() if key.startswith(name) for v in ds.data_vars]
        names = "; ".join(f"{band} is read from {accepted_names(band)}" for band in missing[:3])
        faults.append(f"{name} lacks {', '.join(missing)}; it holds {', '.join(there[:20]) or 'no variables'}. {names}")


def _drop_foreign_steps(plan: Plan) -> None:
    """Where both sensors share one axis of time, drop the steps of the other one, as far as that costs nothing."""
    for radar in plan.radar:
        for optical in (piece for piece in plan.optical if piece.name == radar.name):
            if not np.array_equal(optical.data["time"], radar.data["time"]):
                continue
            for piece in (optical, radar):
                keep = _occupied(piece.data)
                if keep is None:
                    plan.assumptions.append(
                        f"{piece.name}: steps without data were kept, as the data are lazy and share one time axis"
                    )
                elif not keep.all():
                    piece.data = piece.data.isel(time=keep)


def _occupied(ds: xr.Dataset) -> npt.NDArray[np.bool_] | None:
    keep = np.zeros(ds.sizes["time"], dtype=bool)
    for name in set(ds) & {*S2_BANDS, *S1_BANDS}:
        if ds[name].chunks is not None:
            return None
        values = ds[name].values
        keep |= (np.isfinite(values) & (values != 0) & (values != nodata_of(ds[name]))).any(axis=(1, 2))
    return keep


def _check_times(plan: Plan, periods: tuple[Period, ...], faults: list[str]) -> None:
    """Hold the dates of the pieces against each other and against the periods."""
    faults += [
        f"{piece.name} and {plan.optical[0].name} do not have the same dates ({piece.data.sizes['time']} and "
        f"{plan.optical[0].data.sizes['time']}); keep the common ones first, with "
        "xarray.align(..., join='inner', exclude=['y', 'x'])"
        for piece in plan.optical[1:]
        if not np.array_equal(piece.data["time"], plan.optical[0].data["time"])
    ]
    spans = [_span(pieces) for pieces in (plan.optical, plan.radar) if pieces]
    if len(spans) == 2 and (spans[0][1] < spans[1][0] or spans[1][1] < spans[0][0]):
        texts = ["/".join(map(str, span)) for span in spans]
        faults.append(
            f"no overlap in time: Sentinel-2 covers {texts[0]}, Sentinel-1 {texts[1]}; pass imagery of the same year"
        )
    if periods and spans and not any(_within(p.data, periods).any() for p in (*plan.optical, *plan.radar)):
        covered = " and ".join("/".join(map(str, span)) for span in spans)
        faults.append(f"no date falls into the period {_names(periods)}; the imagery covers {covered}")


def _within(ds: xr.Dataset, periods: tuple[Period, ...]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = np.any([period.contains(ds["time"]) for period in periods], axis=0)
    return inside


def _names(periods: tuple[Period, ...]) -> str:
    return ", ".join(map(str, periods))


def _span(pieces: list[Piece]) -> tuple[Any, Any]:
    times = [piece.data["time"].values.astype("datetime64[D]") for piece in pieces]
    return min(t[0] for t in times), max(t[-1] for t in times)


def _crop(plan: Plan, periods: tuple[Period, ...]) -> None:
    if not periods:
        return
    for sensor, pieces in (("Sentinel-2", plan.optical), ("Sentinel-1", plan.radar)):
        for piece in list(pieces):
            keep = _within(piece.data, periods)
            piece.data = piece.data if keep.all() else piece.data.isel(time=keep)
            if not keep.any():
                pieces.remove(piece)
                plan.warnings.append(missing_sensor(sensor, piece.name, _names(periods)))


def _decide_optical(plan: Plan, request: Request, inputs: Inputs, faults: list[str]) -> None:
    if not plan.offset_is_open:
        with collecting(faults):
            plan.offset, plan.attrs["s2_offset"] = resolve_offset(plan.optical[0].data, plan.attrs["source"])
    notes = []
    for piece in plan.optical:
        if set(piece.data) & set(S2_BANDS):
            with collecting(faults):
                piece.scale, note = reflectance_scale(piece.data)
                notes.append(note)
    plan.attrs["s2_units"] = " and ".join(dict.fromkeys(notes))
    plan.mask = next((name for name in (SCL, CLEAR) if any(name in piece.data for piece in plan.optical)), None)
    given = [piece.data for piece in plan.optical if piece.name == "mask"]
    if given and plan.mask == SCL:
        with collecting(faults):
            check_codes(given[0][SCL])
    origin = "given by mask=" if given else "found"
    told = {SCL: "clear unless SCL is 0, 1, 2, 3, 8 or 9", CLEAR: "a mask, True = clear"}
    plan.attrs["s2_mask"] = f"{told[plan.mask]}, {origin}" if plan.mask else "none: all pixels believed clear"
    if plan.mask is None:
        _warn_of_clouds(plan, request, inputs)


def _warn_of_clouds(plan: Plan, request: Request, inputs: Inputs) -> None:
    vague = [name for ds, _ in inputs.values() for name in vague_masks(ds)]
    why = "mask=None" if request.mask is None else "no scene classification (SCL) nor mask was found"
    hint = f" ({', '.join(vague)} was not used: it doesn't say if True is clear or cloud)" if vague else ""
    plan.warnings.append(
        f"{why}{hint}, so every Sentinel-2 pixel with data is believed clear, "
        "clouds too; pass mask= (SCL codes, or bool with True = clear)"
    )
    plan.assumptions.append("every Sentinel-2 pixel with data is clear")


def _decide_radar(plan: Plan, piece: Piece, orbit: str | None, units: str, faults: list[str]) -> None:
    with collecting(faults):
        piece.unit, note = sar_unit(piece.data, units, piece.name)
        known = plan.attrs.get("s1_units")
        text = f"{piece.unit}, {note}"
        plan.attrs["s1_units"] = text if known in (None, text) else f"{known}; {text}"
    with collecting(faults):
        orbits = find_orbits(piece.data, orbit, piece.name)
        shared = any(other.name == piece.name for other in plan.optical)
        if shared and (orbits == "").any():  # steps of Sentinel-2, which have no orbit label
            piece.data, orbits = piece.data.isel(time=orbits != ""), orbits[orbits != ""]
        if (orbits == "").any():
            raise CubeError(
                f"{int((orbits == '').sum())} dates of {piece.name} have no orbit label; drop them or fill them in"
            )
        piece.orbits = orbits


def _find_grid(plan: Plan, faults: list[str]) -> None:
    boxes: dict[str, GeoBox] = {}
    for piece in (*plan.optical, *plan.radar):
        try:
            piece.box = geobox_of(piece.data)
            boxes[f"{piece.name} (S1)" if piece.name in boxes else piece.name] = piece.box
        except GridError as error:
            text = f"{piece.name}: {error}"
            faults += [text] if text not in faults else []
    if not boxes:
        return
    with collecting(faults):
        plan.grid = common_grid(boxes)
        plan.assumptions += [
            f"{name} ({_size(box)}) was cropped or repeated onto the common grid ({_size(plan.grid)})"
            for name, box in boxes.items()
            if box != plan.grid
        ]


def _size(box: GeoBox) -> str:
    return f"{box.shape[0]} x {box.shape[1]} px of {abs(box.transform.a):g}"
