"""Classes as GIS shows them: colours inside the file, names beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tessera_xr.errors import SchemaError

Rgb = tuple[int, int, int]
_COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
"""GDAL's name, type (0 whole number, 2 text) and usage of each column of its table of classes."""


@dataclass(frozen=True)
class Legend:
    """What the codes of a map of classes mean."""

    codes: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[Rgb, ...]
    """Empty if they have none."""

    @property
    def palette(self) -> dict[int, tuple[int, int, int, int]]:
        """Return the colour table, opaque."""
        return {code: (*rgb, 255) for code, rgb in zip(self.codes, self.colours, strict=False)}

    def write(self, path: Any, n_bands: int) -> None:
        """Write the names as GDAL, and QGIS through it, look for them: in a file `<name of the map>.aux.xml`."""
        root = ElementTree.Element("PAMDataset")
        for number in range(1, n_bands + 1):
            band = ElementTree.SubElement(root, "PAMRasterBand", band=str(number))
            if max(self.codes) < 256:  # a list by position, with a gap for each code between
                named = dict(zip(self.codes, self.names, strict=True))
                categories = ElementTree.SubElement(band, "CategoryNames")
                for code in range(max(self.codes) + 1):
                    ElementTree.SubElement(categories, "Category").text = named.get(code, "")
            band.append(self._table())
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(path, encoding="unicode")

    def _table(self) -> ElementTree.Element:
        columns = _COLUMNS if self.colours else _COLUMNS[:2]
        table = ElementTree.Element("GDALRasterAttributeTable", tableType="thematic")
        for i, (name, kind, usage) in enumerate(columns):
            field = ElementTree.SubElement(table, "FieldDefn", index=str(i))
            for tag, text in (("Name", name), ("Type", kind), ("Usage", usage)):
                ElementTree.SubElement(field, tag).text = str(text)
        for i, (code, name) in enumerate(zip(self.codes, self.names, strict=True)):
            row = ElementTree.SubElement(table, "Row", index=str(i))
            for value in (code, name, *(self.colours[i] if self.colours else ())):
                ElementTree.SubElement(row, "F").text = str(value)
        return table


def read_legend(attrs: Mapping[str, Any]) -> Legend | None:
    """Return the legend that CF's flag_values, flag_meanings and flag_colors describe; None if there is none.

    Raises
    ------
    SchemaError
        If they don't fit together.

    Examples
    --------
    >>> read_legend({"flag_values": [1, 2], "flag_meanings": "forest winter_wheat", "flag_colors": "#00ff00 #ffff00"})
    Legend(codes=(1, 2), names=('forest', 'winter wheat'), colours=((0, 255, 0), (255, 255, 0)))
    """
    if "flag_values" not in attrs or "flag_meanings" not in attrs:
        return None
    codes = [int(code) for code in np.atleast_1d(attrs["flag_values"])]
    words = str(attrs["flag_meanings"]).split()
    colours = str(attrs.get("flag_colors", "")).split()
    for key, found in (("flag_meanings", words), ("flag_colors", colours)):
        if len(found) != len(codes) and (found or key == "flag_meanings"):
            raise SchemaError(f"{key} has {len(found)} words for {len(codes)} flag_values; mend it, or drop the flags")
    if not codes or min(codes) < 0:
        return None  # a legend by position can't say them
    return Legend(tuple(codes), tuple(word.replace("_", " ") for word in words), _parsed(colours))


def _parsed(colours: Sequence[str]) -> tuple[Rgb, ...]:
    from matplotlib.colors import to_rgb

    try:
        return tuple(tuple(round(255 * part) for part in to_rgb(colour)) for colour in colours)  # type: ignore[misc]
    except ValueError as error:
        raise SchemaError(f"flag_colors holds {error}; give colours as #rrggbb, parted by blanks") from error
