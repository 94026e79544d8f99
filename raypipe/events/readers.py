"""Read a source column as one kind of field: lenient about how a value is written, strict about
what it is. Times have their own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from raypipe.events.mapping import ColumnRule
from raypipe.events.schema import Kind
from raypipe.events.text import Mask

EXACT = 2**53
"""Whole numbers below it survive the way through a float."""

_DIGITS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF"), 0),
    **dict.fromkeys(("UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}


class Unreadable(TypeError):
    """No value of the column's type can be read as that kind; the text says what can."""


@dataclass(frozen=True, slots=True)
class Read:
    """Values in the field's physical type. ``failed`` rows had a value that couldn't be read."""

    values: pa.Array
    failed: Mask
    reason: str


Reader = Callable[[ColumnRule, pl.Series, str], Read]


def minor_digits(currency: str) -> int:
    """Decimal digits of a currency's minor unit (ISO 4217).

    >>> minor_digits("EUR"), minor_digits("JPY")
    (2, 0)
    """
    return _DIGITS.get(currency, 2)


def mask_of(series: pl.Series) -> Mask:
    """A boolean series as numpy; null counts as false."""
    found: Mask = series.fill_null(False).to_numpy().astype(np.bool_)
    return found


def floats_of(values: pl.Series) -> pl.Series:
    """Numbers, or text of numbers, as float64; what is no number is null."""
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    return values.cast(pl.Float64, strict=False)


def need_number(values: pl.Series) -> None:
    """Raise Unreadable unless the column holds numbers or text."""
    if not (values.dtype.is_numeric() or values.dtype in (pl.String, pl.Null)):
        raise Unreadable("Numbers and text of numbers can be.")


def _text(column: ColumnRule, values: pl.Series, _: str) -> Read:
    failed = np.zeros(len(values), np.bool_)
    if values.dtype.is_float() or values.dtype.is_decimal():
        # 12345.0 is how a table with gaps writes the id 12345.
        floats = values.cast(pl.Float64)
        whole = floats.cast(pl.Int64, strict=False)
        exact = (whole == floats) & (floats.abs() < EXACT)
        failed = mask_of(floats.is_not_null()) & ~mask_of(exact)
        values = whole
    elif not (values.dtype in (pl.String, pl.Boolean, pl.Null) or values.dtype.is_integer()):
        raise Unreadable("Text, whole numbers and booleans can be.")
    text = values.cast(pl.String)
    if column.prefix and len(text):
        text = pl.Series([column.prefix]) + text
    reason = "must be text or a whole number, not a fraction"
    return Read(text.to_arrow().cast(pa.string()), failed, reason)


def _integer(column: ColumnRule, values: pl.Series, currency: str) -> Read:
    need_number(values)
    factor = 10 ** minor_digits(currency) if column.unit == "major" else column.scale
    present = mask_of(values.is_not_null())
    result = np.zeros(len(values), np.int64)
    done = np.zeros(len(values), np.bool_)
    if factor == int(factor) and (values.dtype.is_integer() or values.dtype == pl.String):
        # Exact over all of int64; text that is no whole number goes the way of floats.
        digits = values.str.strip_chars() if values.dtype == pl.String else values
        integers = digits.cast(pl.Int64, strict=False)
        limit = (2**63 - 1) // int(factor)
        done = mask_of(integers.is_between(-limit, limit))
        result = integers.fill_null(0).to_numpy() * done * int(factor)
    floats = floats_of(values).fill_null(np.nan).to_numpy() * float(factor)
    with np.errstate(invalid="ignore"):
        rounded = np.rint(floats)
        # A decimal fraction times its scale misses the whole number by a few last places.
        slack = np.maximum(1e-6, np.abs(floats) * 2.0**-50) if factor != 1 else 0.0
        near = (np.abs(floats - rounded) <= slack) | column.round
        usable = ~done & near & (np.abs(rounded) < EXACT)
    result[usable] = rounded[usable].astype(np.int64)
    done |= usable
    unit = " in minor units" if column.field.kind is Kind.AMOUNT else ""
    reason = f"must be a number, and whole{unit} unless the mapping says `round = true`"
    return Read(pa.array(result, pa.int64(), mask=~done), present & ~done, reason)


def _number(column: ColumnRule, values: pl.Series, _: str) -> Read:
    need_number(values)
    floats = floats_of(values)
    failed = mask_of(values.is_not_null() & floats.is_null())
    return Read((floats * column.scale).to_arrow(), failed, "must be a number")


def _boolean(_: ColumnRule, values: pl.Series, __: str) -> Read:
    if values.dtype == pl.String:
        words = {"true": True, "1": True, "false": False, "0": False}
        lowered = values.str.strip_chars().str.to_lowercase()
        read = lowered.replace_strict(words, default=None, return_dtype=pl.Boolean)
    elif values.dtype.is_numeric():
        digits = values.cast(pl.Float64)
        read = pl.select(pl.when((digits == 0) | (digits == 1)).then(digits == 1)).to_series()
    elif values.dtype in (pl.Boolean, pl.Null):
        read = values
    else:
        raise Unreadable("Booleans, 0 and 1, 'true' and 'false' can be.")
    failed = mask_of(values.is_not_null() & read.is_null())
    return Read(read.to_arrow().cast(pa.bool_()), failed, "must be true or false, 1 or 0")


READERS: dict[Kind, Reader] = {
    Kind.STRING: _text,
    Kind.CHOICE: _text,
    Kind.CURRENCY: _text,
    Kind.INTEGER: _integer,
    Kind.AMOUNT: _integer,
    Kind.NUMBER: _number,
    Kind.BOOLEAN: _boolean,
}
