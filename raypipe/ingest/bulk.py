"""A bulk request read: which rows may enter the log, in which order, and why others may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import InputError, MalformedBody, Violation
from raypipe.events.body import parse_object
from raypipe.events.row import RowValidator, pointer
from raypipe.events.schema import EventType
from raypipe.events.text import as_bytes, is_text, plain_text
from raypipe.events.validate import as_json, row_dicts, validate
from raypipe.ingest.lines import TYPE, LineReader, Lines, as_lines, lines_of
from raypipe.ingest.media import Media
from raypipe.log.port import Group, Part

ROWS_LIMIT = 100_000
"""Rows of one request."""

_WORD_LIMIT = 1_024
"""Longest word of a dictionary column: decoded, it may stand in every row."""

_BODY_LIMIT = 65_536
"""Characters of a refused row that are kept."""

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that may not enter: its number in the request, its text, every ``pointer: reason``.

    ``kind`` is empty where the row names no event type.
    """

    row: int
    kind: str
    body: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Bulk:
    """``parts`` hold the good rows with their numbers in the request, ``refused`` the others."""

    rows: int
    parts: tuple[Part, ...]
    refused: tuple[Refused, ...]

    @cached_property
    def accepted(self) -> Rows:
        """Numbers of the good rows, ascending [accepted]."""
        if len(self.parts) == 1:
            return self.parts[0].positions
        found = [p.positions for p in self.parts] or [np.empty(0, np.int32)]
        return np.sort(np.concatenate(found))

    @property
    def group(self) -> Group:
        """The good rows as the log takes them."""
        places = np.zeros(self.rows, np.int32)
        places[self.accepted] = np.arange(len(self.accepted), dtype=np.int32)
        return Group(tuple(Part(p.kind, p.batch, places[p.positions]) for p in self.parts))


class BulkReader:
    """Reads bulk bodies of a project's event types. Safe for threads."""

    def __init__(self, events: Sequence[EventType], currency: str) -> None:
        self._events = {e.name: e for e in events}
        self._currency = currency
        self._validators = {e.name: RowValidator(e, currency) for e in events}
        self._typed = LineReader(events, typed=True)
        self._single = {e.name: LineReader([e], typed=False) for e in events}

    def read(
        self, body: bytes, media: Media, kind: str | None, tenant: str, received_at: int
    ) -> Bulk:
        """Read an unpacked body.

        Args:
            kind: the event type of all rows; None: each row names its own in ``type``.

        Raises MalformedBody for a body that is no sequence of rows, InputError for an event type
        that isn't declared.
        """
        if kind is not None and kind not in self._events:
            raise InputError(
                f"{kind!r} is no event type of this project",
                hint="It has: " + ", ".join(self._events),
            )
        if kind is None and any(TYPE in event for event in self._events.values()):
            raise InputError(
                f"events of this project have a field {TYPE!r} of their own",
                hint=f"Send one event type a request: /v1/events?{TYPE}=NAME.",
            )
        taking = _Taking(self, tenant, received_at)
        if media is Media.ARROW:
            table = _arrow(body)
            taking.columns(table, np.arange(table.num_rows, dtype=np.int32), kind)
            return taking.bulk(table.num_rows)
        lines = lines_of(b"\n".join(as_lines(body)) if media is Media.ARRAY else body)
        _check_rows(len(lines))
        taking.lines(self._typed if kind is None else self._single[kind], lines, kind)
        return taking.bulk(len(lines))


