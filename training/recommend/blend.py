"""Several retrievers as one, each with a weight that depends on how long the history is.

Their scores have no common scale, so ranks are fused: ``sum w / (60 + rank)`` (reciprocal rank
fusion: Cormack, Clarke & Büttcher, SIGIR 2009). A retriever that has nothing for a history gives
nothing, and the next one fills the list: that is the fall-back for new users and first visits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raypipe.errors import DeclarationError
from training.recommend.port import Retriever
from training.recommend.rows import Rows, starts_of

OFFSET = 60
"""That of the paper: how little the first ranks differ from each other."""

FILL = 1e-4
"""So light that it only fills what others leave: its first is below another's 100,000th."""


@dataclass(frozen=True)
class Part:
    """A retriever and its weight from so many items of history on, by ascending lengths."""

    name: str
    retriever: Retriever
    weights: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.weights]
        if lengths != sorted(set(lengths)) or any(w < 0 or n < 0 for n, w in self.weights):
            raise DeclarationError(
                f"part {self.name!r} has weights {self.weights}",
                hint="Give ascending lengths, each with a weight of 0 or more.",
            )

    def weight(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The weight at each length; 0 before the first.

        >>> from training.recommend.popularity import Popularity
        >>> part = Part("p", Popularity(np.ones(2, "f4")), ((1, 0.5), (5, 1.0)))
        >>> part.weight(np.array([0, 1, 4, 9])).tolist()
        [0.0, 0.5, 0.5, 1.0]
        """
        steps = np.array([0.0, *(w for _, w in self.weights)])
        return steps[np.searchsorted([n for n, _ in self.weights], lengths, side="right")]


@dataclass(frozen=True)
class Blend:
    """A retriever of retrievers over one catalogue. ``depth`` of each are fused."""

    parts: tuple[Part, ...]
    depth: int = 200
    kind: ClassVar[str] = "blend"

    def __post_init__(self) -> None:
        names = [p.name for p in self.parts]
        widths = {p.retriever.width for p in self.parts}
        if not names or len(set(names)) != len(names) or len(widths) != 1 or self.depth < 1:
            raise DeclarationError(
                f"parts {names} over {sorted(widths)} items, depth {self.depth}",
                hint="A blend needs parts of different names over one catalogue, and a depth.",
            )

    @property
    def width(self) -> int:
        """Items of the catalogue."""
        return self.parts[0].retriever.width

    def retrieve(self, histories: Rows, k: int, *, seen: Rows | None = None) -> Rows:
        """As the port says. Length is the number of different items of a history."""
        return self.explained(histories, k, seen=seen)[0]

    def explained(
        self,
        histories: Rows,
        k: int,
        *,
        seen: Rows | None = None,
        given: Mapping[str, Rows] | None = None,
    ) -> tuple[Rows, npt.NDArray[np.int8]]:
        """Also the number of the part that spoke most for each item, [entries].

        ``given`` is what parts by name have retrieved already for these histories and ``seen``, at
        least ``max(k, depth)`` items: they are not asked again.
        """
        histories.require_width(self.width, "a history")
        lengths = histories.sizes
        found: list[tuple[Rows, npt.NDArray[np.float64]]] = []
        for part in self.parts:
            weight = part.weight(lengths)
            asked = np.flatnonzero(weight > 0)
            if given is not None and part.name in given:
                ranked = given[part.name].take(asked).first(max(k, self.depth))
            else:
                ranked = part.retriever.retrieve(
                    histories.take(asked),
                    max(k, self.depth),
                    seen=None if seen is None else seen.take(asked),
                )
            found.append(_spread(ranked, asked, weight, len(histories)))
        shape = (len(histories), self.width)
        fused = Rows.of(
            np.concatenate([r.row_of for r, _ in found]),
            np.concatenate([r.columns for r, _ in found]),
            np.concatenate([v for _, v in found]),
            shape,
        ).best(k)
        return fused, _strongest(fused, found)

    def settings(self) -> dict[str, Any]:
        """Parts by name with their weights; what they learned is stored beside."""
        weights = {p.name: [list(step) for step in p.weights] for p in self.parts}
        return {"depth": self.depth, "weights": weights}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """None of its own."""
        return {}


def fallback(
    main: Retriever, popular: Retriever, *, few: int = 3, content: Retriever | None = None
) -> Blend:
    """The usual order: popularity alone without a history, beside the main one for a short one,
    then only to fill up; new items by content at a fifth of the main one's weight.
    """
    parts = [
        Part("main", main, ((1, 1.0),)),
        Part("popular", popular, ((0, 1.0), (1, 0.5), (few, FILL))),
    ]
    if content is not None:
        parts.append(Part("content", content, ((1, 0.2),)))
    return Blend(tuple(parts))


def _spread(
    ranked: Rows, asked: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], count: int
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """The ranked rows in their places among all, with the value of each rank."""
    sizes = np.zeros(count, np.int64)
    sizes[asked] = ranked.sizes
    starts = starts_of(sizes)
    rows = Rows(starts, ranked.columns, ranked.values, ranked.width)
    rank = np.arange(len(rows.columns)) - np.repeat(starts[:-1], sizes) + 1
    return rows, np.repeat(weight, sizes) / (OFFSET + rank)


def _strongest(
    fused: Rows, found: Sequence[tuple[Rows, npt.NDArray[np.float64]]]
) -> npt.NDArray[np.int8]:
    wanted = fused.row_of * fused.width + fused.columns
    best = np.zeros(len(wanted))
    part = np.zeros(len(wanted), np.int8)
    for number, (rows, values) in enumerate(found):
        keys = rows.row_of * rows.width + rows.columns
        order = np.argsort(keys)
        place = np.searchsorted(keys, wanted, sorter=order)
        inside = place < len(keys)
        at = order[place[inside]]
        own = np.zeros(len(wanted))
        own[inside] = np.where(keys[at] == wanted[inside], values[at], 0)
        part[own > best] = number
        best = np.maximum(best, own)
    return part
