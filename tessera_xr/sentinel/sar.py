"""Sentinel-1 numbers: which unit they are in, which way the satellite flew, and TESSERA's int16 scale out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from tessera_xr.errors import CubeError
from tessera_xr.sentinel.bands import ORBIT_NAMES, S1_BANDS, orbit_name
from tessera_xr.sentinel.forms import nodata_of, sample_values

UNITS = ("db", "power", "amplitude", "tessera")

TYPICAL = {"VV": (-10.0, 3.5), "VH": (-17.0, 4.0), "VH-VV": (-7.0, 2.0)}
"""Mean and spread, in dB, of median C-band backscatter over land."""
MARGIN = 6.0
"""By how much (a difference of chi-squares) one reading must be likelier than the other to be believed."""
IMPLAUSIBLE = 30.0
DB_RANGE = (-80.0, 40.0)
"""No backscatter lies outside, in dB; what does (-9999, -32768) is missing."""
DB_MEDIANS = (-45.0, 5.0)
"""No median over a scene lies outside, in dB: calm water to cities."""

_TO_DB: dict[str, Callable[[Any], Any]] = {
    "db": lambda v: v,
    "power": lambda v: 10 * np.log10(v),
    "amplitude": lambda v: 20 * np.log10(v),
    "tessera": lambda v: v / 200 - 50,
    "numbers": lambda v: 20 * np.log10(v) - 83,
}
_EMPTY = ("", "nan", "none", "nat", "<na>")
_NO_UNIT = f"pass s1_units={', '.join(map(repr, UNITS))}: whichever it is"


def sar_unit(ds: xr.Dataset, unit: str, argument: str) -> tuple[str, str]:
    """Return the unit of VV and VH in `ds` (one of `UNITS`), and how that is known.

    Raises
    ------
    CubeError
        If neither attributes nor values tell; a guess would be a silent mistake.
    """
    if unit != "auto":
        name = {"linear": "power"}.get(unit.strip().lower(), unit.strip().lower())
        if name not in UNITS:
            raise CubeError(f"s1_units={unit!r} is not known; the units are 'auto', {', '.join(map(repr, UNITS))}")
        return name, "given by s1_units="
    bands = [ds[name] for name in S1_BANDS if name in ds]
    stated = {_stated_unit(band) for band in bands} - {None}
    if len(stated) > 1:
        raise CubeError(f"the bands of {argument} state different units: {sorted(map(str, stated))}; {_NO_UNIT}")
    if stated:
        return str(stated.pop()), "from attributes"
    samples = {str(band.name): sample_values(band) for band in bands}
    if not any(values.size for values in samples.values()):
        raise CubeError(f"the units of {argument} can't be told: a sample holds no data; {_NO_UNIT}")
    integer = all(band.dtype.kind in "ui" for band in bands)
    return _seen_unit(samples, integer, argument), "inferred from values"


def to_sar(ds: xr.Dataset, unit: str) -> Iterator[xr.DataArray]:
    """Yield VV and VH (time, y, x) in TESSERA's scale, int16 = (dB + 50) * 200 from 0 to 32767, 0 = missing.

    Missing are no data, power and amplitude that are not above 0, dB outside `DB_RANGE`, and dB that is exactly 0 in
    both bands, which is a fill: on its own 0 dB is a bright pixel.
    """
    arrays = [ds[name].drop_vars(list(ds[name].coords)) for name in S1_BANDS]
    void: Any = (arrays[0] == 0) & (arrays[1] == 0) if unit == "db" else False
    for array in arrays:
        out: xr.DataArray = xr.apply_ufunc(
            _to_sar,
            array,
            void,
            kwargs={"unit": unit, "nodata": nodata_of(array)},
            dask="parallelized",
            output_dtypes=[np.int16],
        )
        yield out


def find_orbits(ds: xr.Dataset, orbit: str | None, argument: str) -> npt.NDArray[np.str_]:
    """Return "ascending" or "descending" for each date of `ds`; "" where the metadata have an empty label.

    Raises
    ------
    CubeError
        If nothing says which it is.
    """
    n = ds.sizes["time"]
    if orbit is not None:
        name = orbit_name(orbit)
        if name is None:
            raise CubeError(f"orbit={orbit!r} is not known; it is 'ascending' or 'descending'")
        return np.full(n, name)
    stated, strange = _stated_orbits(ds), list[str]()
    for values in stated.values():
        texts = np.broadcast_to(values, (n,)).tolist()
        labels = np.array([orbit_name(text) or "" for text in texts])
        odd = {str(t) for t, label in zip(texts, labels, strict=True) if not label and str(t).lower() not in _EMPTY}
        if not odd and (labels != "").any():
            return labels
        strange += sorted(odd)
        if (labels != "").any():
            break  # some are orbits and some are not: a fault, where numbers of orbits would only be no help
    found = f" ({', '.join(stated)} hold {strange[:3]})" if stated else ""
    raise CubeError(
        f"{argument} does not say which passes are ascending{found}; pass orbit='ascending' if all are, "
        "or s1_ascending= and s1_descending= instead of s1=, or give it a coordinate 'orbit_state' along time"
    )


def _stated_orbits(ds: xr.Dataset) -> dict[str, Any]:
    """Return what coordinates, then attributes, of any name in use for it say about the orbit."""
    stated = {str(name): c.values for name, c in ds.coords.items() if c.dims in ((), ("time",))}
    for attrs in (ds.attrs, *(band.attrs for band in ds.data_vars.values())):
        stated |= {str(name): value for name, value in attrs.items() if str(name) not in stated}
    return {name: stated[name] for name in stated if name.lower() in ORBIT_NAMES}


def _to_sar(values: Any, void: Any, *, unit: str, nodata: float | None) -> npt.NDArray[np.int16]:
    missing = np.broadcast_to(void, values.shape) if nodata is None else void | (values == nodata)
    if unit == "tessera":
        scaled = np.where(missing | ~np.isfinite(values), 0, values)
    else:
        values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        plausible = (values >= DB_RANGE[0]) & (values <= DB_RANGE[1]) if unit == "db" else values > 0
        values = np.where(plausible, values, np.nan)
        decibel = np.where(missing, np.nan, _TO_DB[unit](values))
        scaled = np.nan_to_num((decibel + 50) * 200, nan=0, posinf=0, neginf=0)
    return np.clip(scaled, 0, 32767).astype(np.int16)


def _stated_unit(band: xr.DataArray) -> str | None:
    text = str(band.attrs.get("units", "")).strip().lower()
    if text in ("db", "decibel", "decibels") or text.endswith((" db", "(db)", "_db")):
        return "db"
    for word, unit in (("tessera", "tessera"), ("amplitude", "amplitude"), ("power", "power"), ("linear", "power")):
        if word in text:
            return unit
    return None


def _seen_unit(samples: dict[str, npt.NDArray[np.float64]], integer: bool, argument: str) -> str:
    samples = {name: _without_fills(values) for name, values in samples.items()}
    values = np.concatenate(list(samples.values()))
    if not values.size:
        raise CubeError(f"the units of {argument} can't be told: a sample holds nothing but fills; {_NO_UNIT}")
    medians = {name: float(np.median(values)) for name, values in samples.items() if values.size}
    if np.mean(values < 0) > 0.5:  # power less its noise may be below 0 too, but not for the most part
        if values.min() >= DB_RANGE[0] and all(DB_MEDIANS[0] <= m <= DB_MEDIANS[1] for m in medians.values()):
            return "db"
        raise CubeError(_cannot_tell(argument, medians, f"least {values.min():.4g}, which is no dB", "dB x 100?"))
    if integer or np.median(values) > 500:
        return _seen_integers(samples, argument)
    power, amplitude = (_misfit(samples, _TO_DB[name]) for name in ("power", "amplitude"))
    if min(power, amplitude) > IMPLAUSIBLE or abs(power - amplitude) < MARGIN:
        raise CubeError(_cannot_tell(argument, medians, "power or amplitude?"))
    return "power" if power < amplitude else "amplitude"


def _without_fills(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return `values` without one that stands for no data, such as -9999; many values so low are no fill."""
    low = values < DB_RANGE[0]
    return values[~low] if len(np.unique(values[low])) <= 2 else values


