"""Change between dates and along years: against plain arithmetic, and against the fire that the sample shows."""

from __future__ import annotations

import tracemalloc
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from scipy.ndimage import binary_dilation
from sklearn.metrics import roc_auc_score

from tessera_xr import tutorial
from tessera_xr.analysis import significance as module
from tessera_xr.analysis.change import change, trend
from tessera_xr.analysis.significance import ChangeNull, change_significance, fit_change_null
from tessera_xr.embedding.quantize import dequantize, quantize
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.errors import GridError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid


def made(values: np.ndarray, times: Any, **counts: np.ndarray) -> xr.Dataset:
    """Return embeddings of values (time, y, x, band) float32."""
    dims = ("time", "y", "x")
    box = GeoBox.from_bbox((600_000, 5_000_000, 600_000 + 10 * values.shape[2], 5_000_000 + 10 * values.shape[1]),
                           "EPSG:32631", resolution=10)  # fmt: skip
    some = np.full(values.shape[:3], 30, np.uint16)
    variables = {name: xr.DataArray(counts.get(name, some), dims=dims) for name in COUNTS}
    variables["embeddings"] = xr.DataArray(values.astype(np.float32), dims=(*dims, "band"))
    variables = {name: array.assign_coords(time=times) for name, array in variables.items()}
    return build_embeddings(variables, with_grid(xr.Dataset(), box), {"model": "m", "weights_sha256": "a"})


