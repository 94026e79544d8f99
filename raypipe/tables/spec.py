"""Tables declared as data: what is counted by minute (or another span), and for how long.

A table has a row for each tenant, window and group. A window is the event times
``[n * span, (n + 1) * span)``. The watermark of an event is the newest ``received_at`` of all
events up to it in the log, itself included: the server's clock as it was logged. An event whose
watermark is at or beyond ``window end + allowed_lateness`` is late: it changes no row and is
counted as late in its window. So a window is final once the watermark is there, and reads the same
however the log was cut into batches.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from raypipe.errors import DeclarationError
from raypipe.events.schema import canonical_json
from raypipe.windows.conditions import Condition
from raypipe.windows.spec import seconds

MOST_ROWS = 2_000_000
"""Windows times groups that a table may keep of one tenant."""

MOST_REGISTERS = 16_384

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Kind(StrEnum):
    """What a measure is."""

    COUNT = "count"
    SUM = "sum"
    DISTINCT = "distinct"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Measure:
    """One column of a table.

    ``of`` names the event types that count (all of the table's when empty), ``where`` a condition
    on their columns (raypipe.windows.conditions). A ratio divides the measures named in ``parts``.
    """

    name: str
    kind: Kind
    column: str = ""
    of: tuple[str, ...] = ()
    where: str = ""
    registers: int = 0
    parts: tuple[str, ...] = ()

    def describe(self) -> list[Any]:
        """Plain data for hashes and documents."""
        where, parts = self.where, list(self.parts)
        return [self.name, self.kind, self.column, list(self.of), where, self.registers, parts]


Events = str | tuple[str, ...]


def count(name: str, of: Events = (), *, where: str = "") -> Measure:
    """Number of events."""
    return Measure(name, Kind.COUNT, "", _names(of), where)


def total(name: str, column: str, of: Events = (), *, where: str = "") -> Measure:
    """Sum of an integer column, exact below 2**63; a missing value adds nothing."""
    return Measure(name, Kind.SUM, column, _names(of), where)


def distinct(
    name: str, column: str, of: Events = (), *, where: str = "", registers: int = 4_096
) -> Measure:
    """Estimated number of different values of a string column, rounded; null is no value.

    A HyperLogLog of ``registers`` bytes while the window is open, a number once it is final.
    Standard error 1.04 / sqrt(registers): 1.6 % with 4,096, less for few values (Ertl 2017).
    """
    return Measure(name, Kind.DISTINCT, column, _names(of), where, registers)


def ratio(name: str, above: str, below: str) -> Measure:
    """A measure divided by another, made when it is read; missing where the other is 0."""
    return Measure(name, Kind.RATIO, parts=(above, below))


def _names(of: Events) -> tuple[str, ...]:
    return (of,) if isinstance(of, str) else tuple(of)


@dataclass(frozen=True)
class Table:
    """Measures of some event types by window and, if wished, by group.

    Each different tuple of values of the ``group_by`` columns is a group; null is a value. Beyond
    ``groups`` of them in a window, in log order, the rest goes to one row whose group is
    ``(other)``. Rows are kept until their window's end is ``keep`` behind the watermark.
    """

    name: str
    events: tuple[str, ...]
    measures: tuple[Measure, ...]
    span: str = "1m"
    group_by: tuple[str, ...] = ()
    allowed_lateness: str = "5m"
    keep: str = "7d"
    groups: int = 100
    description: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise self.wrong("its name", "Use lower case letters, digits, underscores.")
        if not self.events or len(set(self.events)) != len(self.events):
            raise self.wrong("its event types", "Name each type that counts, once.")
        if self.keep_ms < self.span_ms + self.lateness_ms or self.keep_ms % self.span_ms:
            raise self.wrong(
                f"keep {self.keep}", "Keep a whole number of spans, at least span plus lateness."
            )
        if self.groups < 1 or self.rows > MOST_ROWS:
            raise self.wrong(
                f"{self.rows:,} rows of a tenant",
                f"keep / span times groups may be {MOST_ROWS:,}: a longer span, fewer groups.",
            )
        names = [*self.group_by, *(m.name for m in self.measures)]
        taken = {"start", "end", "final", "late"}
        if not self.measures or len(set(names)) != len(names) or taken & set(names):
            raise self.wrong(
                "its measures", f"Give each a name of its own, not one of {', '.join(taken)}."
            )
        for i, measure in enumerate(self.measures):
            self._check(measure, {m.name: m for m in self.measures[:i]})

    def _check(self, m: Measure, before: dict[str, Measure]) -> None:
        if not _NAME.fullmatch(m.name):
            raise self.wrong(f"measure {m.name!r}", "Use lower case letters, digits, underscores.")
        unknown = [kind for kind in m.of if kind not in self.events]
        if unknown or (m.kind in {Kind.SUM, Kind.DISTINCT} and not m.column):
            raise self.wrong(
                f"measure {m.name!r}",
                f"It has types {', '.join(self.events)}; sums and distinct need a column.",
            )
        if m.kind is Kind.RATIO and (
            len(m.parts) != 2 or any(before.get(p, m).kind is Kind.RATIO for p in m.parts)
        ):
            raise self.wrong(
                f"ratio {m.name!r}", "It divides two measures that are declared first."
            )
        r = m.registers
        if m.kind is Kind.DISTINCT and (not 64 <= r <= MOST_REGISTERS or r & (r - 1)):
            raise self.wrong(
                f"{r} registers of {m.name!r}", f"A power of two from 64 to {MOST_REGISTERS}."
            )
        if m.where:
            Condition(m.where)

    def wrong(self, what: str, hint: str) -> DeclarationError:
        """The error about a part of this declaration."""
        return DeclarationError(f"table {self.name!r}: {what} can't be used", hint=hint)

    @cached_property
    def span_ms(self) -> int:
        """Length of a window."""
        return 1_000 * seconds(self.span)

    @cached_property
    def lateness_ms(self) -> int:
        """How far the watermark passes a window's end before it is final."""
        return 1_000 * seconds(self.allowed_lateness)

    @cached_property
    def keep_ms(self) -> int:
        """How far the watermark passes a window's end before it is dropped."""
        return 1_000 * seconds(self.keep)

    @property
    def rows(self) -> int:
        """Most rows that are kept of one tenant."""
        return (self.keep_ms // self.span_ms) * (self.groups + 1 if self.group_by else 1)

    @cached_property
    def stored(self) -> tuple[Measure, ...]:
        """The measures that are counted; ratios are made of them."""
        return tuple(m for m in self.measures if m.kind is not Kind.RATIO)

    def of(self, measure: Measure) -> tuple[str, ...]:
        """The event types that a measure counts."""
        return measure.of or self.events

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents; text that changes no value is left out."""
        return {
            "name": self.name,
            "events": list(self.events),
            "measures": [m.describe() for m in self.measures],
            "span": self.span_ms,
            "group_by": list(self.group_by),
            "lateness": self.lateness_ms,
            "keep": self.keep_ms,
            "groups": self.groups,
        }

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of what determines the rows."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()
