"""What a policy's conditions may read, and what they do read.

The grammar is that of raypipe.windows.conditions. Beside it: ``score``; the model's features, as
the decision record keeps them (float32); ``worker_away``, 1 where the decision is made without the
worker and 0 elsewhere; ``in_list("name", column)``; and ``country in ('DE', 'FR')``, which is short
for comparisons joined by ``or``.
A name that an event column and a feature share means the event column; ``score`` always means the
model's, and ``worker_away`` what it says here. Missing values have one meaning: a comparison with
one never holds, ``is_missing(x)`` does.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, NoReturn

from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType, Field, Kind
from raypipe.vector.expressions import ARITY, Derived, compile_row
from raypipe.windows.conditions import TextTest, expression
from raypipe.yaml_nodes import nearest

SCORE = "score"
AWAY = "worker_away"
_RESERVED = (SCORE, AWAY)
IN_LIST = "in_list"

_HINT = "Write it like: channel == 'online' and 100 <= amount < 500"


class ListTest(NamedTuple):
    """Whether an event's text column is on a list."""

    list: str
    column: str


@dataclass(frozen=True)
class Names:
    """What there is to read: the columns of the decision event, features, lists."""

    event: EventType
    features: tuple[str, ...]
    lists: tuple[str, ...]

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The event's columns by name, but for those whose name means something else here."""
        return {f.name: f for f in self.event.all_fields if f.name not in _RESERVED}

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Every name that a condition may use."""
        return tuple(dict.fromkeys((*self.fields, *_RESERVED, *self.features)))

    def textual(self, name: str) -> bool:
        """Whether a name is a text column."""
        field = self.fields.get(name)
        return field is not None and field.kind in (Kind.STRING, Kind.CHOICE, Kind.CURRENCY)


@dataclass(frozen=True)
class When:
    """A condition that was checked: its tree with ``in`` written out, and what it reads."""

    text: str
    tree: ast.expr
    columns: tuple[str, ...]
    """Event columns that are read as numbers."""
    features: tuple[str, ...]
    reads_score: bool
    reads_away: bool
    tests: tuple[TextTest, ...]
    lists: tuple[ListTest, ...]

    @property
    def independent(self) -> bool:
        """Whether it needs no model: it can be answered when there is no score."""
        return not self.reads_score and not self.features


def read_condition(text: str, names: Names) -> When:
    """Check a condition; raises DeclarationError with the nearest valid name."""
    try:
        tree = _Expander().visit(ast.parse(text.strip(), mode="eval").body)
        return _Reader(text, names).read(tree)
    except SyntaxError as e:
        raise DeclarationError(f"condition {text!r} can't be read: {e.msg}", hint=_HINT) from e
    except (ValueError, RecursionError, MemoryError) as e:
        raise DeclarationError(f"condition {text[:80]!r} can't be read: {e}", hint=_HINT) from e


class _Reader:
    def __init__(self, text: str, names: Names) -> None:
        self._text = text
        self._names = names

    def read(self, tree: ast.expr) -> When:
        self._check(tree)
        terms = Terms()
        source = terms.expression(tree)
        try:
            compile_row((Derived("holds", source),), (*self._names.known, *terms.stand_ins))
        except DeclarationError as e:
            why = e.detail.partition(": ")[2].rpartition(" in ")[0]
            self._refuse(why or e.detail, e.hint)
        numbers = sorted(
            {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
            - {*ARITY, *terms.stand_ins}
        )
        for name in numbers:
            if self._names.textual(name):
                self._refuse(f"reads the text {name!r} as a number", f"Write {name} == '...'.")
        for test in terms.tests:
            self._check_text(test)
        columns = tuple(n for n in numbers if n in self._names.fields)
        features = tuple(n for n in numbers if n not in columns and n not in _RESERVED)
        return When(
            self._text,
            tree,
            columns,
            features,
            SCORE in numbers,
            AWAY in numbers,
            tuple(terms.tests),
            tuple(terms.lists),
        )

    def _check(self, tree: ast.expr) -> None:
        functions = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and id(node) not in functions:
                if node.id not in self._names.known:
                    self._refuse(f"reads unknown {node.id!r}", _near(node.id, self._names.known))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if name == IN_LIST:
                    self._check_list(node)
                elif name not in ARITY:
                    known = (*sorted(ARITY), IN_LIST)
                    self._refuse(f"calls unknown {name!r}", nearest(name, known))

    def _check_list(self, node: ast.Call) -> None:
        match node:
            case ast.Call(args=[ast.Constant(value=str() as name), ast.Name(id=column)]):
                if name not in self._names.lists:
                    hint = nearest(name, self._names.lists) if self._names.lists else ""
                    self._refuse(
                        f"asks undeclared list {name!r}", hint or "Declare it under `lists:`."
                    )
                if not self._names.textual(column):
                    self._refuse(f"looks for {column!r} in a list", "Lists hold text columns.")
            case _:
                self._refuse(f"calls {IN_LIST} wrongly", f'Write {IN_LIST}("name", column).')

    def _check_text(self, test: TextTest) -> None:
        if not self._names.textual(test.column):
            self._refuse(f"compares the number {test.column!r} with text", "Leave the quotes away.")
        choices = self._names.fields[test.column].choices
        if choices and test.text not in choices:
            self._refuse(
                f"compares {test.column} with {test.text!r}, which it never is",
                nearest(test.text, choices),
            )

    def _refuse(self, what: str, hint: str = "") -> NoReturn:
        raise DeclarationError(f"condition {self._text!r} {what}", hint=hint or _HINT)


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest name alone: a project has hundreds of features."""
    hint = nearest(name, known).partition("Known:")[0].strip()
    return hint or "`raypipe features --list` shows the features."


class Terms:
    """What expressions of one program share: names that stand for texts and lists compared."""

    def __init__(self) -> None:
        self.tests: dict[TextTest, str] = {}
        self.lists: dict[ListTest, str] = {}

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """The names that stand for them."""
        return (*self.tests.values(), *self.lists.values())

    def expression(self, tree: ast.expr) -> str:
        """A checked condition as an expression that is 1 where it holds and 0 elsewhere."""
        tree = _Lookups(self.lists).visit(ast.parse(ast.unparse(tree), mode="eval").body)
        return f"where({ast.unparse(expression(tree, self.tests))}, 1, 0)"


class _Expander(ast.NodeTransformer):
    """Writes ``x in (a, b)`` as comparisons."""

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Compare(
                left=left, ops=[ast.In() | ast.NotIn() as op], comparators=[ast.Tuple(elts=items)]
            ) if items:
                inside = isinstance(op, ast.In)
                compare = ast.Eq() if inside else ast.NotEq()
                parts: list[ast.expr] = [ast.Compare(left, [compare], [i]) for i in items]
                return ast.BoolOp(ast.Or() if inside else ast.And(), parts)
        return node


class _Lookups(ast.NodeTransformer):
    """Puts a name in the place of each ``in_list``."""

    def __init__(self, lists: dict[ListTest, str]) -> None:
        self._lists = lists

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(
                func=ast.Name(id="in_list"),
                args=[ast.Constant(value=str() as name), ast.Name(id=column)],
            ):
                test = ListTest(name, column)
                stand_in = self._lists.setdefault(test, f"_list_{len(self._lists)}")
                return ast.Name(stand_in, ast.Load())
        self.generic_visit(node)
        return node


def features_of(conditions: Collection[When]) -> tuple[str, ...]:
    """The features that some conditions read, sorted."""
    return tuple(sorted({f for c in conditions for f in c.features}))
