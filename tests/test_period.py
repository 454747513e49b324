"""Periods: what people write, read the way they mean it."""

from __future__ import annotations

from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_xr.errors import SchemaError
from tessera_xr.sentinel.bands import day_of_year
from tessera_xr.sentinel.period import Period, resolve_period, resolve_periods

SEASON = Period(date(2023, 10, 1), date(2024, 9, 30))


@pytest.mark.parametrize(
    "written",
    [
        ("2023-10-01", "2024-09-30"),
        ["2023-10-01", "2024-09-30"],
        slice("2023-10-01", "2024-09-30"),
        "2023-10-01/2024-09-30",
        ("2023-10", "2024-09"),
        (date(2023, 10, 1), datetime(2024, 9, 30, 23)),
        (np.datetime64("2023-10-01"), pd.Timestamp("2024-09-30")),
        SEASON,
    ],
)
def test_spans_however_written(written):
    assert resolve_period(written) == SEASON
    assert resolve_period(str(SEASON)) == SEASON


@pytest.mark.parametrize(
    "written", [2024, "2024", np.int64(2024), ("2024", "2024"), (2024, 2024), ("2024-01", "2024-12")]
)
def test_years_however_written(written):
    found = resolve_period(written)
    assert (found.year, found.days) == (2024, 366)
    assert SEASON.year is None


@pytest.mark.parametrize(
    "wrong",
    [
        True,
        2024.0,
        "spring",
        "2024-13-01/2024-14-01",
        (1, 2, 3),
        ("2024-01-01",),
        (None, "2024-01-01"),
        None,
        object(),
        0,
        99_999,
        slice(None),
        ("NaT", "NaT"),
        b"2024",
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(SchemaError, match="can't be read as a period"):
        resolve_period(wrong)


@pytest.mark.parametrize("several", [(2023, 2024), ("2023", "2024"), ("2023-01-01", "2024-01-02")])
def test_more_than_a_year_is_refused(several):
    with pytest.raises(SchemaError, match=r"at most 366.*\[2023, 2024\]"):
        resolve_period(several)


def test_backwards_is_refused():
    with pytest.raises(SchemaError, match="before it starts"):
        resolve_period(("2024-02-01", "2024-01-01"))


@given(st.dates(date(1990, 1, 1), date(2090, 1, 1)), st.integers(0, 365), st.integers(-400, 800))
def test_a_period_contains_its_days_and_no_others(start, length, offset):
    end = date.fromordinal(start.toordinal() + length)
    period = resolve_period((start, end))
    day = date.fromordinal(start.toordinal() + offset)
    late = np.datetime64(f"{day}T23:59:59", "ns")
    assert period.contains([late]).tolist() == [start <= day <= end]
    assert period.days == length + 1


def test_lists_are_several_periods():
    assert resolve_periods(None) is None
    assert resolve_periods(2024) == resolve_period(2024)
    assert resolve_periods([2023, 2024]) == [resolve_period(2023), resolve_period(2024)]
    assert resolve_periods(range(2020, 2022)) == resolve_periods(np.array([2020, 2021]))
    assert resolve_periods(("2023-10-01", "2024-09-30")) == SEASON
    for wrong, message in (([], "empty"), ([2024, "2024"], "twice")):
        with pytest.raises(SchemaError, match=message):
            resolve_periods(wrong)


@given(st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)))
def test_day_of_year_is_pythons(when):
    assert day_of_year([np.datetime64(when)]).tolist() == [when.timetuple().tm_yday]
