"""How far a worker has heard of the events of other workers.

A worker's forwarder sends what concerns others in the order of its log. Who hears it remembers up
to where, in the same commit that makes it durable: the rows themselves tell it. So nothing has to
be acknowledged twice, and a forwarder that starts anew asks where to go on.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import Conflict
from raypipe.log.port import Chunk, Group
from raypipe.ownership.routes import AT, PRIMARY
from raypipe.runtime.worker.ids import PART

HEARD = b"heard"


class Heard:
    """Of each other partition, the offset before which all that concerns this worker is here.

    Events that came one by one don't count: a replica may have told of them before the forwarder
    did, and they are known by their ids.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}

    def end(self, primary: int) -> int:
        """Where the forwarder of a partition goes on."""
        return self._ends.get(primary, 0)

    def unheard(self, primary: int, first: int, group: Group) -> Group:
        """The rows of a group that are new here.

        Raises Conflict if something between was not sent: the forwarder asks again then.
        """
        end = self.end(primary)
        if first > end:
            raise Conflict(
                f"partition {primary} was heard up to {end}, and now comes {first}",
                hint="Send again from there.",
            )
        if first == end or not group.parts:
            return group
        new = np.zeros(len(group), np.bool_)
        for part in group.parts:
            new[part.positions] = part.batch.column(AT).to_numpy() >= end
        return group.keep(new)

    def hear(self, primary: int, end: int) -> None:
        """All before ``end`` is here once the next commit is done."""
        self._ends[primary] = max(self.end(primary), end)

    def replay(self, chunk: Chunk) -> None:
        """Logged projections."""
        bulk = chunk.batch.filter(pc.is_null(chunk.batch.column("body_hash")))
        for primary in pc.unique(bulk.column(PRIMARY)).to_pylist():
            of = bulk.filter(pc.equal(bulk.column(PRIMARY), primary))
            self.hear(primary, pc.max(of.column(AT)).as_py() + 1)

    def snapshot(self) -> list[pa.Table]:
        """All of it, for ``restore``; nothing where nothing was heard."""
        if not self._ends:
            return []
        columns = {
            "primary": pa.array(list(self._ends), pa.int32()),
            "end": pa.array(list(self._ends.values()), pa.int64()),
        }
        return [pa.table(columns).replace_schema_metadata({PART: HEARD})]

    def restore(self, table: pa.Table) -> bool:
        """Take over a snapshot; False if the table is something else."""
        if (table.schema.metadata or {}).get(PART) != HEARD:
            return False
        for row in table.to_pylist():
            self.hear(row["primary"], row["end"])
        return True

    def stats(self) -> dict[str, float]:
        """Gauges."""
        return {f"heard_of_{primary}": float(end) for primary, end in self._ends.items()}
