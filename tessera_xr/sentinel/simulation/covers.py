"""The land cover of simulated landscapes: what grows when, on what ground, and how radar sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of leaf area, in days of the year at 45 degrees north; below 0 is the autumn before."""

    start: float
    """Day at which half of the leaves are out."""
    end: float
    """Day at which half of them are gone: harvest, leaf fall, ploughing."""
    lai: float
    """Leaf area index at the peak."""
    rise: float = 10.0
    """Days of the logistic's rise; about a quarter of the time from bare to full."""
    fall: float = 8.0
    """The same of the fall; 1 to 2 is a harvest."""
    senescence: float = 30.0
    """Days before the end from which leaves turn brown."""
    chance: float = 1.0
    """Share of fields and years that have this cycle."""
    spread: float = 7.0
    """Standard deviation of start and end from field to field, days."""


@dataclass(frozen=True)
class Cover:
    """A class of the map."""

    name: str
    colour: str
    canopy: str
    """Vegetation type of the spectral table."""
    cycles: tuple[Cycle, ...] = ()
    base_lai: float = 0.1
    base_stage: float = 3.0
    """0 fresh, 1 mature, 2 senescing, 3 dry."""
    cuts: tuple[float, ...] = ()
    """Days of mowing."""
    flowering: float | None = None
    """Day of the yellow peak, for the one crop that shows it."""
    hard: tuple[float, float] = (0.0, 0.0)
    """Range of the share of water, roofs or asphalt."""
    flooding: float = 0.0
    """Largest share that seasonal water covers."""
    wood: float = 0.0
    """Water in stems and branches, in units of leaf area, as radar feels it."""
    leaf_weight: float = 1.0
    """How much radar feels a unit of leaf area."""
    scatter: float = 1.0
    """Volume scattering, relative to a broad-leaved crop."""
    attenuation: float = 1.0
    """Extinction of VV, relative to a broad-leaved crop; upright stems take more."""
    roughness: float = 0.0
    """Soil backscatter relative to a tilled field, dB."""
    snow: float = 1.0
    """Share of a snow cover that shows from above."""


CATCH_CROP = Cycle(258, 395, 2.6, rise=12, fall=2, senescence=20, chance=0.45, spread=14)

COVERS = {
    1: Cover(
        "winter_cereal", "#e8c23a", "cereal",
        (
            Cycle(-35, 92, 0.9, rise=14, fall=9, senescence=5, spread=10),
            Cycle(84, 203, 5.0, rise=13, fall=2, senescence=38),
            CATCH_CROP,
        ),
        scatter=0.7, attenuation=1.8,
    ),
    2: Cover(
        "maize", "#f08a24", "leafy_crop",
        (
            Cycle(-60, 108, 2.6, rise=14, fall=2, senescence=5, chance=0.55, spread=10),
            Cycle(166, 268, 4.4, rise=8, fall=2, senescence=32),
        ),
    ),
    3: Cover(
        "root_crop", "#c2607a", "leafy_crop",
        (
            Cycle(-60, 88, 2.2, rise=14, fall=2, senescence=5, chance=0.4, spread=10),
            Cycle(157, 284, 4.4, fall=4, senescence=36, spread=12),
        ),
    ),
    4: Cover(
        "rapeseed", "#fff04a", "leafy_crop",
        (Cycle(-95, 82, 1.8, rise=12, fall=9, senescence=5), Cycle(86, 192, 4.8, rise=10, fall=2, senescence=34)),
        flowering=118, scatter=1.2,
    ),
    5: Cover(
        "double_crop", "#a64ca6", "leafy_crop",
        (Cycle(88, 158, 4.0, rise=7, fall=2, senescence=14), Cycle(200, 286, 4.2, rise=7, fall=2, senescence=18)),
    ),
    6: Cover(
        "grassland", "#8fd16a", "grass",
        (Cycle(78, 322, 2.6, rise=18, fall=22, senescence=40, spread=10),),
        base_lai=1.4, base_stage=1.2, cuts=(137, 182, 226, 272), scatter=0.85, roughness=-2.0,
    ),
    7: Cover(
        "deciduous_forest", "#3f9b3f", "deciduous",
        (Cycle(116, 298, 4.6, rise=6, fall=8, senescence=28, spread=4),),
        base_lai=0.8, base_stage=2.4, wood=6.0, leaf_weight=0.3, snow=0.45,
    ),
    8: Cover(
        "evergreen_forest", "#12592f", "conifer",
        (Cycle(140, 290, 0.9, rise=18, fall=20, senescence=10),),
        base_lai=4.2, base_stage=0.8, wood=6.5, leaf_weight=0.3, snow=0.25,
    ),
    9: Cover(
        "wetland", "#5fb7a5", "reed",
        (Cycle(138, 296, 3.4, rise=14, fall=12, senescence=42),),
        base_lai=0.7, flooding=0.75, roughness=1.0,
    ),
    10: Cover("water", "#2f6fd0", "reed", hard=(1.0, 1.0), base_lai=0.0, snow=0.0),
    11: Cover(
        "built_up", "#c8423a", "grass", (Cycle(92, 310, 2.2, rise=14, fall=16),),
        base_lai=0.9, base_stage=1.2, hard=(0.55, 0.92), wood=1.0, snow=0.8,
    ),
    12: Cover(
        "bare_soil", "#b99b72", "grass", (Cycle(115, 270, 0.35, rise=16, fall=20, senescence=80),), base_lai=0.05,
    ),
}  # fmt: skip

CODES = {cover.name: code for code, cover in COVERS.items()}
CHANGES = {0: "none", 1: "clear_cut", 2: "fire", 3: "building"}
CHANGE_CODES = {name: code for code, name in CHANGES.items()}
