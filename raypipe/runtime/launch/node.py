"""A parsed file that is walked without fear, and what was found wrong in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "CHANGE-ME"
"""Stands in the shipped files for what only the user knows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a file breaks.

    ``place`` is a JSON pointer (RFC 6901), or "line N" of a file without structure. ``kind`` is
    ``fault``, or ``placeholder`` for a value that is still to be filled in.
    """

    file: str
    place: str
    found: str
    expected: str
    cure: str
    kind: str = "fault"

    def __str__(self) -> str:
        return (
            f"{self.file} {self.place}\n"
            f"  found     {self.found}\n"
            f"  expected  {self.expected}\n"
            f"  cure      {self.cure}"
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A value in a parsed file and its place. What isn't there is a Node of None."""

    value: Any
    file: str
    place: str = ""

    def __getitem__(self, name: str) -> Node:
        inner = self.value.get(name) if isinstance(self.value, dict) else None
        return Node(inner, self.file, f"{self.place}/{escape(name)}")

    def at(self, *names: str) -> Node:
        """The node below by several names."""
        node = self
        for name in names:
            node = node[name]
        return node

    def children(self) -> list[tuple[str, Node]]:
        """Names, or numbers as text, and nodes; empty unless a mapping or a list."""
        if isinstance(self.value, dict):
            return [(str(name), self[name]) for name in self.value]
        if isinstance(self.value, list):
            return [
                (str(i), Node(value, self.file, f"{self.place}/{i}"))
                for i, value in enumerate(self.value)
            ]
        return []

    def items(self) -> list[Node]:
        """The nodes of a list; empty if it is none."""
        return [node for _, node in self.children()] if isinstance(self.value, list) else []

    def leaves(self) -> Iterator[tuple[str, Node]]:
        """Every value that holds no other, each with its own name, depth first.

        The value of a container's variable, ``{name: N, value: V}``, goes by the name N. What
        YAML's aliases put in several places is met at the first one only.
        """
        seen: set[int] = set()
        waiting = [("", self)]
        while waiting:
            name, node = waiting.pop()
            if not isinstance(node.value, dict | list):
                yield name, node
            elif id(node.value) not in seen:
                seen.add(id(node.value))
                variable = node["name"].text
                waiting += [
                    (variable if variable and name == "value" else name, child)
                    for name, child in reversed(node.children())
                ]

    @property
    def text(self) -> str:
        """The value if it is text, else the empty text."""
        return self.value if isinstance(self.value, str) else ""

    def wrong(self, expected: str, cure: str, found: str = "") -> Finding:
        """A finding here; ``found`` is by default the value."""
        return Finding(self.file, self.place or "/", found or self._shown(), expected, cure)

    def _shown(self) -> str:
        # What holds other values is not spelled out: one of them may be a secret.
        if isinstance(self.value, dict) and self.value:
            return f"a mapping with {', '.join(map(str, self.value))}"
        if isinstance(self.value, list) and self.value:
            return f"a list of {len(self.value)}"
        if self.value is None:
            return "nothing"
        text = json.dumps(self.value, default=str)
        return text if len(text) <= 120 else f"{text[:117]}..."


def escape(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return str(name).replace("~", "~0").replace("/", "~1")
