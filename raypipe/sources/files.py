"""A file as batches: the same bytes always give the same batches with the same keys.

So a file whose sending was broken off anywhere is simply sent again: what was taken the first time
is answered again and not counted twice, under whatever name the file comes.

JSON lines and arrays go as they are; Parquet goes as Arrow IPC, and so does CSV, whose text is read
as the kinds of the event type. CSV rows with a value that can't be read so go as JSON lines with
their text, to be refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypipe.errors import Conflict, InputError, MalformedBody, UnsupportedMedia, UsageError
from raypipe.events.convert import convert
from raypipe.events.mapping import ColumnRule, StreamRule, Times
from raypipe.events.schema import EventType, Kind
from raypipe.events.tables import Chunk as TableChunk
from raypipe.events.tables import SourceTable
from raypipe.events.validate import as_json, row_dicts
from raypipe.ingest.lines import as_lines
from raypipe.ingest.media import Media
from raypipe.project import Project
from raypipe.sources.batch import Batch

ROWS = 5_000
"""Rows of a batch. Changing it changes every key."""

BYTES = 8 * 2**20
"""From here on a batch of lines takes no further line; a line may have as many."""

ARRAY_BYTES = 256 * 2**20
"""Largest JSON array, unpacked: it is read as a whole."""

_LAYOUT = 1
"""Of the keys; another one for other batches of the same file."""

_JSON = (".ndjson", ".jsonl", ".json")
_TABLES = (".parquet", ".pq", ".csv", ".tsv", ".txt")
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_BLOCK = 4 * 2**20
_LINE_BYTES = 2**20


class Changed(Conflict):
    """A file was written to while it was sent."""

    code = "file_changed"
    headline = "File changed"


@dataclass(frozen=True, slots=True)
class FileBatch:
    """``first`` is the file's row of the batch's first row, from 0; ``places`` are those of all
    rows where they don't follow each other."""

    batch: Batch
    first: int
    places: tuple[int, ...] | None = None

    def row(self, number: int) -> int:
        """The file's row of a row of the batch."""
        return self.first + number if self.places is None else self.places[number]


