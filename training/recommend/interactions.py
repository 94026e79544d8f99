"""Who did what with which item, and when; and the weights by which that becomes a matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.clock import DAY_MS
from raypipe.errors import InputError, UsageError
from training.recommend.rows import Codes, Integers, Rows

VIEW, CART, ORDER = "view", "cart", "order"


@dataclass(frozen=True, slots=True)
class Weights:
    """What an interaction counts: by its kind, halved with each half-life of its age.

    ``cap`` bounds a pair's sum, so that reloading a page does not make a love of it.
    """

    kinds: Mapping[str, float]
    half_life_ms: int | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        bad = [k for k, w in self.kinds.items() if not 0 <= w < float("inf")]
        if bad or not self.kinds:
            raise UsageError(f"weights {dict(self.kinds)}", hint="Each must be 0 or more.")
        for name, value in (("half_life_ms", self.half_life_ms), ("cap", self.cap)):
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}", hint="It must be above 0, or None.")

    def describe(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"kinds": dict(self.kinds), "half_life_ms": self.half_life_ms, "cap": self.cap}


SHOP = Weights({VIEW: 1.0, CART: 3.0, ORDER: 5.0}, half_life_ms=60 * DAY_MS, cap=20.0)
"""A start for a shop; what is best is measured on its own history."""


@dataclass(frozen=True)
class Interactions:
    """Single interactions in order of time, over two lists of ids.

    Shapes: ``user`` and ``item`` int32 [n] are places in ``users`` and ``items``; ``kind`` uint8
    [n] are places in ``kinds``; ``time`` int64 ms UTC [n], all 0 for a table without times;
    ``offset`` int64 [n] is each one's place in the log, -1 for a table that was never in one.
    """

    users: pa.StringArray
    items: pa.StringArray
    kinds: tuple[str, ...]
    user: Codes
    item: Codes
    kind: npt.NDArray[np.uint8]
    time: Integers
    offset: Integers

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        return f"Interactions({len(self)} of {len(self.users)} users, {len(self.items)} items)"

    @property
    def shape(self) -> tuple[int, int]:
        """Users and items."""
        return len(self.users), len(self.items)

    @property
    def timed(self) -> bool:
        """Whether they have times."""
        return bool(len(self)) and bool(self.time.any())

    @classmethod
    def of(
        cls,
        users: pa.Array,
        items: pa.Array,
        kind: npt.NDArray[np.uint8],
        kinds: tuple[str, ...],
        time: Integers,
        *,
        offset: Integers | None = None,
        listed: pa.Array | None = None,
        known: Interactions | None = None,
    ) -> Interactions:
        """From columns of text [n] without nulls, in any order.

        Ids are listed in their order as text; ``listed`` are items that belong to the catalogue
        though nobody may have taken them. With ``known`` its lists are used, which then must have
        every id; raises InputError that names one that is missing.
        """
        if known is None:
            users_list, user = _coded(users)
            items_list, item = _coded(items, listed)
        else:
            users_list, items_list = known.users, known.items
            user, item = _found(users, users_list, "user"), _found(items, items_list, "item")
        order = np.lexsort((kind, item, user, time))
        place = np.full(len(user), -1, np.int64) if offset is None else offset
        columns = (user[order], item[order], kind[order], time[order], place[order])
        return cls(users_list, items_list, kinds, *columns)

    def where(self, rows: npt.NDArray[Any]) -> Interactions:
        """Those of a mask or of ascending places, over the same ids."""
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            kind=self.kind[rows],
            time=self.time[rows],
            offset=self.offset[rows],
        )

    def between(self, start_ms: int, end_ms: int) -> Interactions:
        """Those with ``start_ms <= time < end_ms``."""
        edges = np.searchsorted(self.time, [start_ms, end_ms])
        return self.where(np.arange(edges[0], max(edges)))

    def matrix(self, weights: Weights | None = None, *, as_of_ms: int | None = None) -> Rows:
        """[users, items] weights of the pairs that occur; without ``weights`` each is 1.

        A pair's weight is ``sum w(kind) * 2^(-(as_of - time) / half_life)``, by default as of the
        newest interaction. A pair without weight has no entry. What came after ``as_of_ms`` must
        not be here: raises UsageError.
        """
        if weights is None:
            pairs = np.unique(self.user.astype(np.int64) * self.shape[1] + self.item)
            user, item = np.divmod(pairs, max(self.shape[1], 1))
            return Rows.of(user, item, np.ones(len(pairs)), self.shape)
        each = self._values(weights, as_of_ms)
        kept = each > 0
        rows = Rows.of(self.user[kept], self.item[kept], each[kept], self.shape)
        if weights.cap is not None:
            rows = rows.with_values(np.minimum(rows.values, weights.cap))
        return rows

    def _values(self, weights: Weights, as_of_ms: int | None) -> npt.NDArray[np.float64]:
        unknown = sorted(set(weights.kinds) - set(self.kinds))
        if unknown:
            raise UsageError(
                f"weights name {', '.join(unknown)}", hint=f"Kinds here: {', '.join(self.kinds)}."
            )
        each = np.array([weights.kinds.get(k, 0.0) for k in self.kinds])[self.kind]
        if weights.half_life_ms is None or not len(self):
            return each
        newest = int(self.time[-1])
        now = newest if as_of_ms is None else as_of_ms
        if newest > now:
            raise UsageError(
                f"interactions go on to {newest}, the weights are as of {now}",
                hint="Cut them by `between` first.",
            )
        faded: npt.NDArray[np.float64] = each * np.exp2((self.time - now) / weights.half_life_ms)
        return faded

    def fingerprint(self) -> str:
        """sha256 over ids, kinds and every interaction, wherever it lies in a log."""
        digest = hashlib.sha256(repr(self.kinds).encode())
        for ids in (self.users, self.items):
            for value in ids.to_pylist():
                digest.update(value.encode() + b"\0")
        for array in (self.user, self.item, self.kind, self.time):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _coded(values: pa.Array, more: pa.Array | None = None) -> tuple[pa.StringArray, Codes]:
    found = [values.cast(pa.string()), *([] if more is None else [more.cast(pa.string())])]
    ids = pc.unique(pa.chunked_array(found)).sort()
    return ids, _found(values, ids, "value")


def _found(values: pa.Array, ids: pa.StringArray, what: str) -> Codes:
    codes = pc.index_in(values.cast(pa.string()), ids)
    if codes.null_count:
        lost = values.filter(pc.is_null(codes))[0].as_py()
        raise InputError(
            f"{what} {lost!r} is not in the list of ids",
            hint="Make both parts from one table, or list the ids of both.",
        )
    found: Codes = codes.to_numpy(zero_copy_only=False).astype(np.int32)
    return found
