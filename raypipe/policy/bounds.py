"""What a condition asks of single values: enough to see that it can't hold, or follows.

A condition is cut at its outer ``and``. Of each part this knows comparisons of a name with a
number, of a text column with a text (also several joined by ``or``), whether the worker is away,
and whether a key is on a list; any other part is only known by its text. A comparison holds for no
missing value, so parts that are known speak of values that are there.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from raypipe.policy.names import AWAY, SCORE, Names, When

_FLIPPED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.Eq}


class Interval(NamedTuple):
    """Numbers from ``low`` to ``high``; an open end is outside."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    @property
    def empty(self) -> bool:
        """Whether no number is inside."""
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def meet(self, other: Interval) -> Interval:
        """What is inside both."""
        low, low_open = max((self.low, self.low_open), (other.low, other.low_open))
        high, high_closed = min((self.high, not self.high_open), (other.high, not other.high_open))
        return Interval(low, high, low_open, not high_closed)

    def within(self, other: Interval) -> bool:
        """Whether all that is inside is inside the other one, too."""
        return self.meet(other) == self


@dataclass
class Asked:
    """What a condition asks, all of it at once."""

    numbers: dict[str, Interval] = field(default_factory=dict)
    texts: dict[str, frozenset[str]] = field(default_factory=dict)
    """The texts that a column may have; a column without an entry may have any."""
    others: dict[str, frozenset[str]] = field(default_factory=dict)
    """The texts that a column may not have."""
    opaque: set[str] = field(default_factory=set)
    """Parts that are only known by their text."""
    denied: set[str] = field(default_factory=set)
    """What stands behind a ``not``, by its text."""
    false: bool = False

    @property
    def impossible(self) -> bool:
        """Whether nothing can fulfil it; False may be not knowing."""
        return (
            self.false
            or any(i.empty for i in self.numbers.values())
            or any(not t - self.others.get(c, frozenset()) for c, t in self.texts.items())
            or not self.opaque.isdisjoint(self.denied)
        )

    def implies(self, other: Asked) -> bool:
        """Whether whatever fulfils this fulfils the other; False may be not knowing."""
        return (
            not other.false
            and all(
                n in self.numbers and self.numbers[n].within(i) for n, i in other.numbers.items()
            )
            and all(c in self.texts and self._left(c) <= t for c, t in other.texts.items())
            and all(self._excludes(c, t) for c, t in other.others.items())
            and other.opaque <= self.opaque
            and other.denied <= self.denied
        )

    def both(self, other: Asked) -> Asked:
        """What is asked where both hold."""
        out = Asked(
            dict(self.numbers),
            dict(self.texts),
            dict(self.others),
            self.opaque | other.opaque,
            self.denied | other.denied,
            self.false or other.false,
        )
        for name, interval in other.numbers.items():
            out.number(name, interval)
        for column, texts in other.texts.items():
            out.text(column, texts)
        for column, texts in other.others.items():
            out.others[column] = out.others.get(column, frozenset()) | texts
        return out

    def number(self, name: str, interval: Interval) -> None:
        """Ask a number to be inside."""
        self.numbers[name] = self.numbers.get(name, Interval()).meet(interval)

    def text(self, column: str, texts: frozenset[str]) -> None:
        """Ask a text to be one of some."""
        self.texts[column] = self.texts.get(column, texts) & texts

    def _left(self, column: str) -> frozenset[str]:
        return self.texts[column] - self.others.get(column, frozenset())

    def _excludes(self, column: str, texts: frozenset[str]) -> bool:
        if column in self.texts:
            return not self._left(column) & texts
        return texts <= self.others.get(column, frozenset())


def asked(when: When, names: Names) -> Asked:
    """What a condition asks; the declared limits of the columns and of the score included."""
    out = Asked()
    for part in _parts(when.tree):
        _ask(out, part, names)
    for name in out.numbers:
        out.number(name, _declared(name, names))
    return out


def _parts(tree: ast.expr) -> list[ast.expr]:
    match tree:
        case ast.BoolOp(op=ast.And(), values=values):
            return [p for v in values for p in _parts(v)]
        case ast.Compare(left=left, ops=ops, comparators=others) if len(ops) > 1:
            pairs = zip(pairwise([left, *others]), ops, strict=True)
            return [ast.Compare(a, [op], [b]) for (a, b), op in pairs]
    return [tree]


def _ask(out: Asked, part: ast.expr, names: Names) -> None:
    match part:
        case ast.Constant(value=int() | float() as value):
            out.false |= value == 0
            return
        case ast.Name(id=name) if name == AWAY:
            out.number(AWAY, Interval(1.0, 1.0))
            return
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id=name)) if name == AWAY:
            out.number(AWAY, Interval(0.0, 0.0))
            return
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            out.denied.add(ast.unparse(operand))
            return
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[right]) if _comparison(
            out, name, type(op), right, names
        ):
            return
        case ast.Compare(left=left, ops=[op], comparators=[ast.Name(id=name)]) if type(
            op
        ) in _FLIPPED and _comparison(out, name, _FLIPPED[type(op)], left, names):
            return
        case ast.BoolOp(op=ast.Or(), values=values):
            found = [_equal(v) for v in values]
            columns = {f[0] for f in found if f}
            if len(columns) == 1 and all(found):
                out.text(columns.pop(), frozenset(f[1] for f in found if f))
                return
    out.opaque.add(ast.unparse(part))


def _comparison(out: Asked, name: str, op: type[ast.cmpop], right: ast.expr, names: Names) -> bool:
    value = _constant(right)
    if isinstance(value, str):
        if op is ast.Eq:
            out.text(name, frozenset({value}))
        elif op is ast.NotEq:
            out.others[name] = out.others.get(name, frozenset()) | {value}
        return op in (ast.Eq, ast.NotEq)
    if value is None or names.textual(name):
        return False
    intervals: Mapping[type[ast.cmpop], Interval] = {
        ast.Lt: Interval(high=value, high_open=True),
        ast.LtE: Interval(high=value),
        ast.Gt: Interval(low=value, low_open=True),
        ast.GtE: Interval(low=value),
        ast.Eq: Interval(value, value),
    }
    if op not in intervals:
        return False
    out.number(name, intervals[op])
    return True


def _equal(node: ast.expr) -> tuple[str, str] | None:
    match node:
        case ast.Compare(
            left=ast.Name(id=column), ops=[ast.Eq()], comparators=[ast.Constant(value=str() as t)]
        ):
            return column, t
    return None


def _constant(node: ast.expr) -> float | str | None:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -float(value)
    return None


def _declared(name: str, names: Names) -> Interval:
    field_ = names.fields.get(name)
    if field_ is not None:
        return Interval(
            -math.inf if field_.minimum is None else field_.minimum,
            math.inf if field_.maximum is None else field_.maximum,
        )
    return Interval(0.0, 1.0) if name in (SCORE, AWAY) else Interval()
