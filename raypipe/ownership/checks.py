"""What several workers can't do: refused when it is declared, rather than answered wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from raypipe.errors import DeclarationError
from raypipe.ownership.routes import Ownership
from raypipe.patterns.spec import Pattern
from raypipe.tables.spec import Kind, Table


def check_tables(tables: Sequence[Table]) -> None:
    """Raise DeclarationError for a table whose rows can't be merged from those of its workers."""
    for table in tables:
        for measure in table.measures:
            if measure.kind is Kind.DISTINCT:
                raise DeclarationError(
                    f"table {table.name!r}: {measure.name!r} counts different values, and several "
                    "workers may each count the same one",
                    hint="Leave the measure out, or use one worker.",
                )


def check_patterns(ownership: Ownership, patterns: Sequence[Pattern]) -> None:
    """Raise DeclarationError for a pattern whose events of one key several workers have."""
    for pattern in patterns:
        entities = set()
        for kind, column in pattern.keys:
            first = next(iter(ownership.keys.get(kind, ())), None)
            if first is None or first.column != column:
                pattern.fail(
                    "group_by",
                    f"{kind} events lie with the worker of "
                    f"{'their own id' if first is None else repr(first.column)}, not of {column!r}",
                    "With several workers a pattern groups by the primary key of its event types.",
                )
            entities.add(first.entity)
        if len(entities) > 1:
            pattern.fail(
                "group_by",
                f"its event types lie with the workers of different entities: {sorted(entities)}",
                "With several workers a pattern groups by one entity's key.",
            )
