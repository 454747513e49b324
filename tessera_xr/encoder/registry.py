"""One record for each model: statistics, sampling policy, dimensions, licence and source travel together."""

from __future__ import annotations

from dataclasses import dataclass

from tessera_xr.encoder import bundled
from tessera_xr.encoder.architecture import Architecture
from tessera_xr.encoder.sampling import Policy

Row = tuple[float, ...]
UNOFFICIAL = "not an official TESSERA model"


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each band, as the checkpoint was trained with them."""

    s2_mean: Row
    """Of reflectance x 10,000, ten bands in TESSERA's order."""
    s2_std: Row
    """Likewise."""
    s1_ascending: tuple[Row, Row]
    """(mean, std) of VV and VH in TESSERA's SAR scale."""
    s1_descending: tuple[Row, Row]
    """Likewise; equal to the ascending ones in versions that pool the orbits."""


@dataclass(frozen=True)
class ModelRecord:
    """What must be known of a checkpoint beside its weights."""

    name: str
    """What `embed` calls it."""
    family: str
    """Generation, as read off a file: "v1.0-early", "v1.0", "v1.1", "v2", "v2-teacher"."""
    arch: Architecture
    """Sizes of the network."""
    statistics: Statistics
    """How inputs are standardised."""
    policy: Policy
    """Which observations it reads."""
    n_parameters: int
    """Number of trained values."""
    n_dims: int = 128
    """Length of its embedding."""
    matryoshka: tuple[int, ...] = ()
    """Shorter lengths that work alone; none if it must not be cut."""
    imagery: str | None = None
    """The only source of imagery it goes with, if any."""
    licence: str = "CC0-1.0"
    """Of the weights."""
    repo: str | None = None
    """Repository on the Hugging Face Hub."""
    filename: str | None = None
    """Its file there, or the name under which its authors share it."""
    n_bytes: int | None = None
    """Size of that file, where known."""
    sha256: str | None = None
    """Hash of that file, where known."""
    official: bool = True
    """Whether TESSERA's authors trained it; False for the bundled encoder and for encoders of one's own."""
    bundled: bool = False
    """Whether its file comes with this package."""


_V1_0_S1 = ((5484.0407, 3003.7812), (1871.2334, 1726.0670))
V1_0 = Statistics(
    (1711.0938, 1308.8511, 1546.4543, 3010.1293, 3106.5083, 2068.3044, 2685.0845, 2931.5889, 2514.6928, 1899.4922),
    (1926.1026, 1862.9751, 1803.1792, 1741.7837, 1677.4543, 1888.7862, 1736.3090, 1715.8104, 1514.5199, 1398.4779),
    _V1_0_S1,
    _V1_0_S1,
)
V1_1_MPC = Statistics(
    (2683.4553, 2223.3630, 2432.0950, 3633.1970, 3602.1755, 3006.4324, 3400.2710, 3515.6392, 2456.9163, 1983.8783),
    (2739.5217, 2846.2993, 2690.8250, 2290.0439, 2088.8970, 2673.1106, 2381.4521, 2229.5225, 1601.0942, 1495.3545),
    ((5588.3291, 3025.6270), (1713.4646, 1693.0471)),
    ((5552.9683, 2955.0520), (1685.5857, 1677.6414)),
)
V1_1_AWS = Statistics(
    (2793.6589, 2356.7776, 2551.0496, 3741.9229, 3713.7844, 3120.1997, 3516.3342, 3637.0342, 2501.0283, 2038.1504),
    (2810.0093, 2933.8835, 2755.6360, 2344.5027, 2145.7986, 2743.9019, 2438.8601, 2286.5977, 1680.7367, 1585.5529),
    ((5697.0859, 2838.6687), (1671.3737, 1789.4116)),
    ((5759.1367, 2873.2854), (1583.2858, 1747.8390)),
)
_V2_S2 = (
    (1633.0042, 1341.1090, 1539.5536, 3054.8269, 3117.4658, 2004.1648, 2694.7275, 2945.1504, 2266.6079, 1657.3094),
    (1999.4603, 2014.7549, 1929.2201, 1754.2493, 1649.9807, 1936.8988, 1748.6041, 1708.6991, 1207.5250, 1108.6046),
)
V2_STUDENT = Statistics(
    *_V2_S2,
    ((5909.3921, 3405.0322), (1507.1750, 1531.2615)),
    ((5816.1382, 3277.7576), (1554.6475, 1546.4733)),
)
_V2_TEACHER_S1 = ((5862.7652, 3341.3949), (1531.8051, 1540.2014))
V2_TEACHER = Statistics(*_V2_S2, _V2_TEACHER_S1, _V2_TEACHER_S1)
MINI = Statistics(bundled.S2_MEAN, bundled.S2_STD, bundled.S1_ASCENDING, bundled.S1_DESCENDING)