class _Taking:
    """The rows of one request, as they are sorted."""

    def __init__(self, reader: BulkReader, tenant: str, received_at: int) -> None:
        self._reader = reader
        self._tenant = tenant
        self._received_at = received_at
        self._parts: list[Part] = []
        self._refused: list[Refused] = []
        self._objects: dict[str, dict[int, dict[str, Any]]] = {}

    def bulk(self, rows: int) -> Bulk:
        """What came of them."""
        for kind, found in self._objects.items():
            schema = self._reader._events[kind].arrow_schema
            batch = pa.RecordBatch.from_pylist(list(found.values()), schema)
            self._add(kind, batch, np.array(list(found), np.int32))
        parts = tuple(p for p in self._parts if p.batch.num_rows)
        return Bulk(rows, parts, tuple(sorted(self._refused, key=lambda r: r.row)))

    def columns(self, table: pa.Table, rows: Rows, kind: str | None) -> None:
        """Rows in columns, of one type or with a column that names it."""
        if kind is not None:
            self._of_type(kind, table, rows)
            return
        if TYPE not in table.column_names:
            if table.num_rows:
                raise InputError(
                    f"no column {TYPE!r} says what the rows are",
                    hint=f"Add it, or name the type in the URL: /v1/events?{TYPE}=NAME.",
                )
            return
        at = table.column_names.index(TYPE)
        kinds = _type_column(table.column(at))
        rest = table.remove_column(at)
        known = kinds.dictionary.to_pylist()
        codes = kinds.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        strange = codes < 0
        if len(known) == 1 and known[0] in self._reader._events and not strange.any():
            self._of_type(known[0], rest, rows, foreign=True)
            return
        for code, name in enumerate(known):
            mine = np.flatnonzero(codes == code)
            if name in self._reader._events:
                picked = rest.take(pa.array(mine))
                self._of_type(name, picked, rows[mine], foreign=True)
            else:
                strange[mine] = True
        self._strange(table, rows, np.flatnonzero(strange))

    def _strange(self, table: pa.Table, rows: Rows, places: npt.NDArray[np.int64]) -> None:
        for place, body in zip(places, _objects(table, places), strict=True):
            self._refuse(int(rows[place]), "", as_json(_present(body)), [self._untyped(body)])

    def _untyped(self, body: Mapping[str, Any]) -> str:
        names = ", ".join(self._reader._events)
        came = body.get(TYPE)
        return f"/{TYPE}: is required" if came is None else f"/{TYPE}: must be one of {names}"

    def _of_type(self, kind: str, table: pa.Table, rows: Rows, *, foreign: bool = False) -> None:
        """Rows of one type; with ``foreign``, columns of other types must be empty here."""
        event = self._reader._events[kind]
        if foreign:
            own = {f.name for f in event.client_fields}
            others = [n for n in table.column_names if n not in own]
            odd = np.zeros(table.num_rows, np.bool_)
            for name in others:
                column = table.column(name)
                if column.null_count < table.num_rows:
                    odd |= column.is_valid().to_numpy(zero_copy_only=False)
            if odd.any():
                self._foreign(event, table, rows, np.flatnonzero(odd))
                fine = np.flatnonzero(~odd)
                table, rows = table.take(pa.array(fine)), rows[fine]
            table = table.drop_columns(others)
        checked = validate(
            event,
            table,
            tenant=self._tenant,
            currency=self._reader._currency,
            received_at=self._received_at,
            unique=False,
        )
        refused = checked.rejected.to_pylist()
        for row in refused:
            body = as_json(_present(parse_object(row["body"].encode())))
            self._refuse(int(rows[row["row"]]), kind, body, row["reasons"])
        if refused:
            rows = np.delete(rows, [row["row"] for row in refused])
        for batch in checked.accepted.combine_chunks().to_batches():
            self._add(kind, batch, rows)

    def _foreign(
        self, event: EventType, table: pa.Table, rows: Rows, places: npt.NDArray[np.int64]
    ) -> None:
        validator = self._reader._validators[event.name]
        for place, body in zip(places, _objects(table, places), strict=True):
            came = _present(body)
            found = validator.violations(came, self._received_at)
            self._refuse(int(rows[place]), event.name, as_json(came), _texts(found))

    def lines(self, reader: LineReader, lines: Lines, kind: str | None) -> None:
        """JSON lines of one type, or that name their own."""
        found, rest = reader.read(lines)
        for event, table, rows in found:
            self._of_type(event.name, table, rows)
        for row in rest:
            try:
                self._object(row, parse_object(lines.line(row)), kind)
            except InputError as e:
                text = lines.line(row).decode("utf-8", "backslashreplace")
                self._refuse(row, kind or "", text, [f"/: {e.detail}"])

    def _object(self, row: int, body: dict[str, Any], kind: str | None) -> None:
        """One row as an object, by the rules of single events; it names its type if ``kind`` is
        None."""
        text = as_json(body)
        if kind is None:
            named = body.pop(TYPE, None)
            if not isinstance(named, str) or named not in self._reader._events:
                self._refuse(row, "", text, [self._untyped({TYPE: named})])
                return
            kind = named
        try:
            event = self._reader._validators[kind].check(body, self._tenant, self._received_at)
        except InputError as e:
            self._refuse(row, kind, as_json(body), _texts(e.violations))
        else:
            self._objects.setdefault(kind, {})[row] = event

    def _add(self, kind: str, batch: pa.RecordBatch, rows: Rows) -> None:
        for at, part in enumerate(self._parts):
            if part.kind == kind:
                positions = np.concatenate([part.positions, rows])
                order = np.argsort(positions)
                table = pa.Table.from_batches([part.batch, batch]).take(pa.array(order))
                joined = table.combine_chunks().to_batches()[0]
                self._parts[at] = Part(kind, joined, positions[order])
                return
        self._parts.append(Part(kind, batch, rows.astype(np.int32, copy=False)))

    def _refuse(self, row: int, kind: str, body: str, reasons: Sequence[str]) -> None:
        self._refused.append(Refused(row, kind, body[:_BODY_LIMIT], tuple(reasons)))


def _texts(violations: Sequence[Violation]) -> list[str]:
    return [f"{v.pointer}: {v.reason}" for v in violations]


def _present(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a row of columns has only because another row has it."""
    return {name: value for name, value in body.items() if value is not None}


def _objects(table: pa.Table, places: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    return row_dicts(columns, places)


def _type_column(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """The names as codes; null where there is none."""
    if not is_text(column.type):
        raise InputError(
            f"column {TYPE!r} is of {column.type}, not of text",
            violations=(Violation(pointer(TYPE), "must be a string", "type"),),
        )
    chunks = [as_bytes(c) for c in column.chunks] or [pa.array([], pa.binary())]
    text, _ = plain_text(pa.concat_arrays(chunks).view(pa.string()))
    return text.dictionary_encode()


def _arrow(body: bytes) -> pa.Table:
    """The table of an Arrow IPC stream, its columns not looked at yet."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            table = stream.read_all()
    except (pa.ArrowException, OSError, ValueError) as e:
        raise MalformedBody(f"the body is no whole Arrow IPC stream: {e}") from None
    _check_rows(table.num_rows)
    for name in table.column_names:
        if pa.types.is_dictionary(table.column(name).type):
            _check_words(name, table.column(name))
    return table


def _check_rows(count: int) -> None:
    if count > ROWS_LIMIT:
        raise MalformedBody(
            f"{count} rows in one request, at most {ROWS_LIMIT}",
            hint="Send them in several requests.",
        )


def _check_words(name: str, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        if not is_text(chunk.type):
            continue
        words = as_bytes(chunk.dictionary)
        longest = pc.max(pc.binary_length(words)).as_py() or 0
        if longest > _WORD_LIMIT:
            raise MalformedBody(
                f"column {name!r} has a word of {longest} bytes, at most {_WORD_LIMIT}"
            )
