"""A table's rows from those of several workers, each of which counted some of the events.

Counts and sums add up. A group that had no row of its own with some worker, because that one's
window had its most groups already, has lost events to the others' row there: it joins that row, so
that each row that is shown by name is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypipe.tables.engine import OTHER_GROUPS
from raypipe.tables.spec import Table
from raypipe.tables.state import measures_of

Row = dict[str, Any]
Answer = tuple[list[Row], int | None]
"""What one worker's TableEngine read, and its watermark."""

_Counts = dict[tuple[Any, ...], list[int]]
"""The stored measures of a window by group."""


def merge(table: Table, answers: Sequence[Answer]) -> Answer:
    """The rows of all, of the windows that every worker still keeps, and the oldest watermark.

    A window is final once it is with every worker; while one has had no event yet, none is.
    """
    parts = [_by_window(rows) for rows, _ in answers]
    marks = [mark for _, mark in answers if mark is not None]
    watermark = min(marks) if len(marks) == len(answers) else None
    shared = set.intersection(*(set(part) for part in parts))
    found: list[Row] = []
    for start in sorted(shared):
        found += _window(table, [part[start] for part in parts])
    return found, watermark


def _by_window(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["start"], []).append(row)
    return found


def _window(table: Table, parts: Sequence[list[Row]]) -> list[Row]:
    counted = [_counts(table, rows) for rows in parts]
    other = (OTHER_GROUPS,) * len(table.group_by)
    merged: _Counts = {}
    for counts in counted:
        for group, values in counts.items():
            whole = not table.group_by or all(group in c or other not in c for c in counted)
            sums = merged.setdefault(group if whole else other, [0] * len(values))
            sums[:] = [a + b for a, b in zip(sums, values, strict=True)]
    first = parts[0][0]
    about = {
        "start": first["start"],
        "end": first["end"],
        "final": all(rows[0]["final"] for rows in parts),
        "late": sum(rows[0]["late"] for rows in parts),
    }
    if not merged:
        merged[(None,) * len(table.group_by)] = [0] * len(table.stored)
    return [
        about | dict(zip(table.group_by, group, strict=True)) | measures_of(table, merged[group])
        for group in sorted(merged, key=lambda g: _order(g, other))
    ]


def _counts(table: Table, rows: Sequence[Row]) -> _Counts:
    """One worker's window; its row of zeros without a group stands for no events."""
    found = {
        tuple(row[name] for name in table.group_by): [row[m.name] for m in table.stored]
        for row in rows
    }
    nothing = (None,) * len(table.group_by)
    if len(found) == 1 and not any(found.get(nothing, [1])):
        return {}
    return found


def _order(group: tuple[Any, ...], other: tuple[str, ...]) -> tuple[bool, list[str]]:
    last = bool(other) and group == other
    return last, [] if last else ["" if v is None else str(v) for v in group]
