"""Conditions on event columns: ``where=`` of an aggregate, for columns and for one event.

A condition is an expression of raypipe.vector.expressions over the event's numeric columns, with
the words ``and``, ``or``, ``not``, bands such as ``100 <= amount < 500``, and text columns compared
with quoted text: ``channel == 'online' and amount >= 10000``. It holds where it is neither 0 nor
missing; a comparison with a missing value never holds.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import DeclarationError
from raypipe.vector.expressions import (
    ARITY,
    ColumnProgram,
    Derived,
    RowProgram,
    compile_columns,
    compile_row,
)

_HOLDS = "holds"


class TextTest(NamedTuple):
    """A text column compared with a constant."""

    column: str
    equal: bool
    text: str


class Condition:
    """One condition; raises DeclarationError if it is not in the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tests: dict[TextTest, str] = {}
        try:
            tree = expression(ast.parse(text.strip(), mode="eval").body, self._tests)
            self._derived = (Derived(_HOLDS, ast.unparse(tree)),)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise DeclarationError(
                f"condition {text!r} can't be read: {e}",
                hint="Write it like: channel == 'online' and 100 <= amount < 500",
            ) from e
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        self.numbers = tuple(sorted(names - {*ARITY, *self._tests.values()}))
        """Columns that are read as numbers."""
        self.tests = tuple(self._tests)
        """Comparisons of text columns."""
        self._inputs = (*self.numbers, *self._tests.values())
        try:
            compile_row(self._derived, self._inputs)
        except DeclarationError as e:
            raise DeclarationError(f"condition {text!r}: {e.detail}", hint=e.hint) from e

    @property
    def columns(self) -> tuple[str, ...]:
        """Every event column that it reads."""
        return tuple(dict.fromkeys((*self.numbers, *(t.column for t in self.tests))))

    @cached_property
    def _row(self) -> RowProgram:
        return compile_row(self._derived, self._inputs)

    @cached_property
    def _columns(self) -> ColumnProgram:
        return compile_columns(self._derived, self._inputs)

    def of_row(self, event: Mapping[str, Any]) -> bool:
        """Whether it holds for one event."""
        values = {n: math.nan if event[n] is None else float(event[n]) for n in self.numbers}
        for test, name in self._tests.items():
            found = event[test.column]
            values[name] = float(found is not None and (found == test.text) == test.equal)
        self._row(values)
        holds: float = values[_HOLDS]
        return holds != 0.0 and not math.isnan(holds)

    def of_columns(self, table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Where it holds [n]."""
        values = {}
        for name in self.numbers:
            column = table.column(name).cast(pa.float64(), safe=False)
            values[name] = column.to_numpy(zero_copy_only=False).astype(np.float64)
        for test, name in self._tests.items():
            compare = pc.equal if test.equal else pc.not_equal
            found = compare(table.column(test.column), test.text).fill_null(False)
            values[name] = found.to_numpy(zero_copy_only=False).astype(np.float64)
        if not values:
            return np.full(table.num_rows, self.of_row({}))
        holds: npt.NDArray[np.float64] = self._columns(values)[_HOLDS]
        out: npt.NDArray[np.bool_] = (holds != 0.0) & ~np.isnan(holds)
        return out


def expression(tree: ast.expr, tests: dict[TextTest, str]) -> ast.expr:
    """A condition as an expression of raypipe.vector.expressions: neither 0 nor NaN where it holds.

    Args:
        tests: gains the condition's text comparisons, each with the name that stands for it.
    """
    rewritten: ast.expr = _Rewriter(tests).visit(tree)
    return rewritten


class _Rewriter(ast.NodeTransformer):
    """Leaves only what expressions know: text comparisons become names, words become numbers."""

    def __init__(self, tests: dict[TextTest, str]) -> None:
        self._tests = tests

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        sides = [node.left, *node.comparators]
        parts = [self._pair(a, op, b) for (a, b), op in zip(pairwise(sides), node.ops, strict=True)]
        return _product(parts)

    def _pair(self, a: ast.expr, op: ast.cmpop, b: ast.expr) -> ast.expr:
        match a, op, b:
            case (
                ast.Name(id=column),
                ast.Eq() | ast.NotEq(),
                ast.Constant(value=str() as text),
            ) | (ast.Constant(value=str() as text), ast.Eq() | ast.NotEq(), ast.Name(id=column)):
                test = TextTest(column, isinstance(op, ast.Eq), text)
                return _name(self._tests.setdefault(test, f"_text_{len(self._tests)}"))
        return ast.Compare(self.visit(a), [op], [self.visit(b)])

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        parts = [_flag(self.visit(v)) for v in node.values]
        if isinstance(node.op, ast.And):
            return _product(parts)
        out = parts[0]
        for part in parts[1:]:
            out = ast.BinOp(out, ast.Add(), part)
        return out

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.Not):
            return ast.Call(
                _name("where"), [self.visit(node.operand), ast.Constant(0), ast.Constant(1)], []
            )
        return ast.UnaryOp(node.op, self.visit(node.operand))


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _flag(part: ast.expr) -> ast.expr:
    """1 where it holds, else 0: a missing value must not travel on."""
    return ast.Call(_name("where"), [part, ast.Constant(1), ast.Constant(0)], [])


def _product(parts: list[ast.expr]) -> ast.expr:
    out = parts[0]
    for part in parts[1:]:
        out = ast.BinOp(out, ast.Mult(), part)
    return out
