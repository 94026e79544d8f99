"""Read a source column as times: numbers, ISO 8601 text or timestamps become milliseconds UTC."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from raypipe.errors import ConfigError
from raypipe.events.mapping import Times
from raypipe.events.readers import EXACT, Read, Unreadable, floats_of, mask_of, need_number

_ISO = (
    r"^\s*(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(?::(\d{2}(?:\.\d{1,9})?))?"
    r" ?(?:([Zz])|([+-]\d{2})(?::?(\d{2}))?)?)?\s*$"
)


def read_time(times: Times, values: pl.Series) -> Read:
    """Milliseconds UTC, rounded down; raises Unreadable when the unit doesn't fit the type."""
    unit = times.unit or _unit_of(values.dtype)
    if unit == "datetime":
        if values.dtype not in (pl.Datetime, pl.Date, pl.Null):
            raise Unreadable("time_unit 'datetime' reads timestamps and dates.")
        return _datetime(times, values)
    if unit == "iso8601":
        if values.dtype not in (pl.String, pl.Null):
            raise Unreadable("time_unit 'iso8601' reads text.")
        return _iso8601(times, values.cast(pl.String))
    need_number(values)
    return _number(unit, values)


def _unit_of(dtype: pl.DataType) -> str:
    if dtype == pl.String:
        return "iso8601"
    return "datetime" if dtype in (pl.Datetime, pl.Date) else "ms"


def _number(unit: str, values: pl.Series) -> Read:
    numbers = floats_of(values).fill_null(np.nan).to_numpy()
    with np.errstate(invalid="ignore"):
        usable = np.abs(numbers) < EXACT
    kept = np.where(usable, numbers, 0.0)
    if unit == "s":
        # Fractions of a second are decimal in origin: the nearest millisecond is the one meant.
        millis = np.rint(kept * 1000.0).astype(np.int64)
    else:
        millis = np.floor(kept).astype(np.int64) // (1000 if unit == "us" else 1)
    failed = mask_of(values.is_not_null()) & ~usable
    return Read(pa.array(millis, mask=~usable), failed, f"must be a number of {unit} since 1970")


def _datetime(times: Times, values: pl.Series) -> Read:
    if values.dtype in (pl.Date, pl.Null):
        values = values.cast(pl.Datetime("ms"))
    moments = values.dt.cast_time_unit("ms")
    if isinstance(moments.dtype, pl.Datetime) and moments.dtype.time_zone is None:
        moments = _on_the_clock(times, moments)
    failed = mask_of(values.is_not_null() & moments.is_null())
    return Read(moments.dt.epoch("ms").to_arrow(), failed, f"must be {_shown(times)}")


def _iso8601(times: Times, text: pl.Series) -> Read:
    parts = text.str.extract_groups(_ISO).struct.unnest()
    day, minute, second, zulu, hours, minutes = parts.get_columns()
    written = day + "T" + minute.fill_null("00:00") + ":" + second.fill_null("00")
    naive = written.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    naive = naive.dt.cast_time_unit("ms")
    negative = hours.str.starts_with("-")
    offset = hours.cast(pl.Int64).abs() * 60 + minutes.fill_null("00").cast(pl.Int64)
    sign = pl.select(pl.when(negative).then(-60_000).otherwise(60_000)).to_series()
    exact = naive.dt.epoch("ms") - (offset * sign).fill_null(0)
    local = _on_the_clock(times, naive).dt.epoch("ms")
    absolute = zulu.is_not_null() | hours.is_not_null()
    result = pl.select(pl.when(absolute).then(exact).otherwise(local)).to_series()
    failed = mask_of(text.is_not_null() & result.is_null())
    return Read(result.to_arrow(), failed, f"must be ISO 8601, and {_shown(times)}")


def _on_the_clock(times: Times, naive: pl.Series) -> pl.Series:
    """Wall-clock times of the zone as moments; null where the zone's clock never showed them."""
    ambiguous: Any = "null" if times.ambiguous == "refuse" else times.ambiguous
    try:
        return naive.dt.replace_time_zone(times.zone, ambiguous=ambiguous, non_existent="null")
    except pl.exceptions.ComputeError as e:
        raise ConfigError(f"time_zone {times.zone!r}: {e}") from e


def _shown(times: Times) -> str:
    if times.ambiguous == "refuse":
        return f"a time that the clocks of {times.zone} showed exactly once (see `ambiguous`)"
    return f"a time that the clocks of {times.zone} showed"