class EventFile:
    """A file of events; its content must not change meanwhile.

    Args:
        kind: the event type of all rows, None where each row names its own.
        body_limit: bytes of the largest request that is taken; a small one makes other batches.
    """

    def __init__(
        self,
        path: Path,
        project: Project,
        currency: str,
        kind: str | None,
        body_limit: int = 8 * BYTES,
    ) -> None:
        self.path = path
        self._bytes = min(BYTES, body_limit // 2)
        self._currency = currency
        self._kind = kind
        self._stat = _stat(path)
        self._form, self._packing = form_of(path)
        self._event = _declared(project, kind, path, self._form)
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def batches(self) -> Iterator[FileBatch]:
        """All rows in file order.

        Raises MalformedBody for a file that can't be read to its end, InputError for a table that
        doesn't fit the event type, Conflict when the file has changed since it was opened.
        """
        table = self._form == "table"
        found = self._table_batches() if table else self._line_batches()
        for batch in found:
            self._require_unchanged()
            yield batch
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        now = _stat(self.path)
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise Changed(
                f"{self.path} changed while it was sent",
                hint="Write a file under another name and rename it when it is whole; rows that "
                "were sent and come again are known by their event ids.",
            )

    def _batch(
        self, part: str, body: bytes, media: Media, first: int, places: list[int] | int
    ) -> FileBatch:
        rows = places if isinstance(places, int) else len(places)
        kind = self._kind or ""
        layout = f"{_LAYOUT}" if self._bytes == BYTES else f"{_LAYOUT}.{self._bytes}"
        key = f"file-{layout}-{self.sha256[:40]}-{kind[:40]}-{part}"
        batch = Batch(key, body, media, self._kind, rows)
        return FileBatch(batch, first, None if isinstance(places, int) else tuple(places))

    # JSON ---------------------------------------------------------------------------------------

    def _line_batches(self) -> Iterator[FileBatch]:
        first, size, lines = 0, 0, list[bytes]()
        for line in self._lines():
            lines.append(line)
            size += len(line)
            if len(lines) == ROWS or size >= self._bytes:
                yield self._batch(str(first), b"\n".join(lines), Media.LINES, first, len(lines))
                first += len(lines)
                size, lines = 0, []
        if lines:
            yield self._batch(str(first), b"\n".join(lines), Media.LINES, first, len(lines))

    def _lines(self) -> Iterator[bytes]:
        """Lines that are not blank, or the members of the array that the file is."""
        try:
            with pa.input_stream(str(self.path), compression=self._packing) as stream:
                head: bytes = stream.read(_BLOCK)
                if head.lstrip()[:1] == b"[":
                    whole = head + stream.read(ARRAY_BYTES - len(head) + 1)
                    if len(whole) > ARRAY_BYTES:
                        raise MalformedBody(
                            f"{self.path}: an array of over {ARRAY_BYTES} bytes",
                            hint="Make it lines: jq -c '.[]' FILE > FILE.ndjson",
                        )
                    yield from as_lines(whole)
                    return
                yield from self._split(head, stream)
        except (OSError, pa.ArrowException) as e:
            raise MalformedBody(f"{self.path} can't be read to its end: {e}") from e

    def _split(self, block: bytes, stream: pa.NativeFile) -> Iterator[bytes]:
        rest = b""
        while block:
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > _LINE_BYTES:
                raise MalformedBody(
                    f"{self.path} has a line of over {_LINE_BYTES} bytes",
                    hint="One event is one line.",
                )
            yield from (line for line in whole if line and not line.isspace())
            block = stream.read(_BLOCK)
        if rest and not rest.isspace():
            yield rest

    # Tables -------------------------------------------------------------------------------------

    def _table_batches(self) -> Iterator[FileBatch]:
        table = SourceTable.open(self.path)
        (schema,) = table.schemas()
        names = schema.names
        if self._kind is None and "type" not in names:
            raise InputError(
                f"no column 'type' of {self.path} says what the rows are",
                hint="Name the event type: --type NAME.",
            )
        rule = self._rule(self._event, schema) if self._event and self._csv else None
        first = 0
        for number, chunk in enumerate(table.chunks(names, ROWS)):
            if rule is None:
                if chunk.rows.num_rows:
                    body = _stream(chunk.rows)
                    yield self._batch(str(number), body, Media.ARROW, first, chunk.rows.num_rows)
            else:
                yield from self._text_batches(rule, number, chunk, first)
            first += chunk.rows.num_rows

    @property
    def _csv(self) -> bool:
        return not {".parquet", ".pq"} & {s.lower() for s in self.path.suffixes[-1:]}

    def _rule(self, event: EventType, schema: pa.Schema) -> StreamRule:
        """Reads each column of text as the kind of the field of its name."""
        fields = {f.name: f for f in event.client_fields}
        strange = [name for name in schema.names if name not in fields]
        missing = [f.name for f in fields.values() if f.required and f.name not in schema.names]
        if strange or missing:
            parts = [f"has {', '.join(strange)}"] if strange else []
            parts += [f"lacks {', '.join(missing)}"] if missing else []
            raise InputError(
                f"{self.path} {' and '.join(parts)}, as {event.name} is declared",
                hint="Columns: " + ", ".join(fields) + ". For other tables write a mapping file "
                "and use `raypipe load`.",
            )
        columns = tuple(
            ColumnRule(f, name, unit="minor" if f.kind is Kind.AMOUNT else "", times=Times("ms"))
            for name in schema.names
            for f in (fields[name],)
        )
        return StreamRule(event.name, event, None, (), 0, columns)

    def _text_batches(
        self, rule: StreamRule, number: int, chunk: TableChunk, first: int
    ) -> Iterator[FileBatch]:
        converted = convert(rule, chunk.rows, self._currency)
        bad = np.zeros(chunk.rows.num_rows, np.bool_)
        for _, mask in converted.failures:
            bad |= mask
        good = np.flatnonzero(~bad)
        if len(good):
            columns = converted.table.select(list(rule.sources))
            body = _stream(columns.take(pa.array(good)))
            places = (first + good).tolist()
            yield self._batch(str(number), body, Media.ARROW, first, places)
        texts = [body for body, _ in chunk.broken]
        strange = np.flatnonzero(bad)
        came, read = (
            row_dicts({n: rows.column(n).combine_chunks() for n in rule.sources}, strange)
            for rows in (chunk.rows, converted.table)
        )
        # What can be read as declared is sent so: only the rest is a reason to refuse the row.
        present = (
            {
                n: text if value[n] is None else value[n]
                for n, text in row.items()
                if text is not None
            }
            for row, value in zip(came, read, strict=True)
        )
        texts += [as_json(row) for row in present]
        if texts:
            # A broken line has no row of its own: it stands where its chunk begins.
            places = [first] * len(chunk.broken) + (first + strange).tolist()
            body = "\n".join(texts).encode()
            yield self._batch(f"{number}-text", body, Media.LINES, first, places)


def form_of(path: Path) -> tuple[str, str | None]:
    """``lines`` or ``table``, and how it is packed; raises UnsupportedMedia."""
    suffixes = [s.lower() for s in path.suffixes]
    packing = _PACKED.get(suffixes[-1]) if suffixes else None
    ending = (suffixes[-2:-1] if packing else suffixes[-1:]) or [""]
    if ending[0] in _JSON:
        return "lines", packing
    if ending[0] in _TABLES and not (packing and ending[0] in (".parquet", ".pq")):
        return "table", packing
    raise UnsupportedMedia(
        f"{path.name} is no file of events by its name",
        hint="Known endings: " + ", ".join([*_JSON, *_TABLES]) + "; all but Parquet also with "
        ".gz and .zst.",
    )


def _declared(project: Project, kind: str | None, path: Path, form: str) -> EventType | None:
    names = [e.name for e in project.events]
    if kind is None:
        if form == "table" and path.suffix.lower() not in (".parquet", ".pq"):
            raise UsageError(
                f"{path.name} needs the event type of its rows",
                hint="Name it: --type with one of " + ", ".join(names),
            )
        return None
    if kind not in names:
        raise UsageError(
            f"{kind!r} is no event type of this project", hint="It has: " + ", ".join(names)
        )
    return project.event(kind)


def _stat(path: Path) -> os.stat_result:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path.stat()


def _stream(table: pa.Table) -> bytes:
    # Without metadata: what a writer says of itself is no part of the rows.
    table = table.replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def reasons_text(refused: dict[int, tuple[str, ...]]) -> str:
    """Refused rows as JSON lines: ``{"row": 17, "reasons": [...]}``, rows from 0."""
    return "".join(
        json.dumps({"row": row, "reasons": list(why)}) + "\n"
        for row, why in sorted(refused.items())
    )


def error_text(error: Exception) -> str:
    """Why a whole file could not be sent, as a JSON line."""
    return json.dumps({"error": str(error)}) + "\n"
