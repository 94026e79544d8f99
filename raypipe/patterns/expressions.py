"""Conditions of steps: the part that reads the event alone, and the part that looks back.

The grammar is that of raypipe.windows.conditions, and beside it

- ``small.amount``: a column of the last event of an earlier step; ``small.amount_first``, ``_max``,
  ``_min``, ``_sum`` over all its events; ``small.count``, how many they were;
- ``seconds_since(small)``: from the last event of an earlier step to this one;
- ``distance_km(lat, lon, small.lat, small.lon)``: on the Earth's surface;
- text columns compared with each other: ``country != login.country``.

A condition is split at its outer ``and``. What reads the event alone is evaluated by columns; the
rest becomes a small program for a stack of numbers, which the kernel runs event by event. A text is
the number of its hash there (53 bits, so that equal numbers are equal texts but for one in 10^16).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType, Kind
from raypipe.patterns.kernel import Agg, Code
from raypipe.patterns.spec import Pattern, Step
from raypipe.patterns.values import text_number
from raypipe.vector.expressions import ARITY
from raypipe.windows.conditions import Condition
from raypipe.yaml_nodes import nearest

DEEPEST = 64
"""Values that a program's stack holds; Python's parser sets a bound of its own."""

FUNCTIONS = {**ARITY, "distance_km": 4}
_CALLS = {name: Code[name.upper()] for name in FUNCTIONS}
_COMPARE = {
    ast.Lt: Code.LESS,
    ast.LtE: Code.LESS_EQUAL,
    ast.Gt: Code.MORE,
    ast.GtE: Code.MORE_EQUAL,
    ast.Eq: Code.EQUAL,
    ast.NotEq: Code.DIFFER,
}
_BINARY = {
    ast.Add: Code.ADD,
    ast.Sub: Code.SUBTRACT,
    ast.Mult: Code.MULTIPLY,
    ast.Div: Code.DIVIDE,
}
_SUFFIXES = {"first": Agg.FIRST, "max": Agg.MOST, "min": Agg.LEAST, "sum": Agg.SUM}
COUNT = "count"


class Reference(NamedTuple):
    """``step.attribute`` resolved: a column over the events of a positive step, by its place.

    ``column`` is empty for the count.
    """

    step: int
    column: str
    agg: Agg


@dataclass
class Memory:
    """What programs of one pattern share: the row's columns, what is remembered, constants."""

    columns: list[str] = field(default_factory=list)
    remembered: list[Reference] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    code: list[tuple[int, int]] = field(default_factory=list)

    def column(self, name: str) -> int:
        """The place of a column among a row's numbers."""
        return _place(self.columns, name)

    def remember(self, reference: Reference) -> int:
        """The place of a number that partial matches keep."""
        self.column(reference.column)
        return _place(self.remembered, reference)


def _place(known: list[Any], item: object) -> int:
    if item not in known:
        known.append(item)
    return known.index(item)


class Scope:
    """What names mean in one pattern: columns of event types, earlier steps."""

    def __init__(self, pattern: Pattern, events: Mapping[str, EventType]) -> None:
        self.pattern = pattern
        self.events = events
        self.places = {s.name: i for i, s in enumerate(pattern.positive)}

    def kind(self, step: Step, name: str, part: str) -> Kind:
        """The kind of a column that every event type of a step has."""
        for event in step.events:
            if name not in self.events[event]:
                known = [f.name for f in self.events[event].all_fields]
                self.pattern.fail(part, f"unknown column {event}.{name}", nearest(name, known))
        kinds = [self.events[e].field(name).kind for e in step.events]
        if len({textual(k) for k in kinds}) > 1:
            self.pattern.fail(
                part, f"{name!r} is text in one of {', '.join(step.events)} and a number in another"
            )
        return kinds[0]

    def reference(self, name: str, attribute: str, before: int, part: str) -> Reference:
        """``name.attribute`` of a step before positive step ``before``."""
        place = self.places.get(name)
        if place is None or place >= before:
            step = self.pattern.step(name)
            earlier = [s.name for s in self.pattern.positive[:before]]
            why = (
                "is no step"
                if step is None
                else "is negated: it has no events"
                if step.negated
                else "is no earlier step"
            )
            hint = nearest(name, earlier) if earlier else "The first step has none before it."
            self.pattern.fail(part, f"{name!r} in {name}.{attribute} {why}", hint)
        step = self.pattern.positive[place]
        if attribute == COUNT:
            return Reference(place, "", Agg.LAST)
        column, _, suffix = attribute.rpartition("_")
        if all(attribute in self.events[e] for e in step.events) or not (
            suffix in _SUFFIXES and column
        ):
            self.kind(step, attribute, part)
            return Reference(place, attribute, Agg.LAST)
        agg = _SUFFIXES[suffix]
        if textual(self.kind(step, column, part)) and agg is not Agg.FIRST:
            self.pattern.fail(
                part, f"{name}.{attribute}: {column!r} is text", f"{name}.{column}_first is known."
            )
        return Reference(place, column, agg)


