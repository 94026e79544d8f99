"""Whole Arrow tables at once: which rows of a bulk load or a bulk request may enter the log.

Verdicts are columnar, over masks that can't hold nulls. Only rows that fail are looked at one by
one, by the same ``RowValidator`` that guards the live path, to say why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import InputError, MalformedBody, Violation
from raypipe.events.row import (
    INT64_MAX,
    RowValidator,
    field_check,
    field_violation,
    integer_bounds,
    pointer,
)
from raypipe.events.schema import FUTURE_TOLERANCE_MS, EventType, Field, Kind
from raypipe.events.text import Mask, as_bytes, filled, flags, is_text, plain_text, unfit_text

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("body", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),
    ]
)
DUPLICATE = "/event_id: comes more than once in this batch; the first one counts"
UNKNOWN_FUTURE = Violation("/received_at", "must not lie in the future", "range")


@dataclass(frozen=True, slots=True)
class Validated:
    """``accepted`` has exactly the event's ``arrow_schema``; ``rejected`` has REJECTED_SCHEMA:
    the row's place in the input, the row as JSON text, and every ``pointer: reason``.
    """

    accepted: pa.Table
    rejected: pa.Table

    def __repr__(self) -> str:
        return (
            f"Validated(accepted={self.accepted.num_rows}, rejected={self.rejected.num_rows} rows)"
        )


class Foreign(str):
    """A value whose Arrow type no field takes, as text. No check lets a subclass of str pass."""

    __slots__ = ()


def validate(
    event: EventType,
    table: pa.Table,
    *,
    tenant: str,
    currency: str,
    received_at: int | None,
    now: int | None = None,
    unique: bool = True,
) -> Validated:
    """Split a table of client fields into rows that keep every rule and rows that break one.

    ``received_at`` is the server's time in ms; with None the table has its own column of it, which
    must not pass ``now`` where that is given. ``unique=False`` leaves repeated event ids to the
    caller. Raises InputError for a column that the event doesn't declare, MalformedBody for a
    table that can't be read.
    """
    fields = {
        f.name: f
        for f in event.all_fields
        if f.name != "tenant" and (f.name != "received_at" or received_at is None)
    }
    _refuse_unknown_columns(event, table, list(fields))
    came = {name: _one_array(table.column(name)) for name in table.column_names}
    rows = table.num_rows
    columns: dict[str, pa.Array] = {"tenant": pa.repeat(pa.scalar(tenant), rows)}
    if received_at is not None:
        columns["received_at"] = pa.repeat(pa.scalar(received_at, pa.int64()), rows)
    fine = np.ones(rows, np.bool_)
    for name, field in fields.items():
        columns[name], passed = _check(field, came.get(name, pa.nulls(rows)), currency)
        fine &= passed
    fine &= _arrived(columns, now)
    repeated = _repeated(columns["event_id"], fine) if unique else ~fine & False
    accepted = pa.table([columns[n] for n in event.arrow_schema.names], schema=event.arrow_schema)
    if bool(fine.all()) and not repeated.any():
        return Validated(accepted, REJECTED_SCHEMA.empty_table())
    why = _Reasons(event, currency, received_at, now)
    rejected = why.explain(came, np.flatnonzero(~fine | repeated), repeated)
    return Validated(accepted.filter(pa.array(fine & ~repeated)), rejected)


def _refuse_unknown_columns(event: EventType, table: pa.Table, known: list[str]) -> None:
    names = table.column_names
    found = [
        Violation(pointer(n), "is not a field of this event", "unknown")
        for n in names
        if n not in known
    ]
    found += [
        Violation(pointer(n), "comes more than once", "unknown")
        for n in sorted(set(names))
        if names.count(n) > 1
    ]
    if found:
        raise InputError(
            f"{event.name}: {len(found)} column(s) that it doesn't declare; nothing was taken",
            hint="Columns: " + ", ".join(known),
            violations=tuple(found),
        )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    try:
        if not is_text(column.type):
            column.validate(full=True)
        elif column.num_chunks > 1:
            # Joining damaged text reads outside its buffers; as_bytes checks each chunk before.
            return pa.concat_arrays([as_bytes(c) for c in column.chunks]).view(pa.string())
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    except pa.ArrowInvalid as e:
        raise MalformedBody(f"a column of type {column.type} is damaged: {e}") from e


def _check(field: Field, column: pa.Array, currency: str) -> tuple[pa.Array, Mask]:
    """The column in its physical type, and the rows that keep the field's rules."""
    kind = column.type
    if field.kind is Kind.NUMBER and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        values, fit = _numbers(field, column)
    elif field.kind in (Kind.INTEGER, Kind.TIME, Kind.AMOUNT) and pa.types.is_integer(kind):
        values, fit = _integers(field, column)
    elif field.kind is Kind.BOOLEAN and pa.types.is_boolean(kind):
        values, fit = column, np.ones(len(column), np.bool_)
    elif field.kind in (Kind.STRING, Kind.CHOICE, Kind.CURRENCY) and is_text(kind):
        values, fit = _texts(field, column, currency)
    else:
        values, fit = pa.nulls(len(column), field.arrow_type), np.zeros(len(column), np.bool_)
    if not column.null_count:
        return values, fit
    missing = flags(column.is_null())
    return values, (fit & ~missing) | (missing & (not field.required))


