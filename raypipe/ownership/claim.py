"""A log belongs to a number of workers, and to the ways of events among them: it says so itself.

Each partition begins with a record of that. One worker, who needs no ways, leaves none: its log is
one of the time before there were several.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from raypipe.errors import ConfigError, DeclarationError, UsageError
from raypipe.events.schema import canonical_json
from raypipe.log.port import OWNERSHIP, EventLog
from raypipe.ownership.routes import Ownership

ONE_LOG = (
    "Load, compute features and train in a home of one worker; serve several from the same "
    "`lake_url`."
)
"""What to do instead."""

SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("definition", pa.string(), nullable=False),
    ]
)
"""``event_id`` is the record's number, from 1; the tenant is empty."""


def claim(log: EventLog, partition: int, epoch: int, ownership: Ownership | None) -> None:
    """Record with which ways a worker of this epoch begins to write. Raises as ``check_claim``."""
    known = recorded(log, partition)
    check_claim(log, partition, ownership)
    if ownership is None:
        return
    now = describe(ownership)
    if known and known[-1] == now:
        return
    number = str(len(known) + 1)
    row = {"tenant": "", "event_id": number, "definition": canonical_json(now).decode()}
    batch = pa.RecordBatch.from_pylist([row], SCHEMA)
    producer = f"ownership-{partition}-{epoch}"
    log.append(partition, [(OWNERSHIP, batch)], producer=producer, seq=0, epoch=epoch)


def recorded(log: EventLog, partition: int) -> list[dict[str, Any]]:
    """Every record of a partition, oldest first."""
    found: list[dict[str, Any]] = []
    while (row := log.find(partition, OWNERSHIP, "", str(len(found) + 1))) is not None:
        found.append(json.loads(row[1].column("definition")[0].as_py()))
    return found


def describe(ownership: Ownership) -> dict[str, Any]:
    """Plain data of what a partition's rows depend on."""
    return {
        "workers": ownership.workers,
        "keys": {
            kind: [[k.entity, k.column] for k in keys] for kind, keys in ownership.keys.items()
        },
        "columns": {kind: list(s.names) for kind, s in ownership.schemas.items()},
    }


def check_claim(log: EventLog, partition: int, ownership: Ownership | None) -> None:
    """Raise ConfigError for a log of another number of workers, DeclarationError for views that
    read what rows of several workers lack."""
    known = recorded(log, partition)
    workers = 1 if ownership is None else ownership.workers
    was = _workers(known)
    if was != workers and (known or log.end(partition)):
        raise ConfigError(
            f"the log was begun with {_many(was)}, and `workers` is {workers}",
            hint=f"Set workers={was}, or begin a new log (`log_url`, `home`). Keys can't move "
            "between workers yet.",
        )
    if not known or ownership is None:
        return
    now = describe(ownership)
    for kind, keys in known[-1]["keys"].items():
        if kind not in now["keys"]:
            continue
        if keys != now["keys"][kind]:
            raise _changed(kind, f"keys {keys} became {now['keys'][kind]}")
        more = [c for c in now["columns"][kind] if c not in known[-1]["columns"][kind]]
        if more:
            raise _changed(kind, f"its views read {', '.join(more)} too")


def begun_for(log: EventLog) -> int:
    """The number of workers that a log belongs to: that of its partitions."""
    return _workers(recorded(log, 0))


def _workers(known: list[dict[str, Any]]) -> int:
    return int(known[-1]["workers"]) if known else 1


def require_single(log: EventLog, what: str) -> None:
    """Raise UsageError for a log of several workers, whose partitions ``what`` can't read yet."""
    workers = begun_for(log)
    if workers > 1:
        raise UsageError(
            f"{what} reads the log of one worker, and this one belongs to {_many(workers)}",
            hint=ONE_LOG,
        )


def require_one(workers: int, what: str) -> None:
    """Raise UsageError for a setting ``workers`` with which ``what`` can't work yet."""
    if workers > 1:
        raise UsageError(f"{what} works with one worker, and `workers` is {workers}", hint=ONE_LOG)


def _changed(kind: str, how: str) -> DeclarationError:
    return DeclarationError(
        f"the owners of the other keys of {kind!r} were told less of its events: {how}",
        hint="With several workers, new keys and new columns of views need a new log (`log_url`).",
    )


def _many(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"
