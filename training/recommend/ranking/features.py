"""What is known of a visitor and an item at a moment: the columns by which candidates are ordered.

Five sources, each blind to what came after: the retriever's rank, what the visitor did before, what
the catalogue said, windows as of each moment, and the visitor's profile of the midnight before it.
Serving makes them by the same code, for one moment and the interactions of one visitor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.errors import StageError
from training.recommend.catalogue import FIRST, PRICE, Catalogue
from training.recommend.interactions import Interactions
from training.recommend.ranking.moments import Moments
from training.recommend.ranking.past import Before, Past
from training.recommend.rows import Codes, Integers, Rows

Doubles = npt.NDArray[np.float64]
ATTRIBUTES = ("category", "brand")

PRICE_STEPS = 512
"""Of a logarithm. Habits are sums over whole steps (.2 %), which float64 holds exactly: a sum has
the same bits whatever else was added up beside it, in training and in serving."""


class Windows(Protocol):
    """Window values as of times (ms) and places in the log, by column; float64 [n] each."""

    def of_items(self, item: Codes, time: Integers, offset: Integers) -> Mapping[str, Doubles]:
        """Of items, by their codes [n]."""

    def of_users(self, user: Codes, time: Integers, offset: Integers) -> Mapping[str, Doubles]:
        """Of visitors, by their codes [n]."""


class VisitorProfile(Protocol):
    """Profile values as of times (ms) and places in the log, by column; float64 [n] each."""

    def of_users(self, user: Codes, time: Integers, offset: Integers) -> Mapping[str, Doubles]:
        """Of visitors, by their codes [n]; NaN where nothing was known."""


@dataclass(frozen=True)
class Attributes:
    """What the catalogue says of each item, as numbers.

    ``codes`` int64 [items] by attribute, -1 for unknown; ``log_price`` and ``listed`` (ms) float64
    [items], NaN for unknown.
    """

    codes: Mapping[str, Integers]
    log_price: Doubles
    listed: Doubles

    @classmethod
    def of(cls, catalogue: Catalogue) -> Attributes:
        """Of a catalogue; attributes of which it says nothing are left out."""
        known = [a for a in ATTRIBUTES if catalogue.has(a)]
        price = np.log(np.maximum(catalogue.numbers(PRICE), 1.0))
        return cls({a: catalogue.codes(a) for a in known}, price, catalogue.numbers(FIRST))


@dataclass(frozen=True)
class Table:
    """One row per candidate of a moment: ``x`` float32 [n, len(names)], NaN for what is unknown.

    Rows stand as the entries of ``candidates`` [moments, items] do; ``grade`` float64 [n] is how
    relevant each turned out to be.
    """

    names: tuple[str, ...]
    x: npt.NDArray[np.float32]
    candidates: Rows
    grade: Doubles

    @classmethod
    def joined(cls, parts: Sequence[Table]) -> Table:
        """One after the other.

        Raises StageError for tables of different columns.
        """
        names = parts[0].names
        if any(p.names != names for p in parts):
            raise StageError(f"{len(parts)} tables have not the same columns")
        return cls(
            names,
            np.concatenate([p.x for p in parts]),
            Rows.joined([p.candidates for p in parts]),
            np.concatenate([p.grade for p in parts]),
        )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Table({len(self)} candidates of {len(self.candidates)} moments, {len(self.names)})"

    @property
    def moment(self) -> Integers:
        """Moment of each row, ascending: what learns to rank calls query or group."""
        return self.candidates.row_of


class Columns:
    """Makes the table of candidates at moments.

    Args:
        interactions: to the end of the moments at least; of all visitors, or of the one concerned.
        attributes: of the interactions' items.
        windows: of items and visitors.
        profile: of visitors, if they have one.
    """

    def __init__(
        self,
        interactions: Interactions,
        attributes: Attributes,
        windows: Windows,
        profile: VisitorProfile | None = None,
    ) -> None:
        self._interactions = interactions
        self._attributes = attributes
        self._windows_of = windows
        self._profile = profile
        self._past = {"item": self._of(interactions.item.astype(np.int64))}
        self._past |= {a: self._of(c[interactions.item]) for a, c in attributes.codes.items()}
        user = interactions.user.astype(np.int64)
        self._all = Past(user, interactions.offset, interactions.time, self._money())

    def table(
        self, at: Moments, candidates: Rows, *, lists: Mapping[str, Rows] | None = None
    ) -> Table:
        """The candidates [moments, items], in their order, with their columns.

        ``lists`` are what single retrievers gave [moments, items], by name: each adds its score of
        a candidate, NaN for one that it did not give.
        """
        moment, item = candidates.row_of, candidates.columns
        found: dict[str, Doubles] = {
            "rank": (np.arange(1, len(item) + 1) - candidates.starts[moment]).astype(np.float64),
            "score": candidates.values.astype(np.float64),
        }
        for name, ranked in (lists or {}).items():
            found[f"{name}_score"] = _values(ranked, candidates, np.nan)
        found |= self._history(at, moment, item)
        found |= self._windows(at, moment, item)
        x = np.stack([column.astype(np.float32) for column in found.values()], axis=1)
        return Table(tuple(found), x, candidates, _values(at.truth, candidates, 0.0))

    def _history(
        self, at: Moments, moment: Integers, item: npt.NDArray[np.int32]
    ) -> dict[str, Doubles]:
        kinds = self._interactions.kinds
        user, offset, time = at.user[moment], at.offset[moment], at.time[moment]
        everything = self._all.before(user.astype(np.int64), offset)
        count = everything.sums[:, 0]
        out = {"history_count": count, "history_hours": _hours(time, everything)}
        for name, past in self._past.items():
            codes = item if name == "item" else self._attributes.codes[name][item]
            mine = past.before(self._pair(user, codes), offset)
            unknown = codes < 0
            for k, kind in enumerate(kinds):
                out[f"{name}_{kind}"] = np.where(unknown, np.nan, mine.sums[:, k])
            out[f"{name}_hours"] = _hours(time, mine)
            share = mine.sums.sum(axis=1) / np.maximum(count, 1)
            out[f"{name}_share"] = np.where(unknown, np.nan, share)
        out |= self._price(everything, item)
        listed = self._attributes.listed[item]
        out["item_age_days"] = np.where(listed <= time, (time - listed) / DAY_MS, np.nan)
        return out

    def _price(self, everything: Before, item: npt.NDArray[np.int32]) -> dict[str, Doubles]:
        """The item's price against those of what the visitor looked at, by logarithm."""
        _, priced, total, squares = everything.sums.T
        price = self._attributes.log_price[item]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / priced
            spread = np.sqrt(np.maximum(squares / priced - mean**2, 0)) / PRICE_STEPS
            away = price - mean / PRICE_STEPS
            return {
                "log_price": price,
                "price_to_habit": away,
                "price_z": np.where(priced > 1, away / np.maximum(spread, 0.05), np.nan),
            }

    def _windows(
        self, at: Moments, moment: Integers, item: npt.NDArray[np.int32]
    ) -> dict[str, Doubles]:
        of_items = self._windows_of.of_items(item, at.time[moment], at.offset[moment])
        of_users = self._windows_of.of_users(at.user, at.time, at.offset)
        if self._profile is not None:
            of_users = {**of_users, **self._profile.of_users(at.user, at.time, at.offset)}
        return {**of_items, **{name: values[moment] for name, values in of_users.items()}}

    def _of(self, codes: Integers) -> Past:
        """What users did, by the pair of user and each event's code [n]; counts by kind."""
        i = self._interactions
        counts = (i.kind[:, None] == np.arange(len(i.kinds))).astype(np.float64)
        return Past(self._pair(i.user, codes), i.offset, i.time, counts)

    def _money(self) -> Doubles:
        steps = np.round(self._attributes.log_price[self._interactions.item] * PRICE_STEPS)
        there = np.isfinite(steps)
        known = np.where(there, steps, 0)
        return np.stack([np.ones(len(steps)), there.astype(np.float64), known, known**2], axis=1)

    def _pair(self, user: npt.NDArray[np.integer], codes: npt.NDArray[np.integer]) -> Integers:
        pairs = user.astype(np.int64) * len(self._interactions.items) + codes
        return np.where(codes < 0, -1, pairs)


def _hours(time: Integers, before: Before) -> Doubles:
    """Hours since, NaN for never."""
    return np.where(before.newest < 0, np.nan, np.maximum(time - before.newest, 0) / HOUR_MS)


def _values(rows: Rows, candidates: Rows, otherwise: float) -> Doubles:
    """The value that each candidate has in other rows of the same moments."""
    keys = rows.row_of * rows.width + rows.columns
    order = np.argsort(keys)
    wanted = candidates.row_of * candidates.width + candidates.columns
    if not len(keys):
        return np.full(len(wanted), otherwise)
    place = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[place] == wanted, rows.values[place].astype(np.float64), otherwise)
