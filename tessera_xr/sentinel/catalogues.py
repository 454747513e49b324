"""STAC catalogues of Sentinel imagery: where they are, and how their items are to be read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from tessera_xr.errors import SchemaError, StoreError
from tessera_xr.sentinel.addresses import is_loopback, public_url, shortened, url_fault
from tessera_xr.sentinel.bands import S1_BANDS, S2_ALIASES, S2_BANDS, SCL
from tessera_xr.sentinel.radiometry import EARTH_SEARCH, PLANETARY_COMPUTER

OffsetRule: TypeAlias = Literal["baseline", "removed", "flag"]
S2_LAYERS: Final = (*S2_BANDS, SCL)
"""What is read of each Sentinel-2 scene, in this order."""

_COMMON_NAMES = {band: aliases[0] for band, aliases in S2_ALIASES.items()} | {SCL: "scl"}
_UNITS = ("power", "db", "amplitude")
_TOKENS = Lock()


@dataclass(frozen=True)
class Catalogue:
    """A STAC API with Sentinel-2 L2A, perhaps Sentinel-1 RTC, and how its items are to be read.

    Examples
    --------
    Element 84's Collection 1, of which the values are as ESA delivers them:

    >>> c1 = Catalogue("https://earth-search.aws.element84.com/v1", "sentinel-2-c1-l2a",
    ...                {band: names[0] for band, names in S2_ALIASES.items()} | {"SCL": "scl"}, name="c1")
    >>> c1.offset
    'baseline'
    """

    url: str
    """Of the landing page of the API: https, or http on this machine."""
    s2_collection: str
    """Id of the Sentinel-2 L2A collection."""
    s2_assets: Mapping[str, str] = field(default_factory=lambda: {name: name for name in S2_LAYERS})
    """Band ("B04", ..., "SCL") -> asset; the file's first layer is read."""
    s1_collection: str | None = None
    """Id of the Sentinel-1 collection: terrain-corrected backscatter (RTC). None: it has none."""
    s1_assets: Mapping[str, str] = field(default_factory=lambda: {"VV": "vv", "VH": "vh"})
    """"VV" and "VH" -> asset."""
    s1_units: str = "power"
    """"power" (linear), "db" or "amplitude"."""
    offset: OffsetRule = "baseline"
    """Whether the +1000 offset of processing baseline 04.00 is in the values: "baseline" (raw L2A: from 04.00 on it
    is), "removed" (never), "flag" (Earth Search: unless the item says that it was removed, or the pixels show it)."""
    sign: Literal["planetary-computer"] | Callable[[str], str] | None = None
    """How an address is signed, each time before it is read; a function must be picklable to work on a cluster."""
    name: str = ""
    """What the cube will say under `source`; without it the host of `url`."""

    def __post_init__(self) -> None:
        faults = []
        if (fault := url_fault(self.url, loopback=True)) is not None:
            faults.append(f"url {public_url(self.url)!r} {fault}")
        for sensor, assets, bands in (("s2", self.s2_assets, S2_LAYERS), ("s1", self.s1_assets, S1_BANDS)):
            if missing := [band for band in bands if not assets.get(band)]:
                faults.append(f"{sensor}_assets names no asset for {', '.join(missing)}")
        if self.offset not in get_args(OffsetRule):
            faults.append(f"offset={self.offset!r} is not known; it is 'baseline', 'removed' or 'flag'")
        if self.s1_units not in _UNITS:
            faults.append(f"s1_units={self.s1_units!r} is not known; it is {', '.join(map(repr, _UNITS))}")
        if self.sign not in (None, PLANETARY_COMPUTER) and not callable(self.sign):
            faults.append(
                f"sign={self.sign!r} is not known; it is None, {PLANETARY_COMPUTER!r} or a function of the URL"
            )
        if faults:
            raise SchemaError("this catalogue can't be used: " + "; ".join(faults))
        if not self.name:
            object.__setattr__(self, "name", urlsplit(self.url).hostname or "")

    @property
    def is_local(self) -> bool:
        """Whether it is served by this machine, so that its files may be too."""
        return is_loopback(urlsplit(self.url).hostname or "")


CATALOGUES: Final[dict[str, Catalogue]] = {
    EARTH_SEARCH: Catalogue(
        "https://earth-search.aws.element84.com/v1",
        "sentinel-2-l2a",
        _COMMON_NAMES,
        offset="flag",
        name=EARTH_SEARCH,
    ),
    PLANETARY_COMPUTER: Catalogue(
        "https://planetarycomputer.microsoft.com/api/stac/v1",
        "sentinel-2-l2a",
        s1_collection="sentinel-1-rtc",
        sign="planetary-computer",
        name=PLANETARY_COMPUTER,
    ),
}
"""The catalogues known by name. Earth Search has Sentinel-1 too, but as GRD, neither terrain-corrected nor on a grid,
in a bucket that charges its readers: nothing that TESSERA was trained on."""

_SPELLINGS = {
    "aws": EARTH_SEARCH,
    "earthsearch": EARTH_SEARCH,
    "mpc": PLANETARY_COMPUTER,
    "planetarycomputer": PLANETARY_COMPUTER,
}


def resolve_catalogue(source: str | Catalogue, argument: str = "source") -> Catalogue:
    """Return the catalogue that `source` means.

    Raises
    ------
    SchemaError
        If there is none of that name; it says which there are.
    """
    if isinstance(source, Catalogue):
        return source
    hint = ""
    if isinstance(source, str):
        plain = re.sub(r"[\W_]+", "", source.lower())
        if plain in _SPELLINGS:
            return CATALOGUES[_SPELLINGS[plain]]
        if "://" in source:
            raise SchemaError(
                f"{argument}={public_url(source)!r} is an address; its collections and assets must be said too: "
                f"{argument}=tessera_xr.Catalogue(url, 'sentinel-2-l2a', ...)"
            )
        near = difflib.get_close_matches(plain, _SPELLINGS, n=1)
        hint = f"did you mean {_SPELLINGS[near[0]]!r}? " if near else ""
    raise SchemaError(
        f"{argument}={source!r} is not known; {hint}the sources are {', '.join(map(repr, CATALOGUES))}, "
        "or a tessera_xr.Catalogue for any other STAC API"
    )


def signed(url: str, sign: str | Callable[[str], str] | None, *, renew: bool = False) -> str:
    """Return `url` as it can be read now; with `renew`, a token that is still good by its date is fetched anew.

    Raises
    ------
    StoreError
        If no token is to be had.
    """
    if sign is None:
        return url
    try:
        return str(sign(url)) if callable(sign) else _planetary_computer(url, renew=renew)
    except Exception as error:  # the token service's and the user's own: anything
        raise StoreError(
            f"no token to read {public_url(url)} ({type(error).__name__}: {shortened(error)}); some collections of the "
            "Planetary Computer need a key, in the environment variable PC_SDK_SUBSCRIPTION_KEY"
        ) from None


def _planetary_computer(url: str, *, renew: bool) -> str:
    from planetary_computer import sas
    from planetary_computer.utils import parse_blob_url

    parts = urlsplit(url)
    if parts.netloc.endswith(sas.BLOB_STORAGE_DOMAIN):
        with _TOKENS:  # else every thread fetches the first token for itself
            if renew:
                sas.TOKEN_CACHE.clear()
            sas.get_token(*parse_blob_url(parts), retry_total=3, retry_backoff_factor=0.3)
    return str(sas.sign_url(url))
