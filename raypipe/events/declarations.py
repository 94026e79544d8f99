"""What was declared while rows were written: records in the log, one for each change of a type.

Whoever writes events of a type first makes sure that its declaration is one that rows in the log
can be read with. The declarations of a type are numbered, so the newest is found by its id.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa

from raypipe.errors import DeclarationError
from raypipe.events.evolution import compare, parse
from raypipe.events.schema import EventType, canonical_json
from raypipe.log.port import DECLARATION, EventLog

if TYPE_CHECKING:
    from raypipe.project import Project

SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("definition_hash", pa.string(), nullable=False),
        pa.field("definition", pa.string(), nullable=False),
    ]
)
"""``event_id`` is ``<type>@<number>``, the tenant is empty: a declaration is everyone's."""


def recorded(log: EventLog, event: str, partition: int = 0) -> list[EventType]:
    """Every recorded declaration of an event type, oldest first."""
    found: list[EventType] = []
    while True:
        row = log.find(partition, DECLARATION, "", f"{event}@{len(found) + 1}")
        if row is None:
            return found
        found.append(parse(json.loads(row[1].column("definition")[0].as_py())))


def check_declarations(log: EventLog, project: Project, partition: int = 0) -> pa.RecordBatch:
    """The declarations of a project that the log has yet to record, rows of SCHEMA.

    Raises DeclarationError with every reason if one of them can't follow the newest recorded one.
    """
    new: list[dict[str, str]] = []
    broken: list[str] = []
    for event in project.events:
        known = recorded(log, event.name, partition)
        if known and known[-1].definition_hash == event.definition_hash:
            continue
        if known:
            changes = compare(known[-1], event)
            broken += [f"{event.name}.{c}" for c in changes if c.breaking]
        new.append(
            {
                "tenant": "",
                "event_id": f"{event.name}@{len(known) + 1}",
                "definition_hash": event.definition_hash,
                "definition": canonical_json(event.describe()).decode(),
            }
        )
    if broken:
        raise DeclarationError(
            f"project {project.name!r} can't read the rows that are in the log; "
            + "; ".join(broken),
            hint="Change the declaration as said, or begin a new log (`log_url`).",
        )
    return pa.RecordBatch.from_pylist(new, SCHEMA)


def declare(log: EventLog, project: Project, partition: int, epoch: int) -> None:
    """Record the declarations with which a worker of this epoch begins to write.

    Raises DeclarationError as ``check_declarations`` does; then nothing is written.
    """
    new = check_declarations(log, project, partition)
    if new.num_rows:
        producer = f"declarations-{partition}-{epoch}"
        log.append(partition, [(DECLARATION, new)], producer=producer, seq=0, epoch=epoch)
