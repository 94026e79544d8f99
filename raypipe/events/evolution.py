"""How a declared event type may change while the log holds rows of its earlier declarations.

Rows are never rewritten: a row stays as it was validated, and is read with the declaration of
today. A change is allowed if every row of the earlier declaration is one that today's could have
accepted, but for columns that it lacks; those are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.events.schema import ENVELOPE, EventType, Field, Kind, Tag


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two declarations; ``cure`` says what to do if it is breaking."""

    field: str
    reason: str
    cure: str = ""

    @property
    def breaking(self) -> bool:
        """Whether rows of the earlier declaration can't be read with the new one."""
        return bool(self.cure)

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" + (f" ({self.cure})" if self.cure else "")


def compare(before: EventType, after: EventType) -> tuple[Change, ...]:
    """Every difference in what the fields accept, allowed or breaking, in declared order.

    Places of fields, tags and texts are no differences: columns go by name.
    """
    old = {f.name: f for f in before.fields}
    new = {f.name: f for f in after.fields}
    gone = [f for f in before.fields if f.name not in new]
    added = [f for f in after.fields if f.name not in old]
    found = [_removed(f, added) for f in gone]
    found += [_added(after, f) for f in added]
    for name, field in new.items():
        if name in old:
            found += _changed(after, old[name], field)
    return tuple(found)


def _removed(field: Field, added: list[Field]) -> Change:
    alike = [f.name for f in added if f.kind is field.kind]
    renamed = f", or was renamed to {' or '.join(alike)}" if alike else ""
    return Change(
        field.name,
        f"was removed{renamed}, and rows in the log have it",
        "keep it, with required=False; a new name is a new optional field beside it",
    )


def _added(event: EventType, field: Field) -> Change:
    if not field.required:
        return Change(field.name, "was added as optional; older rows have null there")
    return Change(
        field.name,
        "was added as required, and rows in the log lack it",
        f"add it as optional (required=False), or declare a new event type beside {event.name!r}",
    )


def _changed(event: EventType, old: Field, new: Field) -> Iterator[Change]:
    if old.kind is not new.kind:
        yield Change(
            new.name,
            f"was of kind {old.kind} and is now of kind {new.kind}",
            "add an optional field of that kind under another name, or declare a new event type "
            f"beside {event.name!r}",
        )
        return
    if old.required and not new.required:
        yield Change(new.name, "became optional")
    elif new.required and not old.required:
        yield Change(
            new.name, "became required, and rows in the log may lack it", "keep required=False"
        )
    if old.choices != new.choices:
        yield _choices(old, new)
    if old.max_length != new.max_length and new.kind is Kind.STRING:
        limits = f"max_length went from {old.max_length} to {new.max_length}"
        yield _limit(new, limits, narrower=new.max_length < old.max_length)
    for name, side in (("minimum", 1), ("maximum", -1)):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            narrower = now is not None and (was is None or side * now > side * was)
            yield _limit(new, f"{name} went from {was} to {now}", narrower=narrower)


def _choices(old: Field, new: Field) -> Change:
    if new.choices[: len(old.choices)] == old.choices:
        more = ", ".join(new.choices[len(old.choices) :])
        return Change(new.name, f"has the further choices {more}")
    lost = [c for c in old.choices if c not in new.choices]
    return Change(
        new.name,
        f"lost the choices {', '.join(lost)}"
        if lost
        else f"has its choices in another order: {', '.join(old.choices)} came first",
        "append choices only: a choice's place is its number for a model",
    )


def _limit(field: Field, reason: str, *, narrower: bool) -> Change:
    if not narrower:
        return Change(field.name, reason)
    return Change(
        field.name,
        f"{reason}, and rows in the log may lie outside",
        "keep the wider limit, or refuse such events by a rule of the policy",
    )


def parse(described: Mapping[str, Any]) -> EventType:
    """The event type of which ``EventType.describe`` made this; raises IntegrityError."""
    envelope = {f.name for f in ENVELOPE}
    try:
        fields = tuple(
            Field(
                name=f["name"],
                kind=Kind(f["kind"]),
                required=f["required"],
                tags=frozenset(map(Tag, f["tags"])),
                choices=tuple(f["choices"]),
                max_length=f["max_length"],
                minimum=f["minimum"],
                maximum=f["maximum"],
            )
            for f in described["fields"]
            if f["name"] not in envelope
        )
        return EventType(described["name"], fields, version=described["version"])
    except (KeyError, TypeError, ValueError) as e:
        raise IntegrityError(f"a recorded declaration can't be read: {e!r}") from e


def align(batch: pa.RecordBatch, event: EventType, *, extras: bool = True) -> pa.RecordBatch:
    """Rows of an earlier declaration with the columns of today's, in declared order.

    An optional column that the rows lack is null. Columns that aren't declared, such as those that
    the log adds to live events, follow behind or, without ``extras``, are left out.

    Raises IntegrityError if the rows lack a required column or have one of another type.
    """
    declared = event.arrow_schema
    came = list(batch.schema)
    if came[: len(declared)] == list(declared) and (extras or len(came) == len(declared)):
        return batch
    columns = {n: batch.column(i) for i, n in enumerate(batch.schema.names)}
    found = []
    for field in event.all_fields:
        column = columns.pop(field.name, None)
        if column is None and not field.required:
            column = pa.nulls(batch.num_rows, field.arrow_type)
        if column is None or column.type != field.arrow_type:
            found_type = "missing" if column is None else str(column.type)
            raise IntegrityError(
                f"column {event.name}.{field.name} of rows in the log is {found_type}, "
                f"it is declared as {field.arrow_type}",
                hint="The declaration changed in a way that rows in the log can't follow.",
            )
        found.append(column)
    schema = list(declared)
    if extras:
        found += columns.values()
        schema += [batch.schema.field(n) for n in columns]
    return pa.RecordBatch.from_arrays(found, schema=pa.schema(schema))
