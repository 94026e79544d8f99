"""Which changes of a declaration rows in the log can follow, each with its reason and its cure."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from raypipe.errors import DeclarationError, IntegrityError
from raypipe.events.evolution import align, compare, parse
from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.project import Project
from tests.domains.greenhouse import project as greenhouse

NOTE = Field("note", Kind.STRING, max_length=20)
SIZE = Field("size", Kind.INTEGER, required=False, minimum=0, maximum=9)
MODE = Field("mode", Kind.CHOICE, choices=("drip", "spray"))
EVENT = EventType("opening", (NOTE, SIZE, MODE), "an old text")


def changed(field: Field, **changes: object) -> EventType:
    return replace(
        EVENT, fields=tuple(replace(f, **changes) if f is field else f for f in EVENT.fields)
    )


def with_field(field: Field) -> EventType:
    return replace(EVENT, fields=(*EVENT.fields, field))


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (with_field(Field("who", Kind.STRING, required=False)), "added as optional"),
        (changed(NOTE, required=False), "became optional"),
        (changed(NOTE, max_length=21), "max_length went from 20 to 21"),
        (changed(SIZE, minimum=-1), "minimum went from 0 to -1"),
        (changed(SIZE, minimum=None), "minimum went from 0 to None"),
        (changed(SIZE, maximum=10), "maximum went from 9 to 10"),
        (changed(SIZE, maximum=None), "maximum went from 9 to None"),
        (changed(MODE, choices=("drip", "spray", "hose")), "the further choices hose"),
    ],
)
def test_what_is_allowed(after: EventType, reason: str) -> None:
    (change,) = compare(EVENT, after)
    assert not change.breaking
    assert reason in str(change)


@pytest.mark.parametrize(
    "after",
    [
        EVENT,
        replace(EVENT, description="a new text", version=2),
        changed(NOTE, tags=frozenset({Tag.KEY}), description="a new text"),
        replace(EVENT, fields=(MODE, NOTE, SIZE)),
    ],
)
def test_what_is_no_change_for_rows(after: EventType) -> None:
    assert compare(EVENT, after) == ()


@pytest.mark.parametrize(
    ("after", "reason", "cure"),
    [
        (replace(EVENT, fields=(NOTE, MODE)), "size: was removed, and", "required=False"),
        (
            replace(EVENT, fields=(replace(NOTE, name="text", required=False), SIZE, MODE)),
            "note: was removed, or was renamed to text",
            "new optional field beside it",
        ),
        (
            with_field(Field("who", Kind.STRING)),
            "who: was added as required",
            "a new event type beside 'opening'",
        ),
        (
            changed(SIZE, kind=Kind.NUMBER),
            "of kind integer and is now of kind number",
            "under another name",
        ),
        (changed(SIZE, required=True), "may lack it", "keep required=False"),
        (changed(NOTE, max_length=19), "max_length went from 20 to 19", "wider limit"),
        (changed(SIZE, minimum=1), "minimum went from 0 to 1", "wider limit"),
        (changed(SIZE, maximum=8), "maximum went from 9 to 8", "wider limit"),
        (changed(MODE, choices=("drip",)), "lost the choices spray", "append choices only"),
        (changed(MODE, choices=("spray", "drip")), "another order: drip, spray", "append"),
        (changed(MODE, choices=("hose", "drip", "spray")), "another order", "append"),
    ],
)
def test_what_is_breaking_says_why_and_what_to_do(after: EventType, reason: str, cure: str) -> None:
    change = next(c for c in compare(EVENT, after) if c.breaking)
    assert reason in str(change)
    assert cure in change.cure


def test_a_limit_where_there_was_none_is_narrower() -> None:
    free = changed(SIZE, minimum=None, maximum=None)
    assert [c.breaking for c in compare(free, EVENT)] == [True, True]


def test_a_described_type_can_be_read_back() -> None:
    for event in (EVENT, *greenhouse.events):
        again = parse(event.describe())
        assert again.definition_hash == event.definition_hash
        assert compare(again, event) == compare(event, again) == ()
    with pytest.raises(IntegrityError, match="kind"):
        parse({"name": "x", "version": 1, "fields": [{"name": "y"}]})


ROWS = [
    {"tenant": "t", "event_id": f"e-{i}", "event_time": i, "received_at": i, "note": "n", "mode": m}
    for i, m in enumerate(["drip", "spray"])
]


def test_old_rows_get_the_columns_of_today_in_their_order() -> None:
    old = EventType("opening", (MODE, NOTE))
    logged = old.arrow_schema.append(pa.field("windows", pa.binary()))
    batch = pa.RecordBatch.from_pylist([r | {"windows": b"w"} for r in ROWS], logged)
    today = replace(EVENT, fields=(NOTE, SIZE, replace(MODE, required=False)))
    found = align(batch, today)
    assert found.schema.names == [*today.arrow_schema.names, "windows"]
    assert found.schema.field("mode").nullable
    assert found.to_pylist() == [r | {"size": None, "windows": b"w"} for r in ROWS]
    bare = align(batch, today, extras=False)
    assert bare.schema == today.arrow_schema
    assert align(bare, today) is bare
    assert align(bare, today, extras=False) is bare


def test_rows_that_can_not_be_read_so_are_refused() -> None:
    batch = pa.RecordBatch.from_pylist(ROWS, EventType("opening", (NOTE, MODE)).arrow_schema)
    with pytest.raises(IntegrityError, match=r"opening\.who of rows in the log is missing"):
        align(batch, with_field(Field("who", Kind.STRING)))
    with pytest.raises(IntegrityError, match="is string, it is declared as int64"):
        align(batch, changed(NOTE, kind=Kind.INTEGER))


@pytest.mark.parametrize("name", ["decision", "declaration", "receipt"])
def test_names_of_the_logs_own_records_are_taken(name: str) -> None:
    events = (*greenhouse.events, EventType(name, (NOTE,)))
    with pytest.raises(DeclarationError, match=f"{name!r} is taken"):
        Project(**{**vars_of(greenhouse), "events": events})


def vars_of(project: Project) -> dict[str, object]:
    return {n: getattr(project, n) for n in project.__dataclass_fields__}
