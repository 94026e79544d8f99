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
import pyarrow.json

from raypipe.errors import InputError, MalformedBody
from raypipe.events.body import parse_object
from raypipe.events.schema import EventType, Field

TYPE = "type"
"""Member of a row that names its event type, where the request doesn't."""

_PYTHON: dict[pa.DataType, type] = {
    pa.string(): str,
    pa.int64(): int,
    pa.float64(): float,
    pa.bool_(): bool,
}
_BLANK = re.compile(rb"[ \t\r]*")


class Line(NamedTuple):
    """A line that is no row: its number among the rows, its bytes, why."""

    row: int
    text: bytes
    reason: str


class Lines(NamedTuple):
    """``table`` has a row for each of ``rows`` (int32, ascending); the rest are ``refused``."""

    table: pa.Table
    rows: npt.NDArray[np.int32]
    refused: list[Line]
    loose: dict[int, dict[str, Any]]
    """Rows that no columns could hold, as objects by row number: in neither of the others."""


class LineReader:
    """Reads rows of one event type, or of several that name theirs in the member ``type``."""

    def __init__(self, events: Sequence[EventType], *, typed: bool) -> None:
        self._events = events
        self._typed = typed

    @cached_property
    def schema(self) -> pa.Schema | None:
        """All columns of all types; None when two types give one name different columns."""
        fields: dict[str, pa.DataType] = {TYPE: pa.string()} if self._typed else {}
        for field in (f for e in self._events for f in e.client_fields):
            if fields.setdefault(field.name, field.arrow_type) != field.arrow_type:
                return None
        return pa.schema(list(fields.items()))

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(
            _union([_struct(e.name, e.client_fields, self._typed) for e in self._events])
        )

    def read(self, text: bytes, limit: int) -> Lines:
        """All rows of the text; blank lines are none. Raises MalformedBody over ``limit`` rows."""
        count = text.count(b"\n") + (not text.endswith(b"\n"))
        if count <= limit and (table := self._columns(text, count)) is not None:
            return Lines(table, np.arange(count, dtype=np.int32), [], {})
        lines = [line for line in text.split(b"\n") if not _BLANK.fullmatch(line)]
        if len(lines) > limit:
            raise MalformedBody(
                f"{len(lines)} rows in one request, at most {limit}",
                hint="Send them in several requests.",
            )
        good, refused = self._sifted(lines)
        table = self._columns(b"\n".join(lines[i] for i in good), len(good))
        if table is None:
            return self._one_by_one(lines)
        return Lines(table, np.array(good, np.int32), refused, {})

    def _columns(self, text: bytes, count: int) -> pa.Table | None:
        """A row for each of so many lines; None unless columns can hold them all."""
        if self.schema is None:
            return None
        if not count:
            return self.schema.empty_table()
        try:
            table = pa.json.read_json(
                io.BytesIO(text),
                pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
                pa.json.ParseOptions(
                    explicit_schema=self.schema, unexpected_field_behavior="error"
                ),
            )
        except (pa.ArrowException, ValueError):
            return None
        # Two objects on one line would be two rows.
        return table if table.num_rows == count else None

    def _sifted(self, lines: list[bytes]) -> tuple[list[int], list[Line]]:
        """Rows that the declared types could hold, and those they can't, with every reason."""
        good, refused = [], []
        for row, line in enumerate(lines):
            try:
                self._decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                try:
                    parse_object(line)
                except InputError as e:
                    refused.append(Line(row, line, e.detail))
                    continue
                refused.append(Line(row, line, ""))
            else:
                good.append(row)
        return good, refused

    def _one_by_one(self, lines: list[bytes]) -> Lines:
        refused, loose = [], {}
        for row, line in enumerate(lines):
            try:
                loose[row] = parse_object(line)
            except InputError as e:
                refused.append(Line(row, line, e.detail))
        return Lines(pa.table({}), np.empty(0, np.int32), refused, loose)


def _struct(name: str, fields: Sequence[Field], typed: bool) -> type[msgspec.Struct]:
    # Python names of their own: a field's may be no identifier.
    slots = {f"f{at}": f for at, f in enumerate(fields)}
    return msgspec.defstruct(
        f"Row{name}",
        [(slot, _PYTHON[f.arrow_type] | None, None) for slot, f in slots.items()],
        rename={slot: f.name for slot, f in slots.items()},
        forbid_unknown_fields=True,
        tag_field=TYPE if typed else None,
        tag=name if typed else None,
    )


def _union(structs: Sequence[type[msgspec.Struct]]) -> Any:
    found: Any = structs[0]
    for other in structs[1:]:
        found = found | other
    return found


def as_lines(array: bytes) -> bytes:
    """A JSON array of objects, or one object, as lines; raises MalformedBody."""
    try:
        return b"\n".join(_flat(raw) for raw in _ARRAY.decode(array))
    except msgspec.MsgspecError as e:
        if array.lstrip()[:1] == b"{":
            return _flat(array)
        raise MalformedBody(
            f"the body is no JSON array: {e}", hint="Send an array of objects, or JSON lines."
        ) from None
    except RecursionError:
        raise MalformedBody("the body nests too deep") from None


_ARRAY: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


def _flat(raw: msgspec.Raw | bytes) -> bytes:
    # Line ends inside an object stand between its parts: JSON text has none inside strings.
    return bytes(raw).replace(b"\n", b" ").replace(b"\r", b" ")
