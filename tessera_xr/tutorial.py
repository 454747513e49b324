"""Sample data that need no network."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from tessera_xr.embedding.schema import COUNTS, EMBEDDINGS, SCALES, build_embeddings
from tessera_xr.grid import points_to_pixels, with_grid
from tessera_xr.sentinel.simulate import simulate_landscape

LOSS_LAYERS = {
    "lossyear": {"long_name": "year of forest loss, 21 = 2021; 0 = none", "valid_range": [0, 25]},
    "treecover2000": {"long_name": "tree canopy cover in 2000", "units": "percent", "valid_range": [0, 100]},
    "datamask": {
        "long_name": "mapped or not",
        "flag_values": [0, 1, 2],
        "flag_meanings": "no_data mapped_land permanent_water",
    },
}


def cube(size: int = 96, year: int = 2024, seed: int = 1) -> xr.Dataset:
    """Return a simulated Sentinel cube with its truth, in memory.

    Made anew at each call, in a second or two; the same arguments give the same cube, bit for bit.

    Parameters
    ----------
    size : int
        Pixels a side, of 10 m; at least 16.
    year : int
        Calendar year, from 2016 on.
    seed : int
        Another seed is another landscape.

    Returns
    -------
    xarray.Dataset
        See `tessera_xr.sentinel.simulate.simulate_landscape`: `land_cover`, `parcel` and `change` are its labels.
    """
    return simulate_landscape((size, size), year, seed=seed)


def embeddings() -> xr.Dataset:
    """Return real published embeddings: a place in California that burnt in 2021 (the Caldor fire), 2017 to 2025.

    They come with the package; `tessera_xr/data/caldor/README.md` tells their origin.

    Returns
    -------
    xarray.Dataset
        `embeddings` (time 9, band 128, y 64, x 64) int8, `scales` (time, y, x) float32 and the counts of observations,
        on 10 m pixels in EPSG:32610; `time` holds years.

    References
    ----------
    TESSERA v1.1 (arXiv:2506.20380), computed and published by dClimate; CC0.
    """
    stored = _read("caldor_64.npz")
    box = _caldor_grid(stored)
    pixel = ("time", "y", "x")
    variables = {name: xr.DataArray(stored[name], dims=pixel) for name in (SCALES, *COUNTS)}
    variables[EMBEDDINGS] = xr.DataArray(stored[EMBEDDINGS], dims=(*pixel, "band"))
    dated = {name: array.assign_coords(time=stored["years"]) for name, array in variables.items()}
    attrs: dict[str, Any] = {
        "title": "TESSERA v1.1 embeddings of a part of the Caldor fire, California, 2017 to 2025",
        "model": "v1.1-dclimate",
        "model_family": "v1.1",
        "weights_licence": "CC0-1.0",
        "source": f"published by dClimate, Icechunk store, group {stored['zone']}, snapshot {stored['snapshot_id']}",
        "licence": "CC0-1.0",
        "attribution": "TESSERA v1.1 (arXiv:2506.20380), dClimate; contains modified Copernicus Sentinel data",
    }
    return build_embeddings(dated, with_grid(xr.Dataset(), box), attrs)


def labels() -> xr.Dataset:
    """Return forest loss on the grid of `embeddings`: Global Forest Change for the same place.

    Each pixel has the value of the Hansen pixel, of about 28 m by 22 m, that holds its centre.

    Returns
    -------
    xarray.Dataset
        `lossyear` (y, x) uint8: 0 = no loss, 21 = lost in 2021; `treecover2000` (y, x) uint8, percent; `datamask`
        (y, x) uint8, 1 = mapped land.

    References
    ----------
    Hansen/UMD/Google/USGS/NASA, Global Forest Change v1.13, CC BY 4.0; Hansen et al. (2013), Science 342, 850-853.
    """
    stored = _read("caldor_64_hansen.npz")
    box = _caldor_grid(_read("caldor_64.npz"))
    res, shape = float(stored["res"]), stored["lossyear"].shape
    hansen = GeoBox(shape, Affine(res, 0, float(stored["west"]), 0, -res, float(stored["north"])), "EPSG:4326")
    out = with_grid(xr.Dataset(), box)
    x, y = np.meshgrid(out["x"].values, out["y"].values)
    rows, columns = points_to_pixels(hansen, x.ravel(), y.ravel(), box.crs).T
    for name, attrs in LOSS_LAYERS.items():
        out[name] = (("y", "x"), stored[name][rows, columns].reshape(x.shape), attrs)
    source = {
        "title": "Global Forest Change around a part of the Caldor fire, California",
        "source": f"Global Forest Change, {stored['version']}, tile {stored['tile']}, nearest neighbour",
        "attribution": "Hansen/UMD/Google/USGS/NASA",
        "licence": "CC-BY-4.0",
        "references": "Hansen et al. (2013), Science 342, 850-853, https://doi.org/10.1126/science.1244693",
    }
    return with_grid(out, box).assign_attrs(source)


def _read(name: str) -> dict[str, npt.NDArray[Any]]:
    with (files("tessera_xr") / "data" / "caldor" / name).open("rb") as file, np.load(file) as stored:
        return {key: stored[key] for key in stored.files}


def _caldor_grid(stored: dict[str, npt.NDArray[Any]]) -> GeoBox:
    return GeoBox(stored["scales"].shape[1:], Affine(*stored["transform"]), f"EPSG:{stored['epsg']}")
