"""What several workers must have left in their logs, told by SQL that knows nothing of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.log.port import EventLog
from raypipe.ownership.routes import PREFIX, Ownership
from tests.domains.greenhouse import project
from tests.property.oracle import compare, truth

COLUMNS = ("tenant", "event_time", "valve", "gardener", "litres")


@dataclass(frozen=True)
class Left:
    """The log of several workers of the greenhouse, and what clients were told: by event id, the
    window values that their decisions were made from."""

    log: EventLog
    ownership: Ownership
    answers: Mapping[str, bytes]

    @property
    def workers(self) -> range:
        return range(self.ownership.workers)


def logged(left: Left, partition: int) -> list[dict[str, Any]]:
    """What lies in a partition of events, whole and in part, in order."""
    found = []
    for chunk in left.log.read(partition, left.log.first(partition), 10**6):
        kind = chunk.kind.removeprefix(PREFIX)
        if kind not in {"opening", "flood"}:
            continue
        for offset, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True):
            whole = kind == chunk.kind
            event_id = row["event_id"] if whole else row["event_id"].partition("@")[0]
            found.append(
                {"offset": offset, "kind": kind, "id": event_id, "whole": whole}
                | {name: row.get(name) for name in COLUMNS}
            )
    return sorted(found, key=lambda row: row["offset"])


def check_once(left: Left, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Each event is whole in one log, and once in the log of each of its keys' owners."""
    logs = [logged(left, partition) for partition in left.workers]
    whole = Counter(row["id"] for log in logs for row in log if row["whole"])
    assert whole == Counter(event["event_id"] for _, event in rows)
    for log in logs:
        assert set(Counter(row["id"] for row in log).values()) <= {1}
    for kind, event in rows:
        for entity in ("valve", "gardener") if kind == "opening" else ("valve",):
            if event[entity] is None:
                continue
            owner = left.ownership.of_key("default", entity, event[entity])
            (row,) = [r for r in logs[owner] if r["id"] == event["event_id"]]
            assert row[entity] == event[entity]


def check_values(left: Left, alone: set[str]) -> None:
    """What decisions were made from is what SQL says over the log of each key's owner."""
    assert left.answers.keys() == alone
    at = 0
    for view in project.views:
        for partition in left.workers:
            mine = [
                row
                for row in logged(left, partition)
                if row[view.key] is not None
                and left.ownership.of_key("default", view.entity, row[view.key]) == partition
            ]
            asked = [row for row in mine if row["id"] in alone]
            if not asked:
                continue
            values = {
                row["offset"]: np.frombuffer(
                    left.answers[row["id"]], "<f8", len(view.columns), at * 8
                )
                for row in asked
            }
            true = truth(view, pa.Table.from_pylist(mine), project.decision, at=list(values))
            compare(true, view.column_names, values)
        at += len(view.columns)