MATRYOSHKA = (16, 32, 64)


def _student(size: str, repo_letter: str, arch: Architecture, n_parameters: int, **known: object) -> ModelRecord:
    return ModelRecord(
        f"v2-{size}",
        "v2",
        arch,
        V2_STUDENT,
        "v2",
        n_parameters,
        matryoshka=MATRYOSHKA,
        repo=f"geotessera/TESSERA-V-2.0-2B-{repo_letter}",
        filename=f"ckpt/student_{size}.pt",
        **known,  # type: ignore[arg-type]
    )


def _v1_1(source: str, statistics: Statistics, imagery: str) -> ModelRecord:
    arch = Architecture(192, 4, 4, 2048, n_out=192, pooling="gru", final_norm=False)
    name = f"v1.1-{source}"
    filename = f"tessera_v1_1_{source}_encoder.pt"
    return ModelRecord(name, "v1.1", arch, statistics, "v1.1", 57_708_738, imagery=imagery, filename=filename)


NANO = Architecture(36, 2, 4, 384)
RECORDS = {
    record.name: record
    for record in (
        ModelRecord(
            "mini",
            "v2",
            NANO,
            MINI,
            "v2",
            1_066_402,
            matryoshka=MATRYOSHKA,
            licence="MIT",
            filename="mini.safetensors",
            n_bytes=bundled.N_BYTES,
            sha256=bundled.SHA256,
            official=False,
            bundled=True,
        ),
        _student(
            "nano",
            "N",
            NANO,
            1_066_402,
            n_bytes=4_288_221,
            sha256="bc9929e3643dfab2744c2ce14e7c14f698703a94e9562e4e0982f9d6540b0691",
        ),
        _student("small", "S", Architecture(64, 4, 4, 1024), 7_112_322),
        _student("medium", "M", Architecture(110, 4, 4, 1792), 21_031_506),
        _student("large", "L", Architecture(160, 4, 4, 2560), 43_831_170),
        ModelRecord(
            "v2-teacher",
            "v2-teacher",
            Architecture(1024, 4, 4, 16384, n_out=1024, qk_norm=True),
            V2_TEACHER,
            "v2",
            2_064_266_242,
            n_dims=1024,
            repo="geotessera/TESSERA-V-2.0-2B-Teacher",
        ),
        _v1_1("mpc", V1_1_MPC, "planetary-computer"),
        _v1_1("aws", V1_1_AWS, "earth-search"),
        ModelRecord(
            "v1.0",
            "v1.0",
            Architecture(128, 4, 4, 4096, pooling="gru", deep_reducer=False, final_norm=False),
            V1_0,
            "v1.0",
            45_828_226,
        ),
        ModelRecord(
            "v1.0-early",
            "v1.0-early",
            Architecture(128, 8, 8, 4096, pooling="torch_gru", deep_reducer=False, final_norm=False),
            V1_0,
            "v1.0",
            87_841_922,
        ),
    )
}
"""Every model by its name."""
