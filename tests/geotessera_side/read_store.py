"""Read a store by geotessera, and by `open_published` beside it: `python read_store.py STORE BBOX YEAR OUT.npz`."""

from __future__ import annotations

import json
import sys

import numpy as np
from geotessera import GeoTesseraZarr

from tessera_xr.embedding.published.opening import open_published


def main(path: str, bbox: str, year: str, out: str) -> None:
    """Write what both answer to the same questions."""
    west, south, east, north = box = json.loads(bbox)
    store = GeoTesseraZarr(path)
    # a rectangle of degrees is wider than one of metres: the pixels of `open_published` are cut out by their centres
    opened = open_published(tuple(box), int(year), store=path, progress=False)
    ds = store.open_zone(lon=(west + east) / 2)
    x, y = opened.x.values, opened.y.values
    rectangle = (x[0], y[-1], x[-1], y[0])
    codes, scales, transform = ds.tessera.read_region_quantized(rectangle, int(year))
    middles = [((west * (7 - i) + east * i) / 7, (south * (7 - i) + north * i) / 7) for i in range(1, 7)]
    points = store.sample_points(middles, int(year))
    np.savez(
        out,
        codes=codes,
        scales=scales,
        values=ds.tessera.read_region(rectangle, int(year))[0],
        transform=np.array(transform)[:6],
        lonlat=np.array(middles),
        points=points,
        statuses=np.array([store.probe(lon, lat, int(year), search_px=0)[1] for lon, lat in middles]),
        years=np.array(store.years),
        crs=np.array(ds.tessera.crs),
        opened_x=x,
        opened_y=y,
        **{f"opened_{name}": opened[name].values for name in ("embeddings", "scales", "quality")},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
