"""The same places seen worse: fewer clear dates, no radar, another orbit."""

import numpy as np

from benchmarks.quality.pixels import Pixels

CLEAR = (60, 40, 20, 10, 5)


def keep_clear(pixels: Pixels, n: int, seed: int = 0) -> Pixels:
    """Return them with at most `n` of each pixel's clear Sentinel-2 dates, drawn at random."""
    return pixels.with_arrays(s2_valid=thinned(pixels.arrays["s2_valid"], np.full(len(pixels), n), seed))


def half_clear(pixels: Pixels, seed: int = 0) -> Pixels:
    """Return them with half of each pixel's clear Sentinel-2 dates, drawn at random."""
    valid = pixels.arrays["s2_valid"]
    return pixels.with_arrays(s2_valid=thinned(valid, np.maximum(valid.sum(axis=1) // 2, 1), seed))


def thinned(valid: np.ndarray, n: np.ndarray, seed: int) -> np.ndarray:
    """Return (n, t) with `n` of each row's true values, drawn at random."""
    order = np.where(valid, np.random.default_rng(seed).random(valid.shape), 2)
    rank = order.argsort(axis=1).argsort(axis=1)
    return valid & (rank < n[:, None])


def without_radar(pixels: Pixels) -> Pixels:
    return pixels.with_arrays(s1=np.zeros_like(pixels.arrays["s1"]))


def one_orbit(pixels: Pixels, orbit: str) -> Pixels:
    seen = pixels.arrays["s1_orbit"] == orbit
    return pixels.with_arrays(s1=np.where(seen[:, None], pixels.arrays["s1"], 0))


def disjoint_halves(pixels: Pixels, seed: int = 0) -> list[Pixels]:
    """Return each place twice, of two halves of its dates that have none in common, in both sensors."""
    arrays = pixels.arrays
    valid, there = arrays["s2_valid"], (arrays["s1"] != 0).all(axis=-1)
    s2, s1 = (thinned(v, v.sum(axis=1) // 2, seed + k) for k, v in enumerate((valid, there)))
    halves = ((s2, s1), (valid & ~s2, there & ~s1))
    return [pixels.with_arrays(s2_valid=a, s1=np.where(b[..., None], arrays["s1"], 0)) for a, b in halves]


def sampled(pixels: Pixels, n: int, seed: int) -> Pixels:
    """Return one sampling as in pretraining: `n` dates of each sensor, drawn with replacement.

    Dates drawn twice stand once: between two samplings the difference is that much larger.
    """
    arrays, rng = pixels.arrays, np.random.default_rng(seed)

    def drawn(valid: np.ndarray) -> np.ndarray:
        order = np.where(valid, rng.random(valid.shape), 2).argsort(axis=1)
        rank = (rng.random((len(valid), n)) * np.maximum(valid.sum(axis=1), 1)[:, None]).astype(int)
        out = np.zeros_like(valid)
        np.put_along_axis(out, np.take_along_axis(order, rank, axis=1), True, axis=1)
        return out & valid

    there = (arrays["s1"] != 0).all(axis=-1)
    return pixels.with_arrays(s2_valid=drawn(arrays["s2_valid"]), s1=np.where(drawn(there)[..., None], arrays["s1"], 0))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of one with that of the other."""
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def apart(x: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the cosines of random pairs of different labels."""
    rng = np.random.default_rng(seed)
    i, j = rng.integers(len(x), size=(2, 20_000))
    differ = labels[i] != labels[j]
    return cosine(x[i[differ]], x[j[differ]])