@pytest.fixture
def emb() -> xr.Dataset:
    """Five years of 9 x 7 pixels; (0, 0) never has data, (1, 1) not in 2020."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 7, 32)) + rng.normal(size=(5, 9, 7, 32)) * rng.uniform(0.1, 1, (9, 7, 1))
    values[:, 0, 0] = values[2, 1, 1] = np.nan
    return made(values, np.arange(2018, 2023))


@pytest.fixture(scope="module")
def caldor() -> xr.Dataset:
    return tutorial.embeddings()


@pytest.fixture(scope="module")
def loss() -> xr.DataArray:
    return tutorial.labels().lossyear


def vectors(emb: xr.Dataset, year: int) -> np.ndarray:
    """Return codes or values of a year, (y, x, band) float64."""
    return emb.embeddings.sel(time=year).transpose("y", "x", "band").values.astype(float)


def expected(emb: xr.Dataset, a: int, b: int) -> np.ndarray:
    p, q = vectors(emb, a), vectors(emb, b)
    with np.errstate(invalid="ignore"):
        return 1 - (p * q).sum(-1) / np.sqrt((p**2).sum(-1) * (q**2).sum(-1))


def shuffled(emb: xr.Dataset) -> xr.Dataset:
    """Return the same embeddings with bands first in memory."""
    return emb.assign(embeddings=emb.embeddings.copy(data=np.ascontiguousarray(emb.embeddings.values)))


# Change ---------------------------------------------------------------------------------------------------------------


def test_it_is_the_cosine_distance(emb):
    found = change(emb, 2018, 2021)
    np.testing.assert_allclose(found, expected(emb, 2018, 2021), atol=2e-7)
    assert found.dtype == np.float32
    assert np.isnan(found[0, 0])
    assert int(np.isnan(found).sum()) == 1
    assert np.isnan(change(emb, 2018, 2020)[1, 1])
    xr.testing.assert_equal(change(emb, 2021, 2018), found)
    assert abs(change(emb, 2019, 2019)).max() < 1e-7
    opposite = emb.isel(time=0).assign(embeddings=-emb.embeddings.isel(time=0))
    np.testing.assert_allclose(change(emb.isel(time=0), opposite).values[1:], 2, atol=1e-6)


def test_codes_are_enough(emb):
    codes = quantize(emb)
    found = change(codes, 2018, 2021)
    np.testing.assert_allclose(found, expected(codes, 2018, 2021), atol=2e-7)
    assert int(np.isnan(found).sum()) == 1
    rescaled = codes.assign(scales=codes.scales * np.random.default_rng(1).uniform(0.1, 9, codes.scales.shape))
    xr.testing.assert_equal(change(rescaled, 2018, 2021), found)
    for nothing in (np.nan, np.inf):
        blank = codes.assign(scales=codes.scales.where(codes.x > codes.x[1], nothing))
        assert np.isnan(change(blank, 2018, 2021)[:, :2]).all()
        assert not np.isnan(change(blank, 2018, 2021)[:, 2:]).any()


def test_int8_is_within_the_bound_of_quantisation(emb):
    codes = quantize(emb)
    # an error of at most scale / 2 a value turns a vector by at most asin(that error's length / its own)
    error = codes.scales.values / 2 * np.sqrt(emb.sizes["band"])
    length = np.sqrt((emb.embeddings**2).sum("band", skipna=False)).values
    turn = np.arcsin(error / length)
    bound = (turn[0] + turn[3])[1:]
    off = abs(change(codes, 2018, 2021) - change(emb, 2018, 2021)).values[1:]
    assert (off <= bound).all()
    assert bound.max() < 0.1


@pytest.mark.parametrize("form", [lambda e: e, quantize], ids=["float32", "int8"])
def test_any_layout_gives_the_same(emb, form):
    emb = form(emb)
    whole = change(emb, 2018, 2021)
    for other in (emb.chunk(y=4, x=3, time=2, band=5), emb.chunk(time=1, y=-1, x=2)):
        lazy = change(other, 2018, 2021)
        assert lazy.chunks is not None
        xr.testing.assert_identical(lazy.compute(), whole)
    xr.testing.assert_identical(change(shuffled(emb), 2018, 2021), whole)
    part = {"y": slice(1, 8, 3), "x": slice(1, 6)}
    xr.testing.assert_identical(change(emb.isel(part), 2018, 2021), whole.isel(part))
    order = np.random.default_rng(2).permutation(9)
    xr.testing.assert_equal(change(emb.isel(y=order), 2018, 2021), whole.isel(y=order))
    points = emb.tessera.sample([(600_035, 5_000_025), (600_055, 5_000_065)], crs="EPSG:32631")
    np.testing.assert_array_equal(change(points, 2018, 2021), whole.values[[6, 2], [3, 5]])
    assert change(emb.isel(y=6, x=3), 2018, 2021) == whole[6, 3]


def test_the_result_is_labelled(emb):
    with xr.set_options(keep_attrs=False):
        found = change(quantize(emb), 2018, 2021)
    assert found.name == "change"
    assert set(found.coords) == {"y", "x", "spatial_ref"}
    assert geobox_of(found) == geobox_of(emb)
    assert found.attrs["grid_mapping"] == "spatial_ref"
    assert (found.attrs["before"], found.attrs["after"], found.attrs["model"]) == ("2018", "2021", "m")


def test_dates_and_maps_can_be_named_in_several_ways(emb):
    found = change(emb, 2018, 2021)
    dated = emb.assign_coords(time=np.array([f"{y}-07-01" for y in emb.time.values], dtype="datetime64[ns]"))
    for before, after in ((2018, 2021), ("2018-07", np.datetime64("2021-07-01")), ("2018", "2021-07-01")):
        xr.testing.assert_equal(change(dated, before, after), found)
    first, last = emb.sel(time=2018), emb.sel(time=2021)
    xr.testing.assert_equal(change(last, first), found)
    xr.testing.assert_equal(change(emb, 2018, last), found)
    xr.testing.assert_equal(change(emb, emb.sel(time=[2018]), quantize(last)), change(emb, first, quantize(last)))
    assert change(last, first).attrs["before"] == "2018"
    nameless = first.drop_vars("time").assign_attrs(period="2018-01-01/2018-12-31")
    assert change(last, nameless).attrs["before"] == "2018-01-01/2018-12-31"


def test_faults(emb):
    with pytest.raises(SchemaError, match=r"2030 is 0 of the dates; choose one of 2018, 2019"):
        change(emb, 2018, 2030)
    with pytest.raises(SchemaError, match="these embeddings have 5 dates; say which"):
        change(emb, 2018)
    with pytest.raises(SchemaError, match="no `time`"):
        change(emb.sel(time=2018), 2018, 2019)
    dated = emb.assign_coords(time=np.array(["2018-01-01", "2018-07-01", *3 * ["2020-01-01"]], "datetime64[ns]"))
    for wrong in ("2018", "summer"):
        with pytest.raises(SchemaError, match="dates; choose one of 2018-01-01, 2018-07-01"):
            change(dated, wrong, 2020)
    with pytest.raises(SchemaError, match="needs embeddings"):
        change(emb.drop_vars("embeddings"), 2018, 2020)
    first, last = emb.sel(time=2018), emb.sel(time=2021)
    with pytest.raises(VersionMismatchError, match="differ in model"):
        change(last, first.assign_attrs(model="other"))
    with pytest.raises(VersionMismatchError, match="different lengths"):
        change(last, first.isel(band=slice(16)))
    for other in (first.isel(x=slice(3)), first.assign_coords(x=first.x + 10), first.odc.assign_crs("EPSG:32632")):
        with pytest.raises(GridError, match="different grids"):
            change(last, other)


@pytest.mark.parametrize("strided", [False, True])
def test_it_needs_little_memory(strided):
    size = 128
    values = np.random.default_rng(0).integers(-127, 128, (4, size, 2 * size, 128)).astype(np.int8)
    ones = xr.DataArray(np.ones(values.shape[:3], np.float32), dims=("time", "y", "x"))
    emb = made(np.zeros((4, size, 2 * size, 1)), np.arange(4)).drop_dims("band")
    emb = emb.assign(embeddings=(("time", "y", "x", "band"), values), scales=ones).transpose("time", "band", ...)
    emb = emb.isel(x=slice(1, None, 2)) if strided else emb
    codes = emb.embeddings.nbytes
    for function, share in ((lambda: change(emb, 0, 2), 0.5), (lambda: trend(emb), 1.0)):
        function()
        tracemalloc.start()
        function()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.4 * share * codes


# Radar ----------------------------------------------------------------------------------------------------------------


def without_radar(emb: xr.Dataset, year: int, n_columns: int) -> xr.Dataset:
    gone = (emb.time == year) & (emb.x < emb.x[n_columns]) if n_columns < emb.sizes["x"] else emb.time == year
    return emb.assign({name: emb[name].where(~gone, 0).astype(np.uint16) for name in COUNTS[1:]})


@pytest.mark.parametrize("lazy", [False, True])
def test_a_year_without_radar_is_told(emb, lazy):
    emb = without_radar(emb, 2019, 7)
    emb = emb.chunk(y=4) if lazy else emb
    words = "100% of the pixels have Sentinel-1 observations in only one of 2018 and 2019.*0.13 to 0.25"
    if lazy:
        found = change(emb, 2018, 2019)
        with pytest.warns(TesseraWarning, match="Sentinel-1 observations in only one of 2018 and 2019"):
            found = found.compute()
    else:
        with pytest.warns(TesseraWarning, match=words.replace("100%", "98%")) as caught:
            found = change(emb, 2018, 2019)
        assert [w.filename for w in caught if w.category is TesseraWarning] == [__file__]
    np.testing.assert_allclose(found, expected(emb, 2018, 2019), atol=2e-7)
    with pytest.warns(TesseraWarning, match="in some of the years"):
        trend(emb).compute()


def test_no_warning_without_reason(emb):
    with warnings.catch_warnings():
        warnings.simplefilter("error", TesseraWarning)
        change(without_radar(emb, 2019, 7), 2018, 2020)  # 2019 isn't asked for
        neither = without_radar(without_radar(emb, 2018, 7), 2019, 7)
        change(neither, 2018, 2019)
        change(without_radar(emb, 2019, 7).drop_vars(COUNTS[1]), 2018, 2019)  # nobody knows
        few = emb.isel(x=[0] * 1 + [1, 2])
        only = few.s1_asc_obs_count.copy(data=np.where(np.isnan(few.embeddings[:, 0]), 0, 9).astype(np.uint16))
        change(few.assign(s1_asc_obs_count=only, s1_desc_obs_count=only), 2018, 2020)  # no data isn't no radar
        one_orbit = emb.s1_asc_obs_count.where(emb.time != 2019, 0).astype(np.uint16)
        change(emb.assign(s1_asc_obs_count=one_orbit), 2018, 2019)


# Trend and break ------------------------------------------------------------------------------------------------------


def by_hand(series: np.ndarray, years: np.ndarray) -> tuple[float, ...]:
    """Return the line and the step through one series (t, band), on the vectors themselves."""
    there = np.isfinite(series).all(axis=1)
    unit = series[there] / np.linalg.norm(series[there], axis=1, keepdims=True)
    x = years[there]
    residual = ((unit - unit.mean(axis=0)) ** 2).sum()
    slope, offset = np.polyfit(x, unit, 1)
    line = ((unit - np.outer(x, slope) - offset) ** 2).sum()
    steps = []
    for k in range(1, len(x)):
        before, after = unit[:k].mean(axis=0), unit[k:].mean(axis=0)
        left = ((unit[:k] - before) ** 2).sum() + ((unit[k:] - after) ** 2).sum()
        steps.append((1 - left / residual, x[k], 1 - before @ after / np.linalg.norm(before) / np.linalg.norm(after)))
    r2, year, apart = max(steps)
    return float(np.linalg.norm(slope)), 1 - line / residual, year, apart, r2


NAMES = ["speed", "speed_r2", "break_year", "break_distance", "break_r2"]


def test_trend_is_least_squares_on_unit_vectors(emb):
    found = trend(emb)
    assert list(found.data_vars) == NAMES
    series = emb.embeddings.transpose("y", "x", "time", "band").values.astype(float)
    for i in range(9):
        for j in range(7):
            values = [float(found[name][i, j]) for name in NAMES]
            if (i, j) == (0, 0):
                assert np.isnan(values).all()
            else:
                np.testing.assert_allclose(values, by_hand(series[i, j], emb.time.values), rtol=1e-5, atol=1e-6)


def test_trend_of_any_form_is_the_same(emb):
    found = trend(emb)
    assert geobox_of(found) == geobox_of(emb)
    assert all(found[name].dtype == np.float32 for name in NAMES)
    assert {(found[name].attrs["grid_mapping"], found[name].attrs["model"]) for name in NAMES} == {("spatial_ref", "m")}
    assert len({found[name].attrs["long_name"] for name in NAMES}) == 5
    lazy = trend(emb.chunk(time=2, y=4, x=3))
    assert all(lazy[name].chunks is not None for name in NAMES)
    xr.testing.assert_allclose(lazy.compute(), found, rtol=1e-6)
    xr.testing.assert_identical(trend(shuffled(emb)), found)
    xr.testing.assert_identical(trend(emb.isel(time=[3, 0, 4, 1, 2])), found)
    codes = quantize(emb)
    xr.testing.assert_allclose(trend(codes), trend(dequantize(codes)), rtol=1e-4, atol=1e-5)
    part = {"y": slice(2, 9, 2), "x": slice(1, 5)}
    xr.testing.assert_identical(trend(codes.isel(part)), trend(codes).isel(part))
    dated = trend(emb.assign_coords(time=np.array([f"{y}-07-02" for y in emb.time.values], "datetime64[ns]")))
    xr.testing.assert_allclose(dated.drop_vars("break_year"), found.drop_vars("break_year"), rtol=1e-3)
    np.testing.assert_allclose(dated.break_year - found.break_year, found.speed * 0 + 0.5, atol=0.005)
    points = trend(codes.tessera.sample([(600_035, 5_000_025), (600_055, 5_000_065)], crs="EPSG:32631"))
    np.testing.assert_array_equal(points.speed, trend(codes).speed.values[[6, 2], [3, 5]])
    assert trend(codes.isel(y=6, x=3)).break_distance == trend(codes).break_distance[6, 3]


def test_the_year_of_a_step_is_found():
    rng = np.random.default_rng(3)
    years = np.array([2015, 2016, 2018, 2019, 2020, 2021, 2024])
    first, second = rng.normal(size=(2, 1, 5, 16))
    breaks = np.array([2016, 2018, 2019, 2021, 2024])
    values = np.where((years[:, None] >= breaks)[:, None, :, None], second, first) + rng.normal(size=(7, 1, 5, 16)) / 50
    values[3, 0, 2] = np.nan  # 2019, the first year after, isn't there: 2020 then
    found = trend(made(values, years))
    assert found.break_year.values[0].tolist() == [2016, 2018, 2020, 2021, 2024]
    assert (found.break_r2 > 0.99).all()
    np.testing.assert_allclose(found.break_distance[0], expected(made(values, years), 2015, 2024)[0], atol=0.02)


def test_years_without_a_scale_do_not_count(emb):
    codes = quantize(emb)
    for nothing in (np.nan, np.inf):
        blank = codes.assign(scales=codes.scales.where(codes.time != 2021, nothing))  # its codes are still there
        xr.testing.assert_allclose(trend(blank), trend(codes.sel(time=codes.time != 2021)), rtol=1e-6)


def test_short_series(emb):
    with pytest.raises(SchemaError, match="three dates or more along `time`, these are 2"):
        trend(emb.isel(time=slice(2)))
    with pytest.raises(SchemaError, match="these are 1"):
        trend(emb.sel(time=2018))
    three = trend(emb.isel(time=slice(3)))
    assert np.isnan(three.speed[1, 1]), "(1, 1) has two dates"
    assert int(np.isnan(three.speed).sum()) == 2


# Significance ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm() -> xr.Dataset:
    """Nine years of 60 x 60 pixels, each with a noise of its own; 2024 is odd everywhere, a fifth changed in 2021."""
    rng = np.random.default_rng(4)
    base, other = rng.normal(size=(2, 60, 60, 32))
    values = base + rng.normal(size=(9, 60, 60, 32)) * rng.uniform(0.1, 0.3, (60, 60, 1))
    values[4:, :12] += (other - base)[:12]
    values[7] += 0.5 * rng.normal(size=(60, 60, 32))
    return quantize(made(values, np.arange(2017, 2026)))


def test_the_false_positive_rate_is_what_it_says(calm):
    found = change_significance(calm, 2020, 2022)
    assert found.p_value.attrs["null"] == "2017-2019, 2018-2020, 2023-2025"
    xr.testing.assert_identical(found.distance, change(calm, 2020, 2022).rename("distance"))
    still, changed = found.p_value[12:], found.p_value[:12]
    for level in (0.2, 0.05, 0.01):
        assert float((still <= level).mean()) == pytest.approx(level, rel=0.25)
    assert float((changed <= 0.01).mean()) == 1
    quiet = change_significance(calm, 2018, 2019).p_value
    assert float((quiet <= 0.05).mean()) == pytest.approx(0.05, rel=0.25)


def test_p_values_count_the_null(emb):
    null = fit_change_null(emb, 1)
    values = [expected(emb, y, y + 1).ravel() for y in range(2018, 2022)]
    medians = [np.nanmedian(v) for v in values]
    calm = np.sort(np.argsort(medians)[:3])
    assert null.pairs == tuple((str(2018 + i), str(2019 + i)) for i in calm)
    kept = np.concatenate([values[i][np.isfinite(values[i])] for i in calm])
    np.testing.assert_allclose(null.distances, np.sort(kept), atol=2e-7)
    found = change_significance(emb, 2018, 2019, null=null)
    distance = found.distance.values
    share = (1 + (null.distances >= distance[..., None]).sum(-1)) / (1 + len(null.distances))
    np.testing.assert_allclose(found.p_value, np.where(np.isnan(distance), np.nan, share), rtol=1e-6)
    assert float(found.p_value.min()) >= 1 / (1 + len(null.distances))
    assert geobox_of(found) == geobox_of(emb)
    assert found.p_value.attrs["grid_mapping"] == "spatial_ref"
    lazy = change_significance(emb.chunk(y=4, x=3, time=1), 2018, 2019, null=null)
    assert lazy.p_value.chunks is not None
    xr.testing.assert_identical(lazy.compute(), found)
    np.testing.assert_array_equal(fit_change_null(emb.chunk(y=4)).distances, null.distances)


def test_the_null_says_what_it_is(emb):
    null = fit_change_null(emb)
    middle, high = np.percentile(null.distances, [50, 95])
    pairs = ", ".join(f"{a}-{b}" for a, b in null.pairs)
    said = f"ChangeNull: {len(null.distances)} distances over 1 year, half below {middle:.3f}, 95% below {high:.3f}"
    assert repr(null) == f"{said}, of {pairs}; model m"
    assert "over 2 years" in repr(fit_change_null(emb, 2))


def test_pixels_that_did_change_stay_out_of_the_null(calm, emb):
    clean = fit_change_null(calm.sel(time=[2017, 2019]), 2)
    spoilt = calm.sel(time=[2017, 2019]).copy(deep=True)
    spoilt.embeddings[1, :, 30:33] = -spoilt.embeddings[0, :, 30:33]  # 5 % of the map turned over
    kept = fit_change_null(spoilt, 2).distances
    assert kept.max() < 1
    assert np.quantile(kept, 0.95) == pytest.approx(np.quantile(clean.distances, 0.95), rel=0.05)
    with_fewer = without_radar(emb, 2019, 3)
    values = [expected(emb, y, y + 1)[:, 3 if y < 2020 else 0 :] for y in range(2018, 2022)]
    samples = [v[np.isfinite(v)] for v in values]
    kept = np.concatenate(sorted(samples, key=np.median)[:3])
    np.testing.assert_allclose(fit_change_null(with_fewer).distances, np.sort(kept), atol=2e-7)


def test_the_draw_is_seeded(calm, monkeypatch):
    monkeypatch.setattr(module, "FIT_PIXELS", 200)
    first, again, other = (fit_change_null(calm, 2, seed=s).distances for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(first) <= 200 * 4
    assert not np.array_equal(first, other)
    assert np.median(first) == pytest.approx(np.median(fit_change_null(calm, 2).distances), rel=0.2)


def test_faults_of_the_null(emb):
    with pytest.raises(SchemaError, match="no two dates are 4 years apart outside 2018 to 2022 among 2018"):
        change_significance(emb, 2018, 2022)
    with pytest.raises(SchemaError, match="the same date"):
        change_significance(emb, 2018, 2018)
    null = fit_change_null(emb, 1)
    with pytest.raises(SchemaError, match="dates 1 years apart, these are 2 apart"):
        change_significance(emb, 2018, 2020, null=null)
    foreign = ChangeNull(null.distances, 1.0, null.pairs, {"model": "other"})
    with pytest.raises(VersionMismatchError, match="differ in model"):
        change_significance(emb, 2018, 2019, null=foreign)
    with pytest.raises(SchemaError, match="no pixel has data"):
        fit_change_null(emb.isel(y=[0], x=[0]))
    with pytest.raises(SchemaError, match="no `time`"):
        fit_change_null(emb.sel(time=2018))


# The real place -------------------------------------------------------------------------------------------------------


def test_change_separates_the_fire(caldor, loss):
    found = change(caldor, 2020, 2022)
    assert roc_auc_score((loss == 21).values.ravel(), found.values.ravel()) >= 0.94
    calm = change(caldor, 2018, 2019)
    assert float(calm.median()) < 0.05 < 0.35 < float(found.where(loss == 21).median())


def test_significance_finds_the_fire_and_nothing_in_calm_years(caldor, loss):
    burnt = change_significance(caldor, 2020, 2022).p_value.where(loss == 21)
    assert float((burnt <= 0.05).sum() / (loss == 21).sum()) > 0.95
    for before, after in ((2017, 2018), (2018, 2019), (2017, 2019), (2024, 2025)):
        lost_then = (loss > before - 2000) & (loss <= after - 2000)
        p = change_significance(caldor, before, after).p_value.where(~lost_then)
        for level in (0.05, 0.01):
            assert float((p <= level).sum() / p.notnull().sum()) <= level


def test_each_calm_year_judged_by_another(caldor):
    rates = []
    for years, judged in (([2017, 2018], (2018, 2019)), ([2018, 2019], (2017, 2018))):
        null = fit_change_null(caldor.sel(time=years))
        rates.append(float((change_significance(caldor, *judged, null=null).p_value <= 0.05).mean()))
    assert 0.02 < np.mean(rates) <= 0.055


def test_calm_years_judged_by_all_other_calm_years_hold_the_rate(caldor, loss):
    """Off the clearing of 2020, with three pixels around it: those of Hansen are as wide, and lie askew."""
    off = ~binary_dilation(loss == 20, iterations=3)
    for pairs in (((2017, 2018), (2018, 2019), (2019, 2020)), ((2017, 2019), (2018, 2020))):
        for pair in pairs:
            nulls = [fit_change_null(caldor.sel(time=[*p]), p[1] - p[0]) for p in pairs if p != pair]
            pooled = np.sort(np.concatenate([null.distances for null in nulls]))
            p = replace(nulls[0], distances=pooled).p_value(change(caldor, *pair)).values[off]
            assert (p <= 0.05).mean() <= 0.05
            assert (p <= 0.3).mean() > 0.05, "not by calling nothing rare"


def test_the_fire_breaks_the_series(caldor, loss):
    found = trend(caldor)
    broke = found.break_year.where(loss == 21)
    assert float((broke == 2022).sum() / (loss == 21).sum()) > 0.99, "the fire of autumn 2021 shows in 2022"
    assert float((found.break_year.where(loss == 20) == 2020).sum() / (loss == 20).sum()) > 0.4
    assert float(found.break_distance.where(loss == 21).median()) > 3 * float(
        found.break_distance.where(loss == 0).median()
    )


def test_a_pixel_that_never_changes_has_no_trend_in_codes_as_in_numbers(tmp_path):
    emb = tutorial.embeddings().isel(y=slice(4), x=slice(4)).copy(deep=True)
    emb.embeddings.values[:, :, 0, 0] = emb.embeddings.values[:1, :, 0, 0]
    for form in (emb, emb.tessera.dequantize()):
        found = form.tessera.trend()
        assert float(found.speed[0, 0]) == pytest.approx(0, abs=1e-6)
        assert float(found.speed_r2[0, 0]) == float(found.break_r2[0, 0]) == 0
    with pytest.raises(SchemaError, match="dates that differ"):
        emb.isel(time=[0, 1, 1, 2]).tessera.trend()


def test_chunks_along_band_change_nothing():
    emb = tutorial.embeddings().isel(time=slice(3), y=slice(12), x=slice(12))
    lazy = emb.chunk(band=40, y=5)
    xr.testing.assert_identical(lazy.tessera.dequantize().compute(), emb.tessera.dequantize())
    xr.testing.assert_identical(lazy.tessera.cluster(3).compute(), emb.tessera.cluster(3))
    xr.testing.assert_allclose(lazy.tessera.components(2).compute(), emb.tessera.components(2))
