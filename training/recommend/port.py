"""The one port of retrieval: histories in, the best items of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from training.recommend.products import Run, in_process
from training.recommend.rows import Rows

BATCH = 4_096
"""Histories that are ranked at once: bounds what a dense method holds."""

Arrays = Mapping[str, npt.NDArray[Any]]


@runtime_checkable
class Retriever(Protocol):
    """A fitted method that ranks all items for a history.

    A history is a row of weights over items, whoever has it: a customer, or a session without one.
    So a new event changes the very next answer, and nothing is kept per user.
    """

    kind: ClassVar[str]
    """By which a stored one is read back; see ``training.recommend.kinds``."""

    @property
    def width(self) -> int:
        """Items of the catalogue."""

    def retrieve(self, histories: Rows, k: int, *, seen: Rows | None = None) -> Rows:
        """The k best items of each history, best first, equal ones by code.

        Args:
            histories: [n, width] weights.
            k: how many; fewer come where a method knows no more.
            seen: [n, width], items that must not come; by default those of the histories.

        Raises StageError for histories over another catalogue.
        """

    def settings(self) -> dict[str, Any]:
        """Plain data that with ``arrays`` makes it again."""

    def arrays(self) -> Arrays:
        """What it learned."""


class Method(Protocol):
    """A way to fit a retriever, with its parameters."""

    name: ClassVar[str]

    def fit(self, train: Rows, run: Run = in_process) -> Retriever:
        """Learn from [users, items] weights; ``run`` says where its products are computed."""

    def describe(self) -> dict[str, Any]:
        """Parameters as plain data."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of many histories."""

    first: int
    histories: Rows
    seen: Rows


def batches(histories: Rows, seen: Rows | None, size: int = BATCH) -> Iterator[Batch]:
    """All histories, so many at once."""
    known = histories if seen is None else seen
    for first in range(0, len(histories), size):
        rows = np.arange(first, min(first + size, len(histories)))
        yield Batch(first, histories.take(rows), known.take(rows))