def _cannot_tell(argument: str, medians: dict[str, float], *doubts: str) -> str:
    told = [f"median {name} {median:.4g}" for name, median in medians.items()]
    return f"the units of {argument} can't be told ({', '.join((*told, *doubts[:-1]))}: {doubts[-1]}); {_NO_UNIT}"


def _seen_integers(samples: dict[str, npt.NDArray[np.float64]], argument: str) -> str:
    tessera, numbers = (_misfit(samples, _TO_DB[name]) for name in ("tessera", "numbers"))
    if numbers < MARGIN and tessera - numbers > MARGIN:
        raise CubeError(
            f"{argument} holds numbers that look like digital numbers (dB = 20*log10(DN) - 83), not TESSERA's scale; "
            "convert them to dB, then pass s1_units='db' (or s1_units='tessera' if they are that after all)"
        )
    return "tessera"


def _misfit(samples: dict[str, npt.NDArray[np.float64]], to_db: Callable[[Any], Any]) -> float:
    """Return how far the medians lie from what C-band sees over land, as a chi-square."""
    medians = {
        name: float(np.median(to_db(values[values > 0]))) for name, values in samples.items() if (values > 0).any()
    }
    if len(medians) == 2:
        medians["VH-VV"] = medians["VH"] - medians["VV"]
    return sum(((value - TYPICAL[name][0]) / TYPICAL[name][1]) ** 2 for name, value in medians.items())