def textual(kind: Kind) -> bool:
    """Whether values of that kind are compared as text."""
    return kind in (Kind.STRING, Kind.CHOICE, Kind.CURRENCY)


class Compiled(NamedTuple):
    """A step's condition: what columns decide (None: nothing), and the program's place in the
    code (start, end), empty if nothing is left for it."""

    columns: Condition | None
    start: int
    end: int


def compile_where(scope: Scope, step: Step, before: int, memory: Memory) -> Compiled:
    """Compile a step's condition; programs and what they read go into ``memory``.

    Args:
        before: how many positive steps come before it; it may refer to these.
    """
    start = len(memory.code)
    if not step.where:
        return Compiled(None, start, start)
    part = f"steps.{step.name}.where"
    alone = []
    try:
        for conjunct in _conjuncts(ast.parse(step.where, mode="eval").body):
            if not _write(_Writer(scope, step, before, memory, part), memory, conjunct, start):
                alone.append(f"({ast.unparse(conjunct)})")
    except SyntaxError as e:
        scope.pattern.fail(
            part, f"condition {step.where!r} can't be read: {e.msg}", "Write: amount < 500"
        )
    except (ValueError, RecursionError, MemoryError) as e:
        scope.pattern.fail(part, f"condition {step.where!r} can't be read: {e}")
    try:
        columns = Condition(" and ".join(alone)) if alone else None
    except DeclarationError as e:
        scope.pattern.fail(part, e.detail, e.hint)
    return Compiled(columns, start, len(memory.code))


def _write(writer: _Writer, memory: Memory, conjunct: ast.expr, start: int) -> bool:
    """Add one part of a condition to the program, if it needs that; else only check it."""
    before = len(memory.code), len(memory.columns), len(memory.remembered)
    writer.condition(conjunct)
    if not writer.looks_back:
        del memory.code[before[0] :], memory.columns[before[1] :], memory.remembered[before[2] :]
    elif before[0] > start:
        writer.emit(Code.MULTIPLY, 2)
    return writer.looks_back


