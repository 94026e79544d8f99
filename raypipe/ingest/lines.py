"""JSON lines to columns: all at once, and line by line only where that fails.

Arrow's reader takes a million lines a second but gives up on the first bad one without its number.
Then a typed decoder looks at each line, and columns are made of those that pass. What even then
can't be read in columns (a key twice, say) is read one by one by the strict reader of single
events, whose word is the last.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from raypipe.errors import InputError, MalformedBody
from raypipe.events.body import parse_object
from raypipe.events.schema import EventType

TYPE = "type"
"""Member of a row that names its event type, where the request doesn't."""

# In JSON these bytes are a member's name and value: inside a string the quotes would be escaped.
_NAMED = re.compile(rb'"type"[ \t\r]*:[ \t\r]*"([a-z0-9_]*)"')

_PYTHON: dict[pa.DataType, type] = {
    pa.string(): str,
    pa.int64(): int,
    pa.float64(): float,
    pa.bool_(): bool,
}

Rows = npt.NDArray[np.int32]


class Line(NamedTuple):
    """A line that is no row of its type: its place, its bytes, and why if it is no object."""

    place: int
    text: bytes
    reason: str


class Lines(NamedTuple):
    """Every line is in one of these: a row of ``table`` for each of ``places``, refused, or loose.

    ``loose`` are objects by place that may be good, but not in columns.
    """

    table: pa.Table
    places: Rows
    refused: list[Line]
    loose: dict[int, dict[str, Any]]


def rows_of(text: bytes) -> list[bytes]:
    """The lines that are not blank."""
    return [line for line in text.split(b"\n") if line and not line.isspace()]


def by_type(lines: Sequence[bytes]) -> dict[str, list[int]]:
    """Places of the lines that name a type, by that name; ``LineReader`` checks it.

    Lines that name none, or in an odd way, are under the empty name.
    """
    found = _NAMED.findall(b"\n".join(lines))
    if len(found) != len(lines):
        found = [names[0] if len(names := _NAMED.findall(line)) == 1 else b"" for line in lines]
    places: dict[bytes, list[int]] = {}
    for at, name in enumerate(found):
        places.setdefault(name, []).append(at)
    return {name.decode(): mine for name, mine in places.items()}


class LineReader:
    """Reads rows of one event type; with ``typed`` they must name it in the member ``type``."""

    def __init__(self, event: EventType, *, typed: bool) -> None:
        fields = {f.name: f.arrow_type for f in event.client_fields}
        self._event = event
        self._typed = typed
        self._schema = pa.schema(list(fields.items()))
        self._parsed = pa.schema([(TYPE, pa.string()), *fields.items()]) if typed else self._schema

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        # Python names of their own: a field's may be no identifier.
        slots = {f"f{at}": f for at, f in enumerate(self._event.client_fields)}
        return msgspec.json.Decoder(
            msgspec.defstruct(
                "Row",
                [(slot, _PYTHON[f.arrow_type] | None, None) for slot, f in slots.items()],
                rename={slot: f.name for slot, f in slots.items()},
                forbid_unknown_fields=True,
                tag_field=TYPE if self._typed else None,
                tag=self._event.name if self._typed else None,
            )
        )

    def read(self, lines: Sequence[bytes]) -> Lines:
        """All lines, which are not blank."""
        table = self._columns(lines)
        if table is not None:
            return Lines(table, np.arange(len(lines), dtype=np.int32), [], {})
        good, refused = self._sifted(lines)
        table = self._columns([lines[i] for i in good])
        if table is None:
            return self._one_by_one(lines)
        return Lines(table, np.array(good, np.int32), refused, {})

    def _columns(self, lines: Sequence[bytes]) -> pa.Table | None:
        """A row for each line; None unless columns can hold them all."""
        if not lines:
            return self._schema.empty_table()
        text = b"\n".join(lines)
        try:
            table = pa.json.read_json(
                io.BytesIO(text),
                pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
                pa.json.ParseOptions(
                    explicit_schema=self._parsed, unexpected_field_behavior="error"
                ),
            )
        except (pa.ArrowException, ValueError):
            return None
        # Two objects on one line would be two rows.
        if table.num_rows != len(lines):
            return None
        if self._typed:
            named = pc.equal(table.column(TYPE), self._event.name)
            if named.null_count or not pc.all(named).as_py():
                return None
            table = table.drop_columns([TYPE])
        return table

    def _sifted(self, lines: Sequence[bytes]) -> tuple[list[int], list[Line]]:
        """Places of lines that the declared types could hold, and the others."""
        good, refused = [], []
        for place, line in enumerate(lines):
            try:
                self._decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                refused.append(_refused(place, line))
            else:
                good.append(place)
        return good, refused

    def _one_by_one(self, lines: Sequence[bytes]) -> Lines:
        refused, loose = [], {}
        for place, line in enumerate(lines):
            try:
                loose[place] = parse_object(line)
            except InputError as e:
                refused.append(Line(place, line, e.detail))
        return Lines(self._schema.empty_table(), np.empty(0, np.int32), refused, loose)


def _refused(place: int, line: bytes) -> Line:
    try:
        parse_object(line)
    except InputError as e:
        return Line(place, line, e.detail)
    return Line(place, line, "")


def as_lines(array: bytes) -> list[bytes]:
    """The members of a JSON array, or one object, as lines; raises MalformedBody."""
    try:
        return [_flat(raw) for raw in _ARRAY.decode(array)]
    except msgspec.MsgspecError as e:
        if array.lstrip()[:1] == b"{":
            return [_flat(array)]
        raise MalformedBody(
            f"the body is no JSON array: {e}", hint="Send an array of objects, or JSON lines."
        ) from None
    except RecursionError:
        raise MalformedBody("the body nests too deep") from None


_ARRAY: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


def _flat(raw: msgspec.Raw | bytes) -> bytes:
    # Line ends stand between the parts of an object: JSON has none inside strings.
    return bytes(raw).replace(b"\n", b" ").replace(b"\r", b" ")
