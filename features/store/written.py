"""What materialize has put online: the newest row of each key, by (event time, log offset).

The online store refuses what is older by itself. This record is what saves a later run from sending
it all again, and lets it go on where a run that was ended left off.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType

import pyarrow as pa

SCHEMA = pa.schema([("key", pa.string()), ("time", pa.int64()), ("offset", pa.int64())])
"""Times in microseconds since 1970 UTC."""

_TABLES = """
CREATE TABLE IF NOT EXISTS definition (view TEXT PRIMARY KEY, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS written (
  view TEXT, key TEXT, time INTEGER NOT NULL, "offset" INTEGER NOT NULL, PRIMARY KEY (view, key)
) WITHOUT ROWID;
"""


class Written:
    """The record of one home; a context manager."""

    def __init__(self, home: Path) -> None:
        self._db = sqlite3.connect(home / "feast" / "written.db", timeout=30.0)
        self._db.executescript(_TABLES)

    def __enter__(self) -> Written:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def rows(self, view: str, definition: str) -> pa.Table:
        """Columns of SCHEMA; empty when the view was never written with that definition."""
        found = self._db.execute(
            'SELECT key, time, "offset" FROM written NATURAL JOIN definition'
            " WHERE view = ? AND hash = ?",
            (view, definition),
        ).fetchall()
        columns = zip(*found, strict=True) if found else ([], [], [])
        return pa.table(
            [pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], SCHEMA
        )

    def some_key(self, view: str) -> str | None:
        """Any key that was written."""
        row = self._db.execute("SELECT key FROM written WHERE view = ? LIMIT 1", (view,)).fetchone()
        return None if row is None else str(row[0])

    def add(self, view: str, definition: str, rows: pa.Table) -> None:
        """Note rows (columns of SCHEMA) that the online store has taken, in one transaction."""
        with self._db:
            known = self._db.execute(
                "SELECT hash FROM definition WHERE view = ?", (view,)
            ).fetchone()
            if known != (definition,):
                self._db.execute("DELETE FROM written WHERE view = ?", (view,))
                self._db.execute("REPLACE INTO definition VALUES (?, ?)", (view, definition))
            self._db.executemany(
                "REPLACE INTO written VALUES (?, ?, ?, ?)",
                zip(
                    [view] * rows.num_rows,
                    *(rows.column(n).to_pylist() for n in SCHEMA.names),
                    strict=True,
                ),
            )

    def forget(self, view: str) -> None:
        """The online rows of a view are gone or void."""
        with self._db:
            self._db.execute("DELETE FROM written WHERE view = ?", (view,))
            self._db.execute("DELETE FROM definition WHERE view = ?", (view,))
