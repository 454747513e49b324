"""Facts about Sentinel-1 and Sentinel-2 as TESSERA knows them: band names, order, codes and dates."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Final

import numpy as np
import numpy.typing as npt

S2_BANDS: Final = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
"""The ten Sentinel-2 bands in TESSERA's order, which is not by wavelength."""

S1_BANDS: Final = ("VV", "VH")
"""The two Sentinel-1 polarisations, in order."""

ORBITS: Final = ("ascending", "descending")

S2_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "B02": ("blue",),
    "B03": ("green",),
    "B04": ("red",),
    "B05": ("rededge1", "rededge071"),
    "B06": ("rededge2", "rededge075"),
    "B07": ("rededge3", "rededge078"),
    "B08": ("nir", "nir_broad"),
    "B8A": ("nir08", "nir_narrow", "narrow_nir", "nirn"),
    "B11": ("swir16", "swir1"),
    "B12": ("swir22", "swir2"),
}
"""Names besides B04, B4, b04, that are read as each band. `swir_2` is none: in some collections it means B11."""

SCL: Final = "SCL"
CLEAR: Final = "clear"
SCL_NAMES: Final = ("scl", "scene_classification", "scene_classification_map", "scene_classification_layer")
CLEAR_NAMES: Final = ("s2_valid", "valid", "clear", "valid_mask", "clear_mask", "is_valid", "is_clear")
VAGUE_MASK_NAMES: Final = ("mask", "masks", "cloud_mask", "cloudmask", "cloud", "clouds", "qa", "dataMask")
"""Names of masks that do not say what True means; they are pointed at, never used unasked."""

SCL_INVALID: Final = (0, 1, 2, 3, 8, 9)
"""No data, saturated, dark, cloud shadow, cloud (medium), cloud (high)."""

TIME_NAMES: Final = ("time", "t", "timestamp", "date", "datetime", "s2_time", "s1_time")
BAND_DIMS: Final = ("band", "bands", "variable", "s2_band", "s1_band", "spectral")
ORBIT_NAMES: Final = (
    "orbit_state",
    "sat:orbit_state",
    "s1_orbit",
    "orbit_direction",
    "orbit",
    "orbitproperties_pass",
    "orbit_pass",
    "pass_direction",
    "pass",
)

_ALIAS_TO_BAND = {alias: band for band, aliases in S2_ALIASES.items() for alias in aliases}
_NAME_TO_MASK = dict.fromkeys(SCL_NAMES, SCL) | dict.fromkeys(CLEAR_NAMES, CLEAR)
_RESOLUTION = r"(?:_?\d{2}m)?"
_S2_NAME = re.compile(rf"(?:^|[^a-z0-9])b0?(8a|\d{{1,2}}){_RESOLUTION}$")
_S1_NAME = re.compile(r"(?:^|[^a-z0-9])(vv|vh)(?:[_-](db|linear|power|amplitude))?$")


def canonical_name(name: Hashable) -> str | None:
    """Return the band ("B04", "VV"), "SCL" or "clear" that a variable's name stands for; None if it is none of them.

    Examples
    --------
    >>> [canonical_name(name) for name in ("red", "b4", "B05_20m", "S1-SIGMA0-VH", "slope", "B01")]
    ['B04', 'B04', 'B05', 'VH', None, None]
    """
    text = str(name).strip().lower()
    plain = re.sub(rf"(?<=[a-z]){_RESOLUTION}$", "", text)
    if plain in _NAME_TO_MASK or text in _ALIAS_TO_BAND:
        return _NAME_TO_MASK.get(plain) or _ALIAS_TO_BAND[text]
    if match := _S1_NAME.search(text):
        return match[1].upper()
    if match := _S2_NAME.search(text):
        band = "B8A" if match[1] == "8a" else f"B{int(match[1]):02d}"
        return band if band in S2_BANDS else None
    return None


def unit_in_name(name: Hashable) -> str | None:
    """Return the unit that a Sentinel-1 variable's name states ("VV_db" -> "db"), else None."""
    match = _S1_NAME.search(str(name).strip().lower())
    return match[2] if match else None


def accepted_names(band: str) -> str:
    """Return the names read as `band`, as text for a message."""
    if band in S1_BANDS:
        return f"{band}, {band.lower()}"
    short = (band.replace("B0", "B"),) if band.startswith("B0") else ()
    return ", ".join((band, *short, *S2_ALIASES[band]))


def orbit_name(value: object) -> str | None:
    """Return "ascending" or "descending" for any usual spelling of it, else None."""
    text = str(value).strip().lower()
    return {"a": "ascending", "asc": "ascending", "d": "descending", "desc": "descending", "des": "descending"}.get(
        text, text if text in ORBITS else None
    )


def day_of_year(times: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the day of the year, 1 to 366, of each of the `times` (datetime64).

    Examples
    --------
    >>> day_of_year(np.array(["2024-01-01", "2024-12-31"], dtype="datetime64[ns]")).tolist()
    [1, 366]
    """
    days = np.asarray(times, dtype="datetime64[D]")
    since_new_year: npt.NDArray[np.int64] = (days - days.astype("datetime64[Y]").astype("datetime64[D]")).astype(
        np.int64
    )
    return since_new_year + 1