def _conjuncts(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        return [c for v in tree.values for c in _conjuncts(v)]
    return [tree]


class _Writer:
    """Checks one part of a condition and writes its program; it ends as 1 or 0 on the stack."""

    def __init__(self, scope: Scope, step: Step, before: int, memory: Memory, part: str) -> None:
        self.looks_back = False
        """Whether it needs the stack: an earlier step, a distance, two texts compared."""
        self._scope, self._step, self._before = scope, step, before
        self._memory, self._part = memory, part
        self._depth = 1  # what stands before it

    def emit(self, code: Code, takes: int, argument: int = 0) -> None:
        """Write an operation that takes so many values and leaves one."""
        self._depth += 1 - takes
        if self._depth > DEEPEST:
            self._refuse("is too deep", "Split it, or use fewer brackets.")
        self._memory.code.append((int(code), argument))

    def condition(self, node: ast.expr) -> None:
        """1 where it is neither 0 nor missing, else 0."""
        self._number(node)
        self.emit(Code.FLAG, 1)

    def _number(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if not abs(value) <= sys.float_info.max:
                    self._refuse("has a number that is too large")
                self._constant(float(value))
            case ast.Name() | ast.Attribute(value=ast.Name()):
                if self._value(node):
                    self._refuse(
                        f"reads the text {ast.unparse(node)} as a number", "Compare it with ==."
                    )
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self._number(operand)
                self.emit(Code.NEGATE, 1)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.condition(operand)
                self.emit(Code.NOT, 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                self._number(left)
                self._number(right)
                self.emit(_BINARY[type(op)], 2)
            case ast.BoolOp(op=word, values=parts):
                self.condition(parts[0])
                for part in parts[1:]:
                    self.condition(part)
                    self.emit(Code.MULTIPLY if isinstance(word, ast.And) else Code.ADD, 2)
            case ast.Compare(left=left, ops=ops, comparators=others):
                for i, (a, b) in enumerate(pairwise([left, *others])):
                    self._compare(a, ops[i], b)
                    if i:
                        self.emit(Code.MULTIPLY, 2)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                self._call(name, args)
            case _:
                self._refuse(
                    f"has {ast.unparse(node)!r}",
                    "Allowed: and, or, not, + - * /, comparisons, numbers, quoted text, "
                    "seconds_since, " + ", ".join(sorted(FUNCTIONS)),
                )

    def _call(self, name: str, args: Sequence[ast.expr]) -> None:
        if name == "seconds_since":
            match args:
                case [ast.Name(id=step)]:
                    self._number(ast.Name("event_time"))
                    self._number(ast.Attribute(ast.Name(step), "event_time"))
                    self.emit(Code.SUBTRACT, 2)
                    self._constant(1_000.0)
                    self.emit(Code.DIVIDE, 2)
                    return
            self._refuse("calls seconds_since wrongly", "Write seconds_since(STEP).")
        if name not in FUNCTIONS:
            self._refuse(
                f"calls unknown {name!r}", nearest(name, [*sorted(FUNCTIONS), "seconds_since"])
            )
        if len(args) != FUNCTIONS[name]:
            self._refuse(f"gives {name} {len(args)} values, it takes {FUNCTIONS[name]}")
        self.looks_back |= name == "distance_km"
        for arg in args:
            self._number(arg)
        self.emit(_CALLS[name], len(args))

    def _compare(self, a: ast.expr, op: ast.cmpop, b: ast.expr) -> None:
        texts = [self._is_text(n) for n in (a, b)]
        if type(op) not in _COMPARE:
            self._refuse(f"has {ast.unparse(ast.Compare(a, [op], [b]))!r}", "Use < <= > >= == !=.")
        if any(texts):
            if not all(texts) or not isinstance(op, ast.Eq | ast.NotEq):
                self._refuse(
                    f"compares {ast.unparse(ast.Compare(a, [op], [b]))}",
                    "Text is compared with text by == and !=; put quotes around a text.",
                )
            self._check_choice(a, b)
            self._check_choice(b, a)
            quoted = [isinstance(n, ast.Constant) for n in (a, b)]
            self.looks_back |= not any(quoted) or all(quoted)
            self._text(a)
            self._text(b)
        else:
            self._number(a)
            self._number(b)
        self.emit(_COMPARE[type(op)], 2)

    def _check_choice(self, column: ast.expr, quoted: ast.expr) -> None:
        if isinstance(column, ast.Name) and isinstance(quoted, ast.Constant):
            for event in self._step.events:
                field_ = self._scope.events[event].field(column.id)
                if field_.choices and quoted.value not in field_.choices:
                    self._refuse(
                        f"compares {event}.{column.id} with {quoted.value!r}",
                        nearest(str(quoted.value), field_.choices),
                    )

    def _is_text(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant(value=str()):
                return True
            case ast.Name(id=name):
                return textual(self._scope.kind(self._step, name, self._part))
            case ast.Attribute(value=ast.Name(id=step), attr=attribute):
                found = self._reference(step, attribute)
                return bool(found.column) and textual(self._kind_of(found))
        return False

    def _text(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant):
            self._constant(text_number(str(node.value)))
        else:
            self._value(node)

    def _value(self, node: ast.expr) -> bool:
        """Read a column or an earlier step's value; whether it is text."""
        match node:
            case ast.Name(id=name):
                kind = self._scope.kind(self._step, name, self._part)
                self.emit(Code.COLUMN, 0, self._memory.column(name))
                return textual(kind)
            case ast.Attribute(value=ast.Name(id=step), attr=attribute):
                found = self._reference(step, attribute)
                if not found.column:
                    self.emit(Code.COUNT, 0, found.step)
                    return False
                self.emit(Code.REMEMBERED, 0, self._memory.remember(found))
                return textual(self._kind_of(found))
        raise TypeError(node)

    def _reference(self, step: str, attribute: str) -> Reference:
        self.looks_back = True
        return self._scope.reference(step, attribute, self._before, self._part)

    def _kind_of(self, found: Reference) -> Kind:
        return self._scope.kind(self._scope.pattern.positive[found.step], found.column, self._part)

    def _constant(self, value: float) -> None:
        self.emit(Code.CONSTANT, 0, _place(self._memory.constants, value))

    def _refuse(self, what: str, hint: str = "") -> NoReturn:
        self._scope.pattern.fail(
            self._part, f"condition {self._step.where!r} of step {self._step.name!r} {what}", hint
        )
