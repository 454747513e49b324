"""Scenes to a lazy cube: one read for all layers of a day, then TESSERA's units, in as few tasks as that takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from tessera_xr._warn import warn
from tessera_xr.area import resolve_area
from tessera_xr.sentinel.bands import S1_BANDS, S2_BANDS, SCL
from tessera_xr.sentinel.build import assemble, empty_optical, empty_radar
from tessera_xr.sentinel.catalogues import S2_LAYERS
from tessera_xr.sentinel.masks import clear_from
from tessera_xr.sentinel.mosaic import mosaic_days
from tessera_xr.sentinel.pieces import Plan, Request
from tessera_xr.sentinel.plan import make_plan
from tessera_xr.sentinel.radiometry import to_reflectance
from tessera_xr.sentinel.reading import SceneDriver, SceneMetadata
from tessera_xr.sentinel.sar import to_sar
from tessera_xr.sentinel.scenes import Scene, came_with_offset, stamps

SLACK: Final = 0.01
"""Degrees by which footprints are believed to be too small; they are simplified."""
UNITS: Final = {"power": "linear power", "db": "dB", "amplitude": "amplitude"}
"""Unit of a catalogue -> what `sar.sar_unit` reads."""

Steps = list[list[Scene]]


def optical_steps(scenes: Sequence[Scene]) -> Steps:
    """Return the scenes of each day together, if they agree about the offset; in order of time."""
    steps: dict[Any, list[Scene]] = {}
    for scene in scenes:
        key = (scene.time.astype("datetime64[D]"), came_with_offset(scene), scene.offset_applied is True)
        steps.setdefault(key, []).append(scene)
    return list(steps.values())


def radar_steps(scenes: Sequence[Scene]) -> Steps:
    """Return the scenes of each day and orbit together, in order of time."""
    steps: dict[Any, list[Scene]] = {}
    for scene in scenes:
        steps.setdefault((scene.time.astype("datetime64[D]"), scene.orbit), []).append(scene)
    return list(steps.values())


def optical_pixels(
    steps: Steps, rule: str, grid: GeoBox, sides: Mapping[str, int], driver: SceneDriver
) -> xr.DataArray:
    """Return Sentinel-2 as it is read: (time, band, y, x) uint16, bands and SCL, with what tells the offset."""
    pixels = _pixels(steps, grid, S2_LAYERS, "uint16", 0, sides, driver, "join_optical")
    pixels.attrs = {"units": "1e-4 reflectance"}
    return pixels.assign_coords(stamps([step[0] for step in steps], rule).coords)


def radar_pixels(steps: Steps, unit: str, grid: GeoBox, sides: Mapping[str, int], driver: SceneDriver) -> xr.DataArray:
    """Return Sentinel-1 as it is read: (time, band, y, x) float32, VV and VH, with the orbit along time."""
    join = "join_decibels" if unit == "db" else "join_power"
    pixels = _pixels(steps, grid, S1_BANDS, "float32", float("nan"), sides, driver, join)
    pixels.attrs = {"units": UNITS[unit]}
    times = np.array([step[0].time for step in steps], "datetime64[ns]")
    return pixels.assign_coords(time=times, orbit_state=("time", [step[0].orbit for step in steps]))


def cube_from(s2: xr.DataArray | None, s1: xr.DataArray | None, grid: GeoBox, source: str, offset: Any) -> xr.Dataset:
    """Return what `as_cube(s2, s1, source=source, offset=offset)` gives, of a graph a tenth the size.

    Every decision is `as_cube`'s own; only the arithmetic is done for all bands at once.
    """
    plan = make_plan(Request(s2, s1, source=source, offset=offset))
    for text in plan.warnings:
        warn(text)
    optical = empty_optical(grid) if s2 is None else _optical(s2, plan)
    radar = empty_radar(grid) if s1 is None else _radar(s1, plan)
    return assemble(*optical, *radar, grid, plan.attrs | {"assumptions": "; ".join(plan.assumptions)})


def join_optical(dst: npt.NDArray[np.uint16], src: npt.NDArray[np.uint16]) -> None:
    """Put a scene (band, y, x) into the day that it is of, where it is the first clear one, or the first of all.

    For odc-stac. It is the rule of `mosaic_days`.
    """
    better = _rank(src) > _rank(dst)
    np.copyto(dst, src, where=better)


def join_power(dst: npt.NDArray[np.float32], src: npt.NDArray[np.float32]) -> None:
    """Put a scene (band, y, x) into its day and orbit, where it is the first with data in any band: power above 0."""
    np.copyto(dst, src, where=(src > 0).any(axis=0) & ~(dst > 0).any(axis=0))


def join_decibels(dst: npt.NDArray[np.float32], src: npt.NDArray[np.float32]) -> None:
    """Do as `join_power` for backscatter in dB, where any number is data."""
    np.copyto(dst, src, where=np.isfinite(src).any(axis=0) & ~np.isfinite(dst).any(axis=0))


def _rank(scene: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Return (y, x): 0 without data, 1 with, 2 where it is clear too."""
    seen = (scene[:-1] != 0).any(axis=0)
    clear: npt.NDArray[np.bool_] = clear_from(xr.DataArray(scene[-1], dims=("y", "x"), name=SCL)).values
    rank: npt.NDArray[np.uint8] = np.add(seen, seen & clear, dtype=np.uint8)
    return rank


