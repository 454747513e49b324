"""`embed_pixels`: arrays in, arrays out, and every fault of theirs named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera_xr as txr
from tessera_xr.embedding.engine import encode
from tessera_xr.errors import SchemaError


def close(left: Any, right: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def public(pixels: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `embed_pixels` for the same pixels."""
    rest = {k: v for k, v in pixels.items() if k != "s1_descending"}
    return rest | {"s1_orbit": np.where(pixels["s1_descending"], "descending", "ascending")}


def test_embed_pixels_is_encode(weights, make_encoder, make_pixels):
    pixels = make_pixels()
    expected = encode(make_encoder(), **pixels, dims=128).values
    found = txr.embed_pixels(**public(pixels), model=weights, device="cpu")
    close(found, expected)
    lists = {name: np.asarray(a).tolist() for name, a in public(pixels).items()}
    close(txr.embed_pixels(**lists, model=weights, device="cpu"), expected)
    floats = public(pixels) | {"s2": pixels["s2"].astype(np.float64)}
    close(txr.embed_pixels(**floats, model=weights, device="cpu"), expected)
    codes, scales = txr.embed_pixels(**public(pixels), model=weights, device="cpu", dtype="int8", dims=16)
    assert codes.shape == (24, 16)
    close((codes * scales[:, None])[1:], expected[1:, :16], 0.03)


def test_embed_pixels_assumes_little(weights, make_pixels):
    arguments = public(make_pixels())
    arguments["s2"][~arguments["s2_valid"]] = 0
    expected = txr.embed_pixels(**arguments, model=weights, device="cpu")
    del arguments["s2_valid"]
    close(txr.embed_pixels(**arguments, model=weights, device="cpu"), expected)
    optical = {k: v for k, v in arguments.items() if k.startswith("s2")}
    alone = txr.embed_pixels(**optical, model=weights, device="cpu")
    assert np.flatnonzero(np.isnan(alone[:, 0])).tolist() == [0, 1]
    orbits = [
        txr.embed_pixels(**arguments | {"s1_orbit": o}, model=weights, device="cpu")
        for o in ("ascending", ["ascending"] * 15)
    ]
    close(*orbits)


FAULTS = {
    "nothing": ({"s2": None, "s1": None}, "give s2, s1 or both"),
    "bands": ({"s2": np.ones((24, 21, 9), int)}, r"s2 must have shape \(n, t, 10\)"),
    "pixels": ({"s1": np.ones((23, 15, 2), int)}, r"s1 must have shape .* here \(24, t, 2\)"),
    "NaN": ({"s2": np.full((24, 21, 10), np.nan)}, "whole numbers"),
    "text": ({"s2": np.full((24, 21, 10), "a")}, "whole numbers"),
    "no days": ({"s2_doy": None}, "s2_doy must have shape"),
    "days": ({"s2_doy": np.arange(20)}, "s2_doy must have shape"),
    "day 0": ({"s2_doy": np.arange(21)}, "from 1 to 366"),
    "day 367": ({"s1_doy": np.arange(353, 368)}, "from 1 to 366"),
    "fractions": ({"s1_doy": np.linspace(1, 2, 15)}, "whole numbers from 1"),
    "validity": ({"s2_valid": np.ones((24, 20), bool)}, r"s2_valid must have shape \(n, t\) = \(24, 21\)"),
    "orbit": ({"s1_orbit": "up"}, r"'ascending' or 'descending' .* not \['up'\]"),
    "no orbit": ({"s1_orbit": None}, "'ascending' or 'descending'"),
    "dtype": ({"dtype": "float16"}, "choose 'float32' or 'int8'"),
    "budget": ({"token_budget": 0}, "at least 1, not 0"),
    "budget, text": ({"token_budget": "all"}, "not 'all'"),
    "dims": ({"dims": 17}, "no embedding of 17 values"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_arrays(case, weights, make_pixels):
    change, message = FAULTS[case]
    with pytest.raises(SchemaError, match=message):
        txr.embed_pixels(**public(make_pixels()) | {"model": weights, "device": "cpu"} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2": np.full((3, 4, 10), 0.3)}, "s2 must hold whole numbers.*reflectance x 10,000"),
        ({"s1": np.full((3, 4, 2), -12.5)}, r"s1 must hold whole numbers.*\(dB \+ 50\) \* 200"),
        ({"s1": np.full((3, 4, 2), -12)}, "s1 must hold whole numbers of at least 0"),
        ({"s1_orbit": ["ascending"] * 3}, r"s1_orbit must have shape \(t,\)"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"token_budget": None}, "token_budget must be"),
        ({"token_budget": 2.5}, "token_budget must be"),
    ],
)
def test_units_and_options_are_checked(change, message, weights):
    pixels = {
        "s2": np.full((3, 4, 10), 900),
        "s2_doy": [10, 20, 30, 40],
        "s1": np.full((3, 4, 2), 7000),
        "s1_doy": [11, 21, 31, 41],
        "s1_orbit": "ascending",
    }
    assert txr.embed_pixels(**pixels, model=weights).shape == (3, 128)
    with pytest.raises(SchemaError, match=message):
        txr.embed_pixels(**{**pixels, **change}, model=weights)
