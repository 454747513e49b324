"""All that is known of one pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tessera_xr.errors import GridError
from tessera_xr.sentinel.series import pixel_series

if TYPE_CHECKING:
    import pandas as pd

    from tessera_xr.views.answers import Pixel
    from tessera_xr.views.session import Session


@dataclass(frozen=True)
class Inspection:
    """What is known of a pixel at one time."""

    pixel: Pixel
    """(row, column) in the embeddings."""
    lon: float
    """Of the place asked about, in degrees."""
    lat: float
    time: str
    embedding: npt.NDArray[np.float32] | None
    """(band,); None where there is no data."""
    cluster: int | None
    """Its number among `Settings.n_clusters`."""
    novelty: float | None
    """Percentile: the share of the labelled pixels (of the map, if fewer than three are labelled) that is nearer to
    the rest of them."""
    similarity: float | None
    """To the question, if there is one."""
    prediction: str | float | None
    """Class or number, if there is a head."""
    probability: dict[str, float] | None
    """Of each class, if the head has any."""
    s2: pd.DataFrame | None
    """Its Sentinel-2 series; see `pixel_series`. None without a cube there."""
    s1: pd.DataFrame | None
    """Its Sentinel-1 series."""

    @property
    def title(self) -> str:
        """One line on where and when."""
        time = f", {self.time}" if self.time else ""
        north, east = "NS"[self.lat < 0], "EW"[self.lon < 0]
        place = f"{abs(self.lat):.5f} {north}, {abs(self.lon):.5f} {east}"
        return f"{place} (row {self.pixel[0]}, column {self.pixel[1]}){time}"


def inspect_pixel(session: Session, lon: float, lat: float) -> Inspection:
    """Return all that is known of the pixel that holds a place.

    Raises
    ------
    GridError
        If the place lies outside the embeddings.
    """
    pixel = session.pixel_at(lon, lat)
    time, answers = session.settings.time, session.answers
    one = answers.at(time).isel(y=slice(pixel[0], pixel[0] + 1), x=slice(pixel[1], pixel[1] + 1))
    s2, s1 = _series(session, lon, lat)
    nothing = Inspection(pixel, lon, lat, time, None, None, None, None, None, None, s2, s1)
    if not answers.has_data(time)[pixel]:
        return nothing
    head = session.head
    prediction, probability = (None, None) if head is None else _predicted(session, pixel)
    return Inspection(
        pixel,
        lon,
        lat,
        time,
        answers.vectors(time, (pixel,))[0],
        int(answers.clusters(session.settings.n_clusters).predict(one).item()),
        float(answers.novelty_model(time, session.labelled_pixels()).transform(one)["percentile"].item()),
        float(session.array("similarity").values[pixel]) if session.query.positives else None,
        prediction,
        probability,
        s2,
        s1,
    )


def _series(session: Session, lon: float, lat: float) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    if session.cube is None:
        return None, None
    try:
        return pixel_series(session.cube, lon, lat)
    except GridError:  # the cube is of another place than the embeddings there
        return None, None


def _predicted(session: Session, pixel: Pixel) -> tuple[str | float, dict[str, float] | None]:
    head = session.head
    assert head is not None
    if head.is_spatial:  # it sees the surroundings, which one pixel doesn't have
        return _from_map(session, pixel)
    row = session.answers.vectors(session.settings.time, (pixel,))
    found = head.predict_rows(row)[0]
    if head.task == "numbers":
        return float(found), None
    chances = head.probability_rows(row)[0] if head.has_probability else None
    named = None if chances is None else dict(zip(head.classes, map(float, chances), strict=True))
    return str(found), named


def _from_map(session: Session, pixel: Pixel) -> tuple[str | float, dict[str, float] | None]:
    assert session.head is not None
    pred = session.prediction().isel(y=pixel[0], x=pixel[1])
    if session.head.task == "numbers":
        return float(pred["prediction"]), None
    classes = session.head.classes
    named = dict(zip(classes, map(float, pred["probability"].values), strict=True)) if "probability" in pred else None
    return classes[int(pred["prediction"]) - 1], named