def _optical(pixels: xr.DataArray, plan: Plan) -> tuple[xr.DataArray, xr.DataArray]:
    assert plan.offset is not None
    bands = pixels.isel(band=slice(len(S2_BANDS)), drop=True)
    s2 = to_reflectance(bands, 1.0, plan.offset).transpose("time", "band", "y", "x")
    clear = clear_from(pixels.isel(band=-1, drop=True).rename(SCL))
    rank = xr.apply_ufunc(
        _seen_and_clear, s2, clear, input_core_dims=[["band"], []], dask="parallelized", output_dtypes=[np.uint8]
    )
    times = {"s2_time": pixels["time"].values}
    s2, rank = (array.rename({"time": "s2_time"}).assign_coords(times) for array in (s2, rank))
    s2, rank = mosaic_days(s2.rename(band="s2_band"), rank, "s2_time")
    return s2, rank == 2


def _seen_and_clear(s2: npt.NDArray[np.uint16], clear: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    seen = (s2 != 0).any(axis=-1)
    rank: npt.NDArray[np.uint8] = np.add(seen, seen & clear, dtype=np.uint8)
    return rank


def _radar(pixels: xr.DataArray, plan: Plan) -> tuple[xr.DataArray, npt.NDArray[np.str_]]:
    (piece,) = plan.radar
    assert piece.orbits is not None
    bands = xr.Dataset({name: pixels.isel(band=i, drop=True) for i, name in enumerate(S1_BANDS)})
    joined = xr.concat(list(to_sar(bands, piece.unit)), dim="s1_band").transpose("time", "s1_band", "y", "x")
    s1 = joined.chunk({"s1_band": -1}).rename({"time": "s1_time"})
    return s1.assign_coords(s1_time=pixels["time"].values), piece.orbits


def _pixels(
    steps: Steps,
    grid: GeoBox,
    layers: Sequence[str],
    dtype: str,
    fill: float,
    sides: Mapping[str, int],
    driver: SceneDriver,
    join: str,
) -> xr.DataArray:
    """Return the steps as one lazy array (time, band, y, x), through odc-stac."""
    from odc.stac import load

    flat = [(number, scene) for number, step in enumerate(steps) for scene in step]
    items = [_item(f"{i:06}", number, scene, grid) for i, (number, scene) in enumerate(flat)]
    sources = {item.id: scene.hrefs for item, (_, scene) in zip(items, flat, strict=True)}
    driver.md_parser = SceneMetadata(layers, dtype, fill, sources)
    chunks: dict[str, Any] = {"time": 1, **sides}
    loaded = load(
        items,
        ["scene"],
        geobox=grid,
        groupby="step",
        preserve_original_order=True,
        chunks=chunks,
        driver=driver,
        fuse_func=f"{__name__}.{join}",
    )
    pixels = loaded["scene"].rename(None)
    return pixels.rename({old: new for old, new in zip(pixels.dims[-2:], ("y", "x"), strict=True) if old != new})


def _item(name: str, step: int, scene: Scene, grid: GeoBox) -> Any:
    """Return a plain item for odc-stac: what it needs to lay out the blocks, nothing of what the catalogue wrote."""
    import pystac
    from shapely.geometry import mapping

    place = resolve_area(grid) if scene.footprint is None else scene.footprint.buffer(SLACK, join_style="mitre")
    when = pd.Timestamp(scene.time).to_pydatetime(warn=False)
    properties = {"scene": scene.id, "step": step}
    item = pystac.Item(name, mapping(place), list(place.bounds), when, properties, collection="scenes")
    # the address names the tasks; what is read is in the metadata
    stamp = hashlib.sha256("\n".join(scene.hrefs).encode()).hexdigest()
    item.add_asset("scene", pystac.Asset(f"https://scene.invalid/{stamp}"))
    return item
