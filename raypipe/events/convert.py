"""Apply a mapping to a chunk of a table: source columns in, columns of an event type out.

A value that can't be read becomes null and its row is named as failed, with a reason; whether the
values that were read are acceptable is for ``validate`` to say. NaN in a column of floats and
empty text are how tables write "missing", and are read so.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import ConfigError
from raypipe.events.mapping import ColumnRule, StreamRule
from raypipe.events.readers import READERS, Unreadable, floats_of, mask_of
from raypipe.events.row import pointer
from raypipe.events.schema import Kind
from raypipe.events.text import Mask, is_text, plain_text
from raypipe.events.times import read_time


@dataclass(frozen=True, slots=True)
class Converted:
    """``table`` has the mapped fields for the rows of ``selected`` (places in the chunk);
    ``failures`` are (``pointer: reason``, mask over those rows).
    """

    table: pa.Table
    selected: npt.NDArray[np.int64]
    failures: list[tuple[str, Mask]]


def convert(rule: StreamRule, chunk: pa.Table, currency: str) -> Converted:
    """Map the rows of a chunk that pass the rule's ``where``.

    Raises ConfigError when the table lacks a column or has one of a type that the rule can't read;
    that depends on the schema alone, so an empty chunk tells it too.
    """
    _need_columns(rule, chunk)
    keep = np.ones(chunk.num_rows, np.bool_)
    for name, wanted in rule.where:
        keep &= _equals(rule, chunk, name, wanted)
    selected = np.flatnonzero(keep)
    if len(selected) < chunk.num_rows:
        chunk = chunk.take(pa.array(selected))
    columns: dict[str, pa.Array] = {}
    failures: list[tuple[str, Mask]] = []
    for column in rule.columns:
        target = column.field.name
        if column.source is None:
            columns[target] = _constant(rule, column, currency, chunk.num_rows)
            continue
        values, found = _read(rule, column, chunk, currency)
        failures += found
        if rule.shift_ms and target in ("event_time", "received_at"):
            values = pc.add(values, rule.shift_ms)
        columns[target] = values
    columns.setdefault("received_at", columns["event_time"])
    return Converted(pa.table(columns), selected, failures)


def _need_columns(rule: StreamRule, chunk: pa.Table) -> None:
    names = chunk.column_names
    for name in rule.sources:
        if names.count(name) != 1:
            near = get_close_matches(name, names, 1)
            meant = f"Did you mean {near[0]!r}? " if near and name not in names else ""
            raise ConfigError(
                f"{rule.name} reads column {name!r}, which the table has {names.count(name)} times",
                hint=f"{meant}Columns: " + ", ".join(names),
            )


def _constant(rule: StreamRule, column: ColumnRule, currency: str, rows: int) -> pa.Array:
    if column.field.kind is Kind.CURRENCY and column.const != currency:
        raise ConfigError(
            f"{rule.name}: {column.field.name} is {column.const!r}, the tenant's is {currency!r}"
        )
    return pa.repeat(pa.scalar(column.const, column.field.arrow_type), rows)


def _read(
    rule: StreamRule, column: ColumnRule, chunk: pa.Table, currency: str
) -> tuple[pa.Array, list[tuple[str, Mask]]]:
    source = chunk.column(column.source)
    values, undecodable = _source(source)
    place = pointer(column.field.name)
    try:
        if column.field.kind is Kind.TIME:
            read = read_time(column.times, values)
        else:
            read = READERS[column.field.kind](column, values, currency)
    except Unreadable as e:
        raise ConfigError(
            f"{rule.name}: {column.field.name} can't be read from column {column.source!r},"
            f" which is of type {source.type}",
            hint=str(e),
        ) from e
    failures = [(f"{place}: {read.reason}", read.failed)] if read.failed.any() else []
    if undecodable is not None:
        failures.append((f"{place}: must be valid UTF-8", undecodable))
    return read.values, failures


def _source(column: pa.ChunkedArray) -> tuple[pl.Series, Mask | None]:
    """The column as polars sees it, and which rows are not valid UTF-8 (null there)."""
    plain = column.combine_chunks()
    undecodable = None
    if pa.types.is_binary(plain.type) or pa.types.is_large_binary(plain.type):
        # Older writers leave out that their bytes are text.
        plain = plain.cast(pa.binary()).view(pa.string())
    if is_text(plain.type):
        plain, undecodable = plain_text(plain)
    values = pl.Series(values=pl.from_arrow(plain))
    if values.dtype == pl.String:
        values = values.replace("", None)
    elif values.dtype.is_float():
        values = values.fill_nan(None)
    return values, undecodable


def _equals(rule: StreamRule, chunk: pa.Table, name: str, wanted: Any) -> Mask:
    values, _ = _source(chunk.column(name))
    text = values.dtype == pl.String
    if isinstance(wanted, bool):
        fits = text or values.dtype == pl.Boolean
        if text:
            values, wanted = values.str.to_lowercase(), str(wanted).lower()
    elif isinstance(wanted, str):
        fits = text
    else:
        fits = text or values.dtype.is_numeric()
        values = floats_of(values) if text else values
    if values.dtype == pl.Null:
        return np.zeros(len(values), np.bool_)
    if not fits:
        raise ConfigError(
            f"{rule.name}: where compares column {name!r}, which is of type"
            f" {chunk.column(name).type}, with {wanted!r}"
        )
    return mask_of(values == wanted)
