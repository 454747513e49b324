"""Build tessera_xr/data/spectra/canopy.npz: canopy reflectance in the ten TESSERA bands, by PROSAIL.

Run it in an environment of its own, for it needs two packages that tessera_xr does not:

    pip install prosail==2.0.5 pyrsr==0.8.0
    python scripts/build_spectra.py

The result is deterministic. What is in it, and under which licences, is told in the README beside the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prosail import run_prosail
from pyrsr import RSR

BANDS = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
LAI = (0.0, 0.15, 0.3, 0.6, 1.0, 1.5, 2.0, 2.7, 3.5, 4.5, 6.0, 8.0)
SOILS = ("wet", "dry")
SUN_ZENITH, VIEW_ZENITH, RELATIVE_AZIMUTH, HOT_SPOT = 45.0, 5.0, 90.0, 0.05
OUT = Path(__file__).resolve().parents[1] / "tessera_xr" / "data" / "spectra" / "canopy.npz"


@dataclass(frozen=True)
class Leaf:
    """A vegetation type: its fresh leaf (PROSPECT-D), its leaf angle (SAIL) and the shadow between its crowns."""

    structure: float
    chlorophyll: float
    """ug/cm2; carotenoids are a fifth of it."""
    water: float
    """g/cm2."""
    dry_matter: float
    """g/cm2."""
    angle: float
    """Mean leaf angle, degrees."""
    crown_shadow: float = 0.0
    """Share of the reflectance lost to mutual shading of crowns, which a flat canopy lacks."""


@dataclass(frozen=True)
class Stage:
    """A stage of life: what is left of the fresh leaf's chlorophyll and water, and its brown pigments."""

    chlorophyll: float
    water: float
    brown: float


TYPES = {
    "cereal": Leaf(1.5, 52.0, 0.014, 0.005, 65.0),
    "leafy_crop": Leaf(1.5, 48.0, 0.016, 0.0045, 48.0),
    "grass": Leaf(1.6, 44.0, 0.013, 0.005, 60.0),
    "deciduous": Leaf(1.7, 45.0, 0.012, 0.008, 42.0, crown_shadow=0.25),
    "conifer": Leaf(2.0, 52.0, 0.020, 0.015, 55.0, crown_shadow=0.45),
    "reed": Leaf(1.6, 38.0, 0.013, 0.006, 68.0),
}
STAGES = {
    "fresh": Stage(1.0, 1.0, 0.0),
    "mature": Stage(0.75, 0.9, 0.05),
    "senescing": Stage(0.3, 0.55, 0.45),
    "dry": Stage(0.04, 0.12, 0.9),
}


def responses() -> np.ndarray:
    """Return the Sentinel-2A relative responses at 400..2500 nm, each row of sum 1, (10, 2101)."""
    sensor = RSR("Sentinel-2A", "MSI")
    wavelengths = np.arange(400, 2501)
    rows = []
    for band in BANDS:
        curve = sensor.rsrs_norm01[band.removeprefix("B0").removeprefix("B")]
        rows.append(np.interp(wavelengths, sensor.rsrs_wvl, curve, left=0, right=0))
    stacked = np.stack(rows)
    return stacked / stacked.sum(axis=1, keepdims=True)


def canopy(leaf: Leaf, stage: Stage, lai: float, soil: str) -> np.ndarray:
    """Return the directional reflectance of one canopy at 400..2500 nm, (2101,)."""
    chlorophyll = leaf.chlorophyll * stage.chlorophyll
    spectrum = run_prosail(
        leaf.structure,
        chlorophyll,
        chlorophyll / 5,
        stage.brown,
        leaf.water * stage.water,
        leaf.dry_matter,
        max(lai, 1e-4),
        leaf.angle,
        HOT_SPOT,
        SUN_ZENITH,
        VIEW_ZENITH,
        RELATIVE_AZIMUTH,
        prospect_version="D",
        rsoil=1.0,
        psoil=float(SOILS.index(soil)),
    )
    shaded = leaf.crown_shadow * min(lai / 2, 1.0)
    return np.asarray(spectrum) * (1 - shaded)


def build() -> np.ndarray:
    """Return the table, (type, stage, lai, soil, band) float32."""
    weights = responses()
    table = [
        [[[weights @ canopy(leaf, stage, lai, soil) for soil in SOILS] for lai in LAI] for stage in STAGES.values()]
        for leaf in TYPES.values()
    ]
    return np.asarray(table, dtype=np.float32)


def main() -> None:
    """Write the table."""
    table = build()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        OUT,
        reflectance=table,
        types=np.array(list(TYPES)),
        stages=np.array(list(STAGES)),
        lai=np.array(LAI, dtype=np.float32),
        soils=np.array(SOILS),
        bands=np.array(BANDS),
    )
    print(f"{OUT}: {table.shape}, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
