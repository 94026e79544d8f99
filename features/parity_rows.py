"""The rows that parity compares and computes from: decisions and events of some keys, by DuckDB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.batch import EntityPass
from features.log_files import LogFiles
from features.store import duck
from features.store.state import quoted
from raypipe.ledger.record import LOG_KIND, DecisionRecord, decode
from raypipe.log.port import OFFSET
from raypipe.project import Project
from raypipe.windows.inputs import Inputs

if TYPE_CHECKING:
    import duckdb

Ints = npt.NDArray[np.int64]


@contextmanager
def connect(project: Project, files: LogFiles) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the log's rows as tables ``log_<kind>``."""
    with duck.connect(spill=files.spill) as con:
        for kind in (LOG_KIND, *(e.name for e in project.events)):
            con.register(f"log_{kind}", files.table(kind))
        yield con


class Reader:
    """Decisions and events of some keys, out of tables ``log_<kind>``."""

    def __init__(self, con: duckdb.DuckDBPyConnection, project: Project) -> None:
        self._con = con
        self._project = project
        self._decided = f"log_{project.decision}"

    def draw(self, key: str, keys: int, seed: int, since_ms: int) -> pa.Table:
        """Up to so many keys that were decided about, in column `key`: the same for one seed."""
        return self._con.sql(
            f"""
            SELECT key FROM (
              SELECT DISTINCT event.{quoted(key)} AS key
              FROM log_{LOG_KIND} decision JOIN {self._decided} event USING (event_id)
              WHERE decided_at >= $since AND event.{quoted(key)} IS NOT NULL
            ) ORDER BY md5($seed || ':' || key), key LIMIT $keys
            """,  # noqa: S608 -- names come from the declaration, values are parameters
            params={"since": since_ms, "seed": str(seed), "keys": keys},
        ).to_arrow_table()

    def records(self, key: str, drawn: pa.Table, since_ms: int) -> list[DecisionRecord]:
        """The decisions about these keys, in log order."""
        self._con.register("drawn", drawn)
        found = self._con.execute(
            f"""
            SELECT record FROM log_{LOG_KIND} WHERE decided_at >= $since AND event_id IN (
              SELECT event_id FROM {self._decided} JOIN drawn ON {quoted(key)} = key
            ) ORDER BY "{OFFSET}"
            """,  # noqa: S608 -- names come from the declaration, values are parameters
            {"since": since_ms},
        ).fetchall()
        return [decode(record) for (record,) in found]

    def decided(self, offsets: Ints) -> pa.Table:
        """The decision events at these offsets, in their order; those that are there."""
        self._con.register("decided_at", pa.table({OFFSET: offsets}))
        found = self._con.sql(
            f'SELECT * FROM {self._decided} SEMI JOIN decided_at USING ("{OFFSET}")'  # noqa: S608
            f' ORDER BY "{OFFSET}"'
        ).to_arrow_table()
        event = self._project.decision_event.arrow_schema
        return found.cast(pa.schema([pa.field(OFFSET, pa.int64()), *event]))

    def events(self, plan: EntityPass, kind: str, decided: pa.Table) -> pa.Table:
        """All events of one type up to the last decided one, of every key that was decided about.

        Decided events themselves are among them, also those without a key.
        """
        self._con.register("decided", decided.select([OFFSET, plan.key]))
        columns = [OFFSET, "tenant", "event_id", "event_time", plan.key]
        for view in plan.views:
            columns += Inputs(view, kind).columns if kind in view.events else ()
        key = quoted(plan.key)
        found = self._con.sql(
            f"""
            SELECT {", ".join(map(quoted, dict.fromkeys(columns)))} FROM log_{kind}
            WHERE "{OFFSET}" <= (SELECT max("{OFFSET}") FROM decided) AND (
              {key} IN (SELECT {key} FROM decided WHERE {key} IS NOT NULL)
              OR ({key} IS NULL AND "{OFFSET}" IN (SELECT "{OFFSET}" FROM decided))
            )
            """  # noqa: S608 -- names come from the declaration
        ).to_arrow_table()
        types = {f.name: f.type for f in self._project.event(kind).arrow_schema}
        return found.cast(pa.schema([(n, types.get(n, pa.int64())) for n in found.column_names]))