def _numbers(field: Field, column: pa.Array) -> tuple[pa.Array, Mask]:
    values = column.cast(pa.float64(), safe=False)
    v = filled(values, 0.0).to_numpy(zero_copy_only=False)
    low = -math.inf if field.minimum is None else field.minimum
    high = math.inf if field.maximum is None else field.maximum
    return values, np.isfinite(v) & (v >= low) & (v <= high)


def _integers(field: Field, column: pa.Array) -> tuple[pa.Array, Mask]:
    v = filled(column, 0).to_numpy(zero_copy_only=False)
    low, high = integer_bounds(field)
    if column.type == pa.uint64():
        fits = v <= np.uint64(INT64_MAX)
        signed = v.astype(np.int64)
        return column.cast(pa.int64(), safe=False), fits & (signed >= low) & (signed <= high)
    v = v.astype(np.int64, copy=False)
    return column.cast(pa.int64()), (v >= low) & (v <= high)


def _texts(field: Field, column: pa.Array, currency: str) -> tuple[pa.Array, Mask]:
    text, bad = plain_text(column)
    if field.kind is Kind.STRING:
        fit = ~unfit_text(text, field.max_length)
    else:
        allowed = field.choices if field.kind is Kind.CHOICE else (currency,)
        fit = flags(pc.is_in(text, value_set=pa.array(allowed, pa.string())))
    return text, fit if bad is None else fit & ~bad


def _arrived(columns: dict[str, pa.Array], now: int | None) -> Mask:
    """Rows that arrived after they happened, and not in the future. Null rows failed before."""
    happened = filled(columns["event_time"], 0).to_numpy(zero_copy_only=False)
    received = filled(columns["received_at"], 0).to_numpy(zero_copy_only=False)
    # On this side the tolerance can only overflow for times that were refused as too early.
    in_time: Mask = happened - FUTURE_TOLERANCE_MS <= received
    return in_time if now is None else in_time & (received <= now)


def _repeated(ids: pa.Array, fine: Mask) -> Mask:
    """Fine rows whose id an earlier fine row has. A refused row takes no id."""
    places = np.flatnonzero(fine)
    codes = (ids if len(places) == len(ids) else ids.take(pa.array(places))).dictionary_encode()
    repeated = np.zeros(len(ids), np.bool_)
    if len(codes.dictionary) < len(places):
        _, first = np.unique(codes.indices.to_numpy(), return_index=True)
        repeated[np.delete(places, first)] = True
    return repeated


@dataclass(frozen=True, slots=True)
class _Reasons:
    """Says why rows were refused, one row at a time."""

    event: EventType
    currency: str
    received_at: int | None
    now: int | None

    def explain(
        self, came: dict[str, pa.Array], places: npt.NDArray[np.int64], repeated: Mask
    ) -> pa.Table:
        validator = RowValidator(self.event, self.currency)
        bodies, reasons = [], []
        for place, body in zip(places, row_dicts(came, places), strict=True):
            bodies.append(as_json(body))
            if repeated[place]:
                reasons.append([DUPLICATE])
            else:
                found = self._violations(validator, body)
                reasons.append([f"{v.pointer}: {v.reason}" for v in found])
        return pa.table([places, bodies, reasons], schema=REJECTED_SCHEMA)

    def _violations(self, validator: RowValidator, body: dict[str, Any]) -> list[Violation]:
        if self.received_at is not None:
            return list(validator.violations(body, self.received_at))
        sent = {name: value for name, value in body.items() if name != "received_at"}
        field = self.event.field("received_at")
        stamp = body.get("received_at")
        broken = field_violation(field.name, True, field_check(field, self.currency), stamp)
        if broken:
            return [*validator.violations(sent, INT64_MAX), broken]
        found = list(validator.violations(sent, int(stamp or 0)))
        if self.now is not None and int(stamp or 0) > self.now:
            found.append(UNKNOWN_FUTURE)
        return found


def row_dicts(
    columns: dict[str, pa.Array], places: npt.NDArray[np.int64]
) -> Iterator[dict[str, Any]]:
    """Some rows as Python values. Bytes that are no UTF-8 come as lone surrogates."""
    picked = {name: _values(column, places) for name, column in columns.items()}
    for i in range(len(places)):
        yield {name: values[i] for name, values in picked.items()}


def _values(column: pa.Array, places: npt.NDArray[np.int64]) -> list[Any]:
    kind = column.type
    if is_text(kind):
        raw = as_bytes(column).take(pa.array(places)).to_pylist()
        return [v if v is None else v.decode("utf-8", "surrogateescape") for v in raw]
    if pa.types.is_floating(kind):
        return list(column.take(pa.array(places)).cast(pa.float64()).to_pylist())
    if any(test(kind) for test in _PLAIN):
        return list(column.take(pa.array(places)).to_pylist())
    picked = (column[int(place)] for place in places)
    return [_foreign(scalar) if scalar.is_valid else None for scalar in picked]


_PLAIN = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)


def _foreign(scalar: pa.Scalar) -> Any:
    try:
        value = scalar.as_py()
    except (ArithmeticError, ValueError):  # dates beyond Python's calendar, bad UTF-8 deep inside
        return Foreign(f"<{scalar.type}>")
    return value if type(value) in (list, dict) else Foreign(value)


def as_json(row: dict[str, Any]) -> str:
    """A row as one line of JSON; what JSON lacks, NaN and infinities too, becomes text."""
    return json.dumps({name: _plain(value) for name, value in row.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)
