"""JSON lines to columns: a scanner takes the plain ones, the reader of single events the rest.

The scanner knows names and types alone; what could be read differently (a key twice, a number
beyond its type) it leaves to the strict reader, whose word is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import MalformedBody
from raypipe.events.schema import EventType, Field, Kind
from raypipe.ingest import kernel

TYPE = "type"
"""Member of a row that names its event type, where the request doesn't."""

_CLASSES = {
    pa.string(): kernel.TEXT,
    pa.int64(): kernel.INTEGER,
    pa.float64(): kernel.NUMBER,
    pa.bool_(): kernel.BOOLEAN,
}

Rows = npt.NDArray[np.int32]


class Lines(NamedTuple):
    """The lines of a body that are not blank: line i is ``text[starts[i]:ends[i]]``."""

    text: bytes
    starts: kernel.Ints
    ends: kernel.Ints

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, at: int) -> bytes:
        """One of them."""
        return self.text[self.starts[at] : self.ends[at]]


class Columns(NamedTuple):
    """Rows of one event type: its client fields as columns, and each row's line."""

    event: EventType
    table: pa.Table
    places: Rows


def lines_of(text: bytes) -> Lines:
    """The lines of a body."""
    stops = np.append(np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")), len(text))
    starts = np.append(0, stops[:-1] + 1)
    # Python's bytes have the word on what is blank; few lines begin with white space.
    first = np.frombuffer(text + b"\n", np.uint8)[starts]
    blank = starts == stops
    for at in np.flatnonzero(~blank & (first <= ord(" "))).tolist():
        blank[at] = text[starts[at] : stops[at]].isspace()
    return Lines(text, starts[~blank], stops[~blank])


class LineReader:
    """Reads rows of some event types, which name their own in the member ``type``; or of one type,
    whose rows don't. Safe for threads."""

    def __init__(self, events: Sequence[EventType], *, typed: bool) -> None:
        self._events = list(events)
        slots = [f for event in events for f in event.client_fields]
        sizes = [len(event.client_fields) for event in events]
        names, name_ends = _words([event.name for event in events])
        keys, key_ends = _words([f.name for f in slots])
        self._width = max(sizes)
        self._plan = kernel.Plan(
            np.frombuffer(TYPE.encode() if typed else b"", np.uint8),
            names,
            name_ends,
            keys,
            key_ends,
            np.cumsum([0, *sizes]),
            np.array([_CLASSES[f.arrow_type] for f in slots]),
        )

    def read(self, lines: Lines) -> tuple[list[Columns], list[int]]:
        """The rows that fit, and the lines that must be looked at one by one."""
        text = np.frombuffer(lines.text, np.uint8)
        kinds = np.empty(len(lines), np.int64)
        spans = np.zeros((len(lines), self._width, 2), np.int64)
        ascii_only = not _is_utf8(lines.text)
        kernel.scan(text, lines.starts, lines.ends, ascii_only, self._plan, kinds, spans)
        rest = [np.flatnonzero(kinds == kernel.REST)]
        found = []
        for number, event in enumerate(self._events):
            places = np.flatnonzero(kinds == number)
            if not len(places):
                continue
            mine = spans if len(places) == len(lines) else spans[places]
            table, odd = _columns(event, text, mine)
            if odd.any():
                rest.append(places[odd])
                places, table = places[~odd], table.filter(pa.array(~odd))
            found.append(Columns(event, table, places.astype(np.int32)))
        return found, np.sort(np.concatenate(rest)).tolist()


def compile_lines() -> None:
    """Have the scanner ready before the first request: compiling it takes seconds, once an
    installation."""
    field = Field("f", Kind.NUMBER, required=False)
    LineReader([EventType("e", (field,))], typed=True).read(lines_of(b'{"type":"e"}'))


def _words(words: Sequence[str]) -> tuple[kernel.Bytes, kernel.Ints]:
    encoded = [word.encode() for word in words]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(w) for w in encoded])


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _columns(
    event: EventType, text: kernel.Bytes, spans: kernel.Ints
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """The columns, and the rows with a number that no column can hold."""
    rows = len(spans)
    odd = np.zeros(rows, np.bool_)
    columns: dict[str, pa.Array] = {}
    for at, field in enumerate(event.client_fields):
        mine, valid = np.ascontiguousarray(spans[:, at]), np.empty(rows, np.bool_)
        kind = _CLASSES[field.arrow_type]
        if kind in (kernel.TEXT, kernel.NUMBER):
            column = _texts(text, mine, valid)
            if kind == kernel.NUMBER:
                column = pc.cast(column, pa.float64())
                odd |= np.isinf(column.fill_null(0.0).to_numpy(zero_copy_only=False))
        elif kind == kernel.INTEGER:
            whole = np.empty(rows, np.int64)
            kernel.integers(text, mine, whole, valid)
            column = pa.array(whole, mask=None if valid.all() else ~valid)
        else:
            flags = np.empty(rows, np.bool_)
            kernel.booleans(text, mine, flags, valid)
            column = pa.array(flags, mask=None if valid.all() else ~valid)
        columns[field.name] = column
    return pa.table(columns), odd


def _texts(text: kernel.Bytes, spans: kernel.Ints, valid: npt.NDArray[np.bool_]) -> pa.StringArray:
    offsets = np.empty(len(spans) + 1, np.int32)
    data = np.empty(int((spans[:, 1] - np.abs(spans[:, 0])).sum()), np.uint8)
    kernel.texts(text, spans, offsets, data, valid)
    known = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.StringArray.from_buffers(
        len(spans), pa.py_buffer(offsets), pa.py_buffer(data[: offsets[-1]]), known
    )


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
