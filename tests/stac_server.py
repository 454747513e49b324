"""A small STAC API on the loopback: scenes written as cloud-optimised GeoTIFFs, found by a real search."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from serving import Server, serve

from tessera_xr.sentinel.bands import S2_BANDS
from tessera_xr.sentinel.catalogues import CATALOGUES, Catalogue

TEN_METRES = ("B02", "B03", "B04", "B08")
CONFORMS = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
CONTAINER = "files"


@dataclass
class StacServer:
    """A catalogue in the style of one of the two sources; scenes are added one by one."""

    server: Server
    style: str
    page: int = 100
    """Items of one page of an answer, however many are asked for."""
    items: list[dict[str, Any]] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    """Tokens given out by the service that signs."""
    revoked: int = 0
    """The number of the last token that is no longer good."""

    @property
    def catalogue(self) -> Catalogue:
        """The source of this style, served from here; unsigned, see `sign`."""
        there = CATALOGUES[self.style]
        return Catalogue(
            f"{self.server.url}/stac",
            there.s2_collection,
            there.s2_assets,
            there.s1_collection,
            there.s1_assets,
            offset=there.offset,
            name=there.name,
        )

    def add_s2(
        self,
        name: str,
        time: str,
        bands: Mapping[str, np.ndarray],
        grid: GeoBox,
        baseline: str | None = "05.10",
        *,
        flag: bool | None = None,
        cloud_cover: float = 10.0,
        tile: str = "31UES",
        platform: str = "sentinel-2a",
    ) -> dict[str, Any]:
        """Write a scene of ten bands and SCL, all (y, x) on a grid of 10 m; those of 20 m are written as such."""
        properties = {"datetime": time, "eo:cloud_cover": cloud_cover, "platform": platform, "s2:mgrs_tile": tile}
        if baseline is not None:
            properties["s2:processing_baseline"] = baseline
        if flag is not None:
            properties["earthsearch:boa_offset_applied"] = flag
        assets = {}
        for band in (*S2_BANDS, "SCL"):
            step = 1 if band in TEN_METRES else 2
            dtype = "uint8" if band == "SCL" else "uint16"
            assets[self.catalogue.s2_assets[band]] = self._write(
                f"{name}_{band}", bands[band][::step, ::step].astype(dtype), grid.zoom_out(step), 0
            )
        return self._add("sentinel-2-l2a", name, properties, assets, grid)

    def add_s1(
        self, name: str, time: str, bands: Mapping[str, np.ndarray], grid: GeoBox, orbit: str = "ascending"
    ) -> dict[str, Any]:
        """Write a scene of VV and VH, linear power (y, x), NaN where there is nothing."""
        assets = {}
        for band in ("VV", "VH"):
            power = np.where(np.isfinite(bands[band]), bands[band], -32768).astype("float32")
            assets[band.lower()] = self._write(f"{name}_{band}", power, grid, -32768)
        return self._add("sentinel-1-rtc", name, {"datetime": time, "sat:orbit_state": orbit}, assets, grid)

    def _write(self, name: str, data: np.ndarray, grid: GeoBox, nodata: float) -> dict[str, Any]:
        folder = self.server.folder / CONTAINER
        folder.mkdir(exist_ok=True)
        place = {"height": data.shape[0], "width": data.shape[1], "crs": str(grid.crs), "transform": grid.transform}
        path = folder / f"{name}.tif"
        with rasterio.open(
            path,
            "w",
            driver="COG",
            dtype=data.dtype,
            count=1,
            nodata=nodata,
            compress="deflate",
            blocksize=128,
            **place,
        ) as file:
            file.write(data, 1)
        return {"href": f"{self.server.url}/{CONTAINER}/{name}.tif", "type": "image/tiff"}

    def _add(
        self, collection: str, name: str, properties: dict[str, Any], assets: dict[str, Any], grid: GeoBox
    ) -> dict[str, Any]:
        footprint = grid.extent.to_crs("EPSG:4326").geom
        item = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": collection,
            "geometry": footprint.__geo_interface__,
            "bbox": list(footprint.bounds),
            "properties": properties,
            "assets": assets,
            "links": [{"rel": "self", "href": f"{self.server.url}/stac/collections/{collection}/items/{name}"}],
        }
        self.items.append(item)
        return item

    def landing(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        url = f"{self.server.url}/stac"
        links = [{"rel": "self", "href": url}, {"rel": "root", "href": url}]
        links += [
            {"rel": "search", "href": f"{url}/search", "method": verb, "type": "application/geo+json"}
            for verb in ("GET", "POST")
        ]
        return _json(
            {"type": "Catalog", "id": self.style, "stac_version": "1.0.0", "description": "", "links": links}
            | {"conformsTo": CONFORMS}
        )

    def search(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Answer a search; the next page is asked for by POST in one style and by GET in the other."""
        asked = json.loads(body) if method == "POST" else {k: v[0] for k, v in parse_qs(urlsplit(path).query).items()}
        self.searches.append(asked)
        found = [item for item in self.items if _matches(item, asked)]
        start = int(asked.get("token", 0))
        stop = start + min(int(asked.get("limit", 10)), self.page)
        url, links = f"{self.server.url}/stac/search", []
        if stop < len(found):
            fresh = asked | {"token": str(stop)}
            if self.style == "earth-search":
                links = [{"rel": "next", "href": url, "method": "POST", "merge": False, "body": fresh}]
            else:
                query = "&".join(f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in fresh.items())
                links = [{"rel": "next", "href": f"{url}?{query}", "method": "GET"}]
        return _json({"type": "FeatureCollection", "features": found[start:stop], "links": links})

    def require_tokens(self, monkeypatch: Any, seconds: float = 3600) -> None:
        """Serve files to signed requests only, and let planetary-computer's own client sign them here."""
        from planetary_computer import sas
        from planetary_computer.settings import Settings

        host = self.server.url.removeprefix("http://")
        monkeypatch.setattr(sas, "BLOB_STORAGE_DOMAIN", host)  # else it signs nothing but Azure's addresses
        monkeypatch.setattr(sas, "TOKEN_CACHE", {})
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{self.server.url}/sas")
        monkeypatch.delenv("PC_SDK_SUBSCRIPTION_KEY", raising=False)
        Settings.get.cache_clear()
        self.seconds = seconds
        self.server.routes[f"/sas/{host.split('.')[0]}/{CONTAINER}"] = self._token
        self.server.guard = self._guard

    def _token(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        self.tokens += 1
        expiry = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return _json({"msft:expiry": expiry.isoformat(), "token": f"sp=r&sig=secret{self.tokens}"})

    def _guard(self, path: str) -> int | None:
        """Refuse files but to the bearer of a token that is good."""
        parts = urlsplit(path)
        sig = parse_qs(parts.query).get("sig", ["secret0"])[0]
        signed = int(sig.removeprefix("secret")) > self.revoked
        return 403 if parts.path.startswith(f"/{CONTAINER}/") and not signed else None


def _json(content: Any) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(content).encode()


def _matches(item: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    collections, box = asked["collections"], asked["bbox"]
    collections = collections.split(",") if isinstance(collections, str) else collections
    west, south, east, north = (float(v) for v in (box.split(",") if isinstance(box, str) else box))
    start, end = asked["datetime"].split("/")
    its = item["bbox"]
    here = its[0] <= east and its[2] >= west and its[1] <= north and its[3] >= south
    return (
        item["collection"] in collections
        and here
        and start[:19] <= (item["properties"].get("datetime") or start)[:19] <= end[:19]
    )


@contextmanager
def serve_stac(folder: Path, style: str) -> Iterator[StacServer]:
    """Serve an empty catalogue in the style of "earth-search" or "planetary-computer" until the block ends."""
    with serve(folder) as server:
        stac = StacServer(server, style)
        server.routes |= {"/stac": stac.landing, "/stac/search": stac.search}
        yield stac
