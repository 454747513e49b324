"""The span of time that one embedding stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from tessera_xr.errors import SchemaError

PeriodLike: TypeAlias = "int | str | tuple[Any, Any] | slice | Period"
MAX_DAYS = 366


@dataclass(frozen=True, order=True)
class Period:
    """Whole days from `start` to `end`, both included; at most 366 of them.

    Examples
    --------
    >>> resolve_period(2024)
    Period(start=datetime.date(2024, 1, 1), end=datetime.date(2024, 12, 31))
    >>> str(resolve_period(("2023-10-01", "2024-09-30")))
    '2023-10-01/2024-09-30'
    """

    start: date
    """First day."""
    end: date
    """Last day, part of the period."""

    def __str__(self) -> str:
        return f"{self.start.isoformat()}/{self.end.isoformat()}"

    @property
    def days(self) -> int:
        """Number of days."""
        return (self.end - self.start).days + 1

    @property
    def year(self) -> int | None:
        """The calendar year that this is, else None."""
        whole = (self.start.month, self.start.day, self.end.month, self.end.day) == (1, 1, 12, 31)
        return self.start.year if whole and self.start.year == self.end.year else None

    def contains(self, times: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Say which of the `times` (datetime64) fall into the period."""
        days = np.asarray(times, dtype="datetime64[D]")
        return (days >= np.datetime64(self.start)) & (days <= np.datetime64(self.end))


def resolve_period(period: PeriodLike) -> Period:
    """Return the `Period` that a year, a pair of dates, a slice or an ISO interval "start/end" means.

    Raises
    ------
    SchemaError
        If it can't be read, ends before it starts, or is longer than 366 days.
    """
    if isinstance(period, Period):
        return period
    if isinstance(period, (bool, float)):
        raise SchemaError(_cannot_read(period))
    if isinstance(period, (int, np.integer)):
        return Period(_day(period, last=False), _day(period, last=True))
    if isinstance(period, str) and period.isdigit() and len(period) == 4:
        return resolve_period(int(period))
    pair: Any = period.split("/") if isinstance(period, str) else period
    if isinstance(pair, slice):
        pair = (pair.start, pair.stop)
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise SchemaError(_cannot_read(period))
    start, end = _day(pair[0], last=False), _day(pair[1], last=True)
    if end < start:
        raise SchemaError(f"the period ends ({end}) before it starts ({start}); give the earlier date first")
    found = Period(start, end)
    if found.days > MAX_DAYS:
        raise SchemaError(
            f"the period {found} has {found.days} days, but one embedding stands for at most {MAX_DAYS}; "
            f"for several years give embed a list of periods, for example period=[{start.year}, {start.year + 1}]"
        )
    return found


def resolve_periods(periods: PeriodLike | Sequence[PeriodLike] | None) -> list[Period] | Period | None:
    """Return one `Period`, a list of them if a list was given, or None; a pair of years in a list is two periods."""
    if periods is None:
        return None
    if isinstance(periods, (list, np.ndarray, range)):
        if len(periods) == 0:
            raise SchemaError("the list of periods is empty; give at least one year or date range")
        found = [resolve_period(p) for p in periods]
        if len(set(found)) < len(found):
            raise SchemaError(f"a period is given twice: {', '.join(map(str, found))}")
        return found
    return resolve_period(cast("PeriodLike", periods))


def _day(value: Any, *, last: bool) -> date:
    """Return the first or the last day that a date, year or text means; a bare number is a year."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        if isinstance(value, (int, np.integer)):
            return date(int(value), 12, 31) if last else date(int(value), 1, 1)
        stamp: Any = pd.Period(value) if isinstance(value, str) else pd.Timestamp(value)
        if isinstance(stamp, pd.Period):  # "2023-10" means its first or last day
            stamp = stamp.end_time if last else stamp.start_time
        return date(stamp.year, stamp.month, stamp.day)
    except (ValueError, TypeError) as error:
        raise SchemaError(_cannot_read(value)) from error


def _cannot_read(period: object) -> str:
    return (
        f"{period!r} can't be read as a period; give a year (2024), a pair of dates ('2023-10-01', '2024-09-30'), "
        "or a list of either"
    )
