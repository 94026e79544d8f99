"""How often each arm was decided with: a projection of the exposures in the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import pyarrow as pa

from raypipe.ledger.exposure import EXPOSURE, Counted
from raypipe.ledger.record import DecisionRecord
from raypipe.log.port import Chunk
from raypipe.runtime.worker.ids import PART

_EXPOSURES = b"exposures"
_OFFSET = b"offset"

Arm = tuple[str, str]
"""Experiment and arm."""


class ExposureCounts:
    """Of one partition. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, dict[Arm, Counted]] = defaultdict(dict)
        self.counted = -1
        """Offset before which a restored state has counted all; -1 for none restored."""

    def decided(self, record: DecisionRecord) -> None:
        """A decision was made that was not there before."""
        for exposed in record.exposed:
            self._add(
                record.tenant,
                Counted(exposed.experiment, exposed.arm, 1, record.decided_at, record.decided_at),
            )

    def of(self, tenant: str, experiment: str) -> list[Counted]:
        """The arms of an experiment that a tenant's decisions were made with.

        Args:
            experiment: ``name@version``.
        """
        return [c for (name, _), c in self._counts[tenant].items() if name == experiment]

    def replay(self, chunks: Sequence[Chunk]) -> None:
        """Logged rows of any kind; what a restored state has counted is left out."""
        for chunk in (c for c in chunks if c.kind == EXPOSURE):
            rows = chunk.batch.filter(pa.array(chunk.offsets >= self.counted))
            grouped = (
                pa.Table.from_batches([rows])
                .group_by(["tenant", "experiment", "arm"])
                .aggregate([("decided_at", "count"), ("decided_at", "min"), ("decided_at", "max")])
            )
            for row in grouped.to_pylist():
                self._add(
                    row["tenant"],
                    Counted(
                        row["experiment"],
                        row["arm"],
                        row["decided_at_count"],
                        row["decided_at_min"],
                        row["decided_at_max"],
                    ),
                )

    def _add(self, tenant: str, counted: Counted) -> None:
        mine, arm = self._counts[tenant], (counted.experiment, counted.arm)
        before = mine.get(arm)
        mine[arm] = counted if before is None else before.with_(counted)

    def snapshot(self, offset: int) -> pa.Table:
        """All of it, for ``restore``, as of an offset."""
        rows = [(t, c) for t, of in self._counts.items() for c in of.values()]
        table = pa.table(
            {
                "tenant": pa.array([t for t, _ in rows], pa.string()),
                "counted": pa.array([msgspec.msgpack.encode(c) for _, c in rows], pa.binary()),
            }
        )
        return table.replace_schema_metadata({PART: _EXPOSURES, _OFFSET: str(offset).encode()})

    def restore(self, table: pa.Table) -> bool:
        """Take over a snapshot; False if the table is something else."""
        metadata = table.schema.metadata or {}
        if metadata.get(PART) != _EXPOSURES:
            return False
        for tenant, data in zip(*(c.to_pylist() for c in table.columns), strict=True):
            self._add(tenant, msgspec.msgpack.decode(data, type=Counted))
        self.counted = int(metadata[_OFFSET])
        return True
