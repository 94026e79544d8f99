"""Derived features: whitelisted expressions, compiled once for columns and once for a row.

Both forms do the same IEEE 754 double operations in the same order, so they give the same bits.
Only operations that IEEE 754 rounds exactly are allowed: no log, exp or power, whose vectorised
and scalar forms may differ in the last bit. Missing values are NaN and travel through arithmetic; a
comparison with NaN is 0; what is divided by zero is missing.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.errors import DeclarationError

Floats = npt.NDArray[np.float64]
ColumnProgram = Callable[[Mapping[str, Floats]], dict[str, Floats]]
RowProgram = Callable[[dict[str, float]], None]

_DAY_MS = 86_400_000.0
_EPOCH_WEEKDAY = 3.0  # 1970-01-01 was a Thursday; Monday is 0
_DEEPEST = 150  # Python's own parser gives up at 200 open brackets


@dataclass(frozen=True, slots=True)
class Derived:
    """A feature computed from event fields, window values and earlier derived features."""

    name: str
    expression: str
    description: str = ""


def _divide(a: float, b: float) -> float:
    return a / b if b != 0.0 else math.nan


def _floor(a: float) -> float:
    # math.floor returns an int: it refuses NaN and infinity and loses the sign of -0.0.
    return float(math.floor(a)) if math.isfinite(a) and a != 0.0 else a


def _minimum(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else (a if a <= b else b)


def _maximum(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else (a if a >= b else b)


def _sqrt(a: float) -> float:
    return math.sqrt(a) if a >= 0.0 else math.nan


def _divide_columns(a: Floats, b: Floats) -> Floats:
    return np.where(np.equal(b, 0.0), np.nan, np.divide(a, b))


_ROW: dict[str, Callable[..., Any]] = {
    "where": lambda c, a, b: a if c != 0.0 and not math.isnan(c) else b,
    "coalesce": lambda a, b: b if math.isnan(a) else a,
    "is_missing": lambda a: 1.0 if math.isnan(a) else 0.0,
    "minimum": _minimum,
    "maximum": _maximum,
    "absolute": abs,
    "floor": _floor,
    "sqrt": _sqrt,
    "hour_of_day": lambda t: (t - _floor(t / _DAY_MS) * _DAY_MS) / 3_600_000.0,
    "day_of_week": lambda t: (
        (_floor(t / _DAY_MS) + _EPOCH_WEEKDAY)
        - _floor((_floor(t / _DAY_MS) + _EPOCH_WEEKDAY) / 7.0) * 7.0
    ),
}

_COLUMN: dict[str, Callable[..., Any]] = {
    "where": lambda c, a, b: np.where((c != 0.0) & ~np.isnan(c), a, b),
    "coalesce": lambda a, b: np.where(np.isnan(a), b, a),
    "is_missing": lambda a: np.where(np.isnan(a), 1.0, 0.0),
    "minimum": lambda a, b: np.where(
        np.isnan(a) | np.isnan(b), np.nan, np.where(np.less_equal(a, b), a, b)
    ),
    "maximum": lambda a, b: np.where(
        np.isnan(a) | np.isnan(b), np.nan, np.where(np.greater_equal(a, b), a, b)
    ),
    "absolute": np.abs,
    "floor": np.floor,
    "sqrt": np.sqrt,
    "hour_of_day": lambda t: (t - np.floor(t / _DAY_MS) * _DAY_MS) / 3_600_000.0,
    "day_of_week": lambda t: (
        (np.floor(t / _DAY_MS) + _EPOCH_WEEKDAY)
        - np.floor((np.floor(t / _DAY_MS) + _EPOCH_WEEKDAY) / 7.0) * 7.0
    ),
}

ARITY = {
    "where": 3,
    "coalesce": 2,
    "minimum": 2,
    "maximum": 2,
    "is_missing": 1,
    "absolute": 1,
    "floor": 1,
    "sqrt": 1,
    "hour_of_day": 1,
    "day_of_week": 1,
}
_COMPARE = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


class _Checker:
    """Turns one whitelisted syntax tree into source text over named operations."""

    def __init__(self, derived: Derived, known: frozenset[str]) -> None:
        self._derived = derived
        self._known = known

    def refuse(self, reason: str, hint: str = "") -> DeclarationError:
        return DeclarationError(
            f"derived feature {self._derived.name!r}: {reason} in {self._derived.expression!r}",
            hint=hint or "Allowed: + - * /, comparisons, numbers, " + ", ".join(sorted(ARITY)),
        )

    def too_deep(self) -> DeclarationError:
        hint = "Split it into several derived features."
        return self.refuse(f"more than {_DEEPEST} operations inside each other", hint)

    def source(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if not abs(value) <= sys.float_info.max:
                    raise self.refuse("a number that is too large")
                return repr(float(value))
            case ast.Name(id=name):
                if name not in self._known:
                    raise self.refuse(f"unknown name {name!r}", self._nearest(name))
                return f"v[{name!r}]"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(-{self.source(operand)})"
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return f"divide({self.source(left)}, {self.source(right)})"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return f"({self.source(left)} {_BINARY[type(op)]} {self.source(right)})"
            case ast.Compare(left=left, ops=[ast.NotEq()], comparators=[right]):
                return f"differ({self.source(left)}, {self.source(right)})"
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                return f"flag({self.source(left)} {_COMPARE[type(op)]} {self.source(right)})"
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in ARITY:
                if len(args) != ARITY[name]:
                    raise self.refuse(f"{name} takes {ARITY[name]} arguments, got {len(args)}")
                return f"{name}({', '.join(self.source(a) for a in args)})"
        raise self.refuse(f"{ast.unparse(node)!r} is not allowed")

    def _nearest(self, name: str) -> str:
        import difflib

        near = difflib.get_close_matches(name, self._known, 1)
        return f"Did you mean {near[0]!r}?" if near else ""


def _sources(derived: Sequence[Derived], inputs: Sequence[str]) -> list[tuple[str, str]]:
    known = frozenset(inputs)
    out = []
    for d in derived:
        checker = _Checker(d, known)
        if not d.name.isidentifier():
            raise checker.refuse("its name is no identifier", "Write it like a variable: is_new.")
        if d.name in known:
            raise checker.refuse("its name is taken")
        try:
            source = checker.source(ast.parse(d.expression, mode="eval").body)
        except SyntaxError as e:
            raise checker.refuse(f"syntax error at column {e.offset}") from e
        except ValueError as e:
            raise checker.refuse(f"unreadable text ({e})") from e
        except (RecursionError, MemoryError):
            raise checker.too_deep() from None
        if max(accumulate((c == "(") - (c == ")") for c in source)) > _DEEPEST:
            raise checker.too_deep()
        out.append((d.name, source))
        known |= {d.name}
    return out


def names_in(derived: Sequence[Derived]) -> frozenset[str]:
    """The names that expressions mention, functions too; they must have been compiled.

    >>> sorted(names_in([Derived("ratio", "coalesce(a, 0) / b")]))
    ['a', 'b', 'coalesce']
    """
    trees = (ast.walk(ast.parse(d.expression, mode="eval")) for d in derived)
    return frozenset(n.id for tree in trees for n in tree if isinstance(n, ast.Name))


def compile_columns(derived: Sequence[Derived], inputs: Sequence[str]) -> ColumnProgram:
    """Compile for columns: float64 arrays of one length in, the derived arrays out, in order.

    Raises DeclarationError for anything outside the whitelist.
    """
    scope: dict[str, Any] = {
        **_COLUMN,
        "divide": _divide_columns,
        "flag": lambda c: np.where(c, 1.0, 0.0),
        "differ": lambda a, b: np.where(np.less(a, b) | np.greater(a, b), 1.0, 0.0),
        "__builtins__": {},
    }
    steps = [
        # Only text that _Checker itself wrote is evaluated.
        (name, eval(compile(f"lambda v: {source}", f"<derived {name}>", "eval"), scope))  # noqa: S307
        for name, source in _sources(derived, inputs)
    ]

    def run(columns: Mapping[str, Floats]) -> dict[str, Floats]:
        values = dict(columns)
        size = len(next(iter(columns.values()))) if columns else 0
        with np.errstate(all="ignore"):
            for name, step in steps:
                # A constant expression is a scalar: give it the length of the others.
                values[name] = np.ascontiguousarray(np.broadcast_to(step(values), (size,)), "f8")
        return {name: values[name] for name, _ in steps}

    return run


def compile_row(derived: Sequence[Derived], inputs: Sequence[str]) -> RowProgram:
    """Compile for one row: a dict of floats gains the derived values in place."""
    scope: dict[str, Any] = {
        **_ROW,
        "divide": _divide,
        "flag": lambda c: 1.0 if c else 0.0,
        "differ": lambda a, b: 1.0 if a < b or a > b else 0.0,
        "__builtins__": {},
    }
    body = "".join(f"    v[{name!r}] = {source}\n" for name, source in _sources(derived, inputs))
    exec(compile(f"def run(v):\n{body or '    pass'}", "<derived>", "exec"), scope)  # noqa: S102
    program: RowProgram = scope["run"]
    return program
