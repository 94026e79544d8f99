"""Reasons: the sentence of an alert, a template with values of the match in braces.

``{small.count}``, ``{big.amount}`` (of a step's last event), ``{small.amount_max}`` and the other
forms that conditions know, ``{key}``, ``{minutes}`` and ``{seconds}``, how long the match took.
``:money`` behind an amount writes hundredths as two decimals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from string import Formatter
from typing import Any, NamedTuple

from raypipe.events.schema import Kind
from raypipe.patterns.expressions import Memory, Reference, Scope
from raypipe.patterns.kernel import Agg

LONGEST = 500
"""Characters of a reason; what is longer is cut."""

MONEY = "money"
OF_MATCH = ("key", "minutes", "seconds")
_WRITE = "Write {STEP.count}, {STEP.COLUMN} or {key}; a brace itself is {{ or }}."


class Match(NamedTuple):
    """What a reason may tell of one match.

    ``counts``, ``lasts`` and ``firsts`` are of each step: its events, the offsets of its last and
    its first one. ``value`` gives a column of the event at an offset, ``numbers`` are remembered.
    """

    key: str
    milliseconds: int
    counts: list[int]
    lasts: list[int]
    firsts: list[int]
    numbers: list[float]
    value: Callable[[int, str], Any]


class _Field(NamedTuple):
    before: str
    name: str
    found: Reference | None
    kind: Kind | None
    money: bool


class Reason:
    """One template; raises DeclarationError if it names what a match does not have.

    ``columns`` are the event columns that it reads, beside the numbers that are remembered.
    """

    def __init__(self, scope: Scope, memory: Memory) -> None:
        self._pattern = scope.pattern
        self._memory = memory
        self._fields: list[_Field] = []
        try:
            parts = list(Formatter().parse(scope.pattern.reason))
        except ValueError as e:
            scope.pattern.fail("reason", f"its reason can't be read: {e}", _WRITE)
        for text, name, format_, conversion in parts:
            if name is None:
                self._fields.append(_Field(text, "", None, None, money=False))
            else:
                self._fields.append(self._field(scope, text, name, format_, conversion))
        self.columns = tuple(
            dict.fromkeys(
                f.found.column
                for f in self._fields
                if f.found and f.found.column and f.found.agg in (Agg.LAST, Agg.FIRST)
            )
        )

    def _field(
        self, scope: Scope, text: str, name: str, format_: str | None, conversion: str | None
    ) -> _Field:
        if conversion or format_ not in ("", None, MONEY):
            scope.pattern.fail("reason", f"{{{name}}} has a format", "Only :money is known.")
        money = format_ == MONEY
        if name in OF_MATCH and not money:
            return _Field(text, name, None, None, money=False)
        step, _, attribute = name.partition(".")
        if not attribute.isidentifier():
            scope.pattern.fail("reason", f"its reason has {{{name}}}", _WRITE)
        positive = scope.pattern.positive
        found = scope.reference(step, attribute, len(positive), "reason")
        kind = scope.kind(positive[found.step], found.column, "reason") if found.column else None
        if money and kind is not Kind.AMOUNT:
            scope.pattern.fail("reason", f"{{{name}}} is no amount", "Leave :money out.")
        if found.column and found.agg not in (Agg.LAST, Agg.FIRST):
            self._memory.remember(found)
        return _Field(text, name, found, kind, money)

    def text(self, match: Match) -> str:
        """The sentence for one match."""
        out = "".join(f.before + self._value(f, match) for f in self._fields)
        if not out.isprintable():
            out = "".join(c if c.isprintable() else " " for c in out)
        return out if len(out) <= LONGEST else out[: LONGEST - 1] + "…"

    def _value(self, field: _Field, match: Match) -> str:
        found = field.found
        if found is None:
            return "" if not field.name else _of_match(field.name, match)
        if not found.column:
            return str(match.counts[found.step])
        value: Any
        if found.agg is Agg.LAST:
            value = match.value(match.lasts[found.step], found.column)
        elif found.agg is Agg.FIRST:
            value = match.value(match.firsts[found.step], found.column)
        else:
            value = match.numbers[self._memory.remembered.index(found)]
        return _shown(value, field.kind, money=field.money)


def _of_match(name: str, match: Match) -> str:
    if name == "key":
        return match.key
    unit = 60_000 if name == "minutes" else 1_000
    return _shown(match.milliseconds / unit, None, money=False)


def _shown(value: Any, kind: Kind | None, *, money: bool) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or kind is Kind.BOOLEAN:
        return "yes" if value else "no"
    if money:
        sign, cents = "-" if value < 0 else "", abs(int(value))
        return f"{sign}{cents // 100}.{cents % 100:02}"
    if kind is Kind.TIME:
        return datetime.fromtimestamp(int(value) / 1_000, UTC).isoformat("T", "seconds")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.1f}"
    return str(value)
