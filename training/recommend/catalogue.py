"""What the catalogue said of each item at a moment: the newest listing before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import UsageError
from raypipe.log.port import OFFSET
from training.recommend.rows import Rows

if TYPE_CHECKING:
    from training.recommend.events import Tables

ITEM, TIME, FIRST = "item_id", "event_time", "first_listed"
PRICE, AVAILABLE = "price", "available"


@dataclass(frozen=True)
class Catalogue:
    """One row per item of a list of ids, in its order; what was never said is null.

    ``table`` has the columns of the listing event and ``first_listed`` (ms UTC).
    """

    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    @property
    def available(self) -> npt.NDArray[np.bool_]:
        """Whether each can be ordered, [items]; one that was never listed can't."""
        known: npt.NDArray[np.bool_] = (
            pc.fill_null(self.table.column(AVAILABLE), False).to_numpy().astype(np.bool_)
        )
        return known

    def has(self, column: str) -> bool:
        """Whether listings said anything in a column."""
        names = self.table.column_names
        return column in names and self.table.column(column).null_count < len(self)

    def codes(self, column: str) -> npt.NDArray[np.int64]:
        """A column's values by number, -1 for null, [items]."""
        return _coded(self.table.column(column))

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """A column of numbers, NaN for null, [items]."""
        values: npt.NDArray[np.float64] = self.table.column(column).cast(pa.float64()).to_numpy()
        return values

    def attributes(self, columns: Sequence[str], *, price_bands: int = 0) -> Rows:
        """[items, distinct values] with 1 where an item has a value; rarer ones weigh more.

        A value that n of N items have weighs ``log(N / n)`` (inverse document frequency, Spärck
        Jones 1972): what all share tells nothing. ``price_bands`` adds bands with equally many
        items as values.

        Raises UsageError for a column that listings don't have.
        """
        lacking = sorted(set(columns) - set(self.table.column_names))
        if lacking:
            raise UsageError(
                f"listings have no {', '.join(lacking)}",
                hint="Columns: " + ", ".join(self.table.column_names),
            )
        found = [self.codes(c) for c in columns]
        if price_bands:
            found.append(_bands(self.numbers(PRICE), price_bands))
        items, values, offset = [], [], 0
        for codes in found:
            have = np.flatnonzero(codes >= 0)
            items.append(have)
            values.append(codes[have] + offset)
            offset += int(codes.max(initial=-1)) + 1
        item, value = (np.concatenate([np.zeros(0, np.int64), *p]) for p in (items, values))
        share = np.bincount(value, minlength=offset)[value] / max(len(self), 1)
        return Rows.of(item, value, -np.log(share), (len(self), offset))


def read_catalogue(
    tables: Tables, items: pa.StringArray, *, as_of_ms: int, event: str = "listing"
) -> Catalogue:
    """The catalogue of these items as it was known before a moment.

    Of several listings of an item the one of the newest time counts, of equal times the one that
    came into the log last.
    """
    import pyarrow.dataset as ds

    said = (
        tables(event)
        .to_table(filter=ds.field(TIME) < as_of_ms)
        .sort_by([(TIME, "ascending"), (OFFSET, "ascending")])
    )
    place = pc.index_in(said.column(ITEM), items).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(~np.isnan(place)) if place.dtype.kind == "f" else np.arange(len(place))
    where = place[rows].astype(np.int64)
    last, first = np.full(len(items), -1, np.int64), np.full(len(items), -1, np.int64)
    last[where] = rows  # the last one written stays
    first[where[::-1]] = rows[::-1]
    names = [n for n in said.column_names if n not in (ITEM, TIME, OFFSET)]
    picked = pa.array(last, mask=last < 0)
    table = said.select(names).take(picked)
    times = said.column(TIME).take(pa.array(first, mask=first < 0))
    return Catalogue(table.add_column(0, ITEM, items).append_column(FIRST, times))


def _coded(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    indices = pc.dictionary_encode(column).combine_chunks().indices
    codes: npt.NDArray[np.int64] = pc.fill_null(indices, -1).to_numpy().astype(np.int64)
    return codes


def _bands(price: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    known = np.isfinite(price)
    codes = np.full(len(price), -1, np.int64)
    if known.any():
        edges = np.quantile(price[known], np.linspace(0, 1, count + 1)[1:-1])
        codes[known] = np.searchsorted(edges, price[known], side="right")
    return codes
