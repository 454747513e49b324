"""The search of a STAC API: items as parsed JSON, from addresses that are safe, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

from tessera_xr._optional import refuse_offline
from tessera_xr._warn import warn
from tessera_xr.errors import CubeError, StoreError
from tessera_xr.sentinel.addresses import public_url, shortened, url_fault
from tessera_xr.sentinel.catalogues import Catalogue
from tessera_xr.sentinel.period import Period
from tessera_xr.sentinel.scenes import ItemError, Scene, UnsafeItemError, read_scene

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

SENSORS: Final = {"s2": "Sentinel-2", "s1": "Sentinel-1"}
MAX_ITEMS: Final = 20_000
"""Of one search: four years over all tiles of a country like Austria."""
PAGE: Final = 100
MAX_ANSWER: Final = 1 << 28
"""Bytes that one page of an answer may claim to have."""
BACKOFF = 0.5
"""Seconds before a request is repeated, doubled each time."""
TIMEOUT: Final = (10.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""


def find_scenes(
    catalogue: Catalogue, sensor: str, place: BaseGeometry, span: Period, left_out: list[str], *, progress: bool
) -> list[Scene]:
    """Return the scenes of one sensor that touch the place, in order of time; items at fault are told of."""
    from tqdm import tqdm

    collection = catalogue.s2_collection if sensor == "s2" else catalogue.s1_collection
    if collection is None:
        return []
    scenes: list[Scene] = []
    faults: list[str] = []
    items = found_items(catalogue, collection, place.bounds, span)
    for item in tqdm(items, f"search {collection}", unit=" scenes", disable=not progress, delay=1, leave=False):
        try:
            scene = read_scene(item, catalogue, sensor)
        except UnsafeItemError as error:
            raise CubeError(f"item {str(item.get('id'))[:80]} of {catalogue.name} {error}; nothing was read") from None
        except ItemError as error:
            faults.append(f"{str(item.get('id'))[:80]} {error}")
            continue
        if span.contains(scene.time) and (scene.footprint is None or scene.footprint.intersects(place)):
            scenes.append(scene)
    if faults:
        left_out.append(f"{len(faults)} {SENSORS[sensor]} items that lack what is needed: {faults[0]}")
        warn(f"{catalogue.name}: {len(faults)} {SENSORS[sensor]} items were left out, the first: {faults[0]}")
    return sorted(scenes, key=lambda scene: (scene.time, scene.id))


def nothing_found(catalogue: Catalogue, span: Period, place: BaseGeometry, left_out: Sequence[str]) -> str:
    """Return the message for a search without a result."""
    west, south, east, north = place.bounds
    more = f" ({'; '.join(left_out)})" if left_out else ""
    return (
        f"{catalogue.name} has no scene of {span} within ({west:.3f}, {south:.3f}, {east:.3f}, {north:.3f}){more}; "
        "the bbox is (west, south, east, north) in degrees, Sentinel-2 L2A begins in 2017 (in Europe; 2019 elsewhere)"
    )


def found_items(
    catalogue: Catalogue, collection: str, bounds: tuple[float, float, float, float], period: Period
) -> Iterator[dict[str, Any]]:
    """Yield every item of `collection` that touches `bounds` (degrees) in `period`, once.

    Raises
    ------
    StoreError
        If the catalogue can't be reached or answers what is no search result, or more than `MAX_ITEMS`.
    """
    from pystac_client import Client

    if not catalogue.is_local:
        refuse_offline(public_url(catalogue.url), "open imagery that is here with xarray, and pass it to as_cube")
    seen: set[str] = set()
    try:
        client = Client.open(catalogue.url, stac_io=_stac_io(catalogue))
        search = client.search(
            collections=[collection],
            bbox=bounds,
            datetime=f"{period.start}T00:00:00Z/{period.end}T23:59:59.999Z",
            limit=PAGE,
            max_items=MAX_ITEMS + 1,
        )
        for count, item in enumerate(search.items_as_dicts()):
            _check_item(item, count, collection)
            if item.get("collection", collection) == collection and str(item.get("id")) not in seen:
                seen.add(str(item.get("id")))
                yield item
    except StoreError as error:
        raise StoreError(f"{_title(catalogue)}: {error}") from None
    except Exception as error:  # of requests, pystac and pystac-client, for whatever the server says
        raise StoreError(
            f"{_title(catalogue)} could not be searched for {collection} ({type(error).__name__}: {shortened(error)}); "
            "try again later, or another source"
        ) from None


def _check_item(item: object, count: int, collection: str) -> None:
    if count >= MAX_ITEMS:
        raise StoreError(f"more than {MAX_ITEMS:,} scenes of {collection}; take a smaller area")
    if not isinstance(item, dict):
        raise StoreError(f"an item of {collection} is no JSON object")


def _title(catalogue: Catalogue) -> str:
    address = public_url(catalogue.url)
    return address if catalogue.name in address else f"{catalogue.name} ({address})"


def _stac_io(catalogue: Catalogue) -> Any:
    """Return pystac-client's way out, with patience, and with a look at every address before it is asked."""
    from pystac_client.stac_api_io import StacApiIO
    from urllib3.util.retry import Retry

    def refuse_unsafe(url: str) -> None:
        if (fault := url_fault(url, loopback=catalogue.is_local)) is not None:
            raise StoreError(f"it refers to {public_url(url)[:200]}, which {fault}")

    def inspect(response: Any, **_: Any) -> None:
        if response.is_redirect:
            refuse_unsafe(urljoin(response.url, response.headers["location"]))
        if int(response.headers.get("Content-Length") or 0) > MAX_ANSWER:
            raise StoreError(f"its answer has {int(response.headers['Content-Length']):,} bytes, too much for a page")

    class CarefulIO(StacApiIO):
        def request(self, href: str, *args: Any, **kwargs: Any) -> str:
            refuse_unsafe(href)
            return str(super().request(href, *args, **kwargs))

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            if isinstance(source, str):
                refuse_unsafe(source)
            return str(super().read_text(source, *args, **kwargs))

    again = (429, 500, 502, 503, 504)
    # searches change nothing, so that a POST may be repeated too
    retry = Retry(total=4, connect=1, backoff_factor=BACKOFF, status_forcelist=again, allowed_methods=None)
    io = CarefulIO(timeout=TIMEOUT, max_retries=retry)
    io.session.hooks["response"].append(inspect)
    return io
