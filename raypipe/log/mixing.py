"""Rows of several schemas in one file, and out of it again as they were.

A kind's rows needn't all have the same columns: an event that came alone bears what it saw, one
that came in bulk doesn't, and declarations grow. In a mixed file every column is there, null where
a row has none of it, and the last column tells each row's schema by its number in the footer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA = "_schema"
"""The column with the number of each row's schema; plain files don't have it."""

SCHEMAS = "raypipe.schemas"
"""The footer's entry with the schemas by number."""


def number_of(schemas: Sequence[pa.Schema], schema: pa.Schema) -> int:
    """The schema's place among them, -1 if it isn't there; metadata counts."""
    # Schemas that differ in metadata are equal to Python, and so no keys of a dictionary.
    for number, known in enumerate(schemas):
        if known.equals(schema, check_metadata=True):
            return number
    return -1


def union(schemas: Sequence[pa.Schema]) -> pa.Schema | None:
    """Every column of any of them, nullable unless it is nowhere away; None if types differ."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            known = fields.setdefault(field.name, field)
            if known.type != field.type:
                return None
            if field.nullable:
                fields[field.name] = known.with_nullable(True)
    everywhere = set.intersection(*(set(s.names) for s in schemas))
    return pa.schema(
        [f if f.name in everywhere else f.with_nullable(True) for f in fields.values()]
    )


def holds(whole: pa.Schema, schema: pa.Schema) -> bool:
    """Whether rows of a schema fit a mixed file's columns."""
    found = [(whole.field(f.name) if f.name in whole.names else None, f) for f in schema]
    within = all(w is not None and w.type == f.type and w.nullable >= f.nullable for w, f in found)
    return within and all(f.nullable or f.name in schema.names for f in whole)


def spread(batch: pa.RecordBatch, whole: pa.Schema, number: int) -> pa.RecordBatch:
    """The batch with all columns of a mixed file, the schema's number last."""
    n = batch.num_rows
    columns = [
        batch.column(f.name) if f.name in batch.schema.names else pa.nulls(n, f.type) for f in whole
    ]
    numbers = pa.array(np.full(n, number, np.int16))
    return pa.RecordBatch.from_arrays([*columns, numbers], schema=numbered(whole))


def numbered(whole: pa.Schema) -> pa.Schema:
    """The schema of a mixed file with these columns."""
    return whole.append(pa.field(SCHEMA, pa.int16(), nullable=False))


def footer(schemas: Sequence[pa.Schema]) -> dict[str, str]:
    """What a mixed file's footer must hold."""
    texts = [base64.b64encode(s.serialize().to_pybytes()).decode() for s in schemas]
    return {SCHEMAS: json.dumps(texts)}


def schemas_in(metadata: dict[bytes, bytes] | None) -> list[pa.Schema] | None:
    """The schemas of a mixed file, from its footer; None for a plain file."""
    text = (metadata or {}).get(SCHEMAS.encode())
    if text is None:
        return None
    return [pa.ipc.read_schema(pa.py_buffer(base64.b64decode(t))) for t in json.loads(text)]


def runs(table: pa.Table) -> npt.NDArray[np.int64]:
    """Where rows of another schema begin in a mixed table, and its end: ascending."""
    numbers = table.column(SCHEMA).to_numpy()
    return np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers))


def restored(batch: pa.RecordBatch, schemas: Sequence[pa.Schema]) -> pa.RecordBatch:
    """A run of rows of one schema, as they were before they were mixed."""
    schema = schemas[batch.column(SCHEMA)[0].as_py()]
    return pa.RecordBatch.from_arrays([batch.column(n) for n in schema.names], schema=schema)


def by_schema(
    batch: pa.RecordBatch, schemas: Sequence[pa.Schema]
) -> list[tuple[npt.NDArray[np.int64], pa.RecordBatch]]:
    """The rows of each schema as they were before they were mixed, and their places."""
    numbers = batch.column(SCHEMA).to_numpy()
    found = []
    for number in np.unique(numbers):
        at = np.flatnonzero(numbers == number)
        rows = batch if len(at) == len(numbers) else batch.take(pa.array(at))
        found.append((at, restored(rows, schemas)))
    return found
