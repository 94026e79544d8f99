"""Reading projections back from a log."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.ownership.routes import Ownership, projected


@dataclass(frozen=True, slots=True)
class Parts:
    """The projections of one event type: its name, and their columns in the log."""

    kind: str
    schema: pa.Schema

    def align(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Logged projections with the columns that are read now.

        Raises IntegrityError for one that they lack: ``claim`` refuses such a declaration before.
        """
        if batch.schema.equals(self.schema):
            return batch
        missing = [n for n in self.schema.names if n not in batch.schema.names]
        if missing:
            raise IntegrityError(
                f"projections of {self.kind!r} in the log have no column {missing[0]!r}",
                hint="They were written under other declarations of the views.",
            )
        columns = [batch.column(n).cast(self.schema.field(n).type) for n in self.schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def kinds_of_parts(ownership: Ownership) -> dict[str, Parts]:
    """By the kind of the projections."""
    return {projected(k): Parts(k, schema) for k, schema in ownership.schemas.items()}
