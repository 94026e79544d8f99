"""Texts of the events in partial matches: their ids, keys and what a reason may quote.

The kernel's state holds offsets; here are the rows behind them, as Arrow tables that are thinned
out when most of their rows belong to no partial match any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]

_SPARE_ROWS = 16_384

_PIECE_ROWS = 65_536
"""Rows of the largest piece that others are joined with: of millions, a copy takes seconds."""


class KeptRows:
    """The kept columns of some events, by offset."""

    def __init__(self, places: Mapping[int, tuple[str, int]], tables: Mapping[str, pa.Table]):
        self._places = places
        self._tables = tables
        self._columns: dict[tuple[str, str], list[Any]] = {}

    def kind(self, offset: int) -> str:
        """The type of the event at an offset."""
        return self._places[offset][0]

    def value(self, offset: int, name: str) -> Any:
        """A column of it; None where nothing is kept under that name."""
        return self.values((offset,), name)[0]

    def values(self, offsets: Iterable[int], name: str) -> list[Any]:
        """A column of several."""
        found = map(self._places.__getitem__, offsets)
        return [self._column(kind, name)[row] for kind, row in found]

    def _column(self, kind: str, name: str) -> list[Any]:
        column = self._columns.get((kind, name))
        if column is None:
            table = self._tables[kind]
            known = name in table.column_names
            column = table.column(name).to_pylist() if known else [None] * table.num_rows
            self._columns[kind, name] = column
        return column


class _Piece(NamedTuple):
    offsets: Ints
    rows: pa.Table


class KeptEvents:
    """Rows of the events that one pattern's partial matches refer to, by offset.

    Args:
        columns: what is kept of each event type.
    """

    def __init__(self, columns: Mapping[str, tuple[str, ...]]) -> None:
        self._columns = columns
        self._pieces: dict[str, list[_Piece]] = {kind: [] for kind in columns}
        self._live = 0

    @property
    def rows(self) -> int:
        """Rows that are held."""
        return sum(len(p.offsets) for pieces in self._pieces.values() for p in pieces)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        pieces = [p for pieces in self._pieces.values() for p in pieces]
        return sum(p.offsets.nbytes + p.rows.nbytes for p in pieces)

    @property
    def crowded(self) -> bool:
        """Whether so much was added since the last thinning that it is worth another."""
        return self.rows > 2 * self._live + _SPARE_ROWS

    def add(self, kind: str, offsets: Ints, rows: pa.RecordBatch) -> None:
        """Hold rows of one event type, in ascending order of their offsets."""
        pieces = self._pieces[kind]
        pieces.append(_Piece(offsets, pa.Table.from_batches([rows])))
        # Each is full or at least twice as long as the next: a row is seldom copied.
        while len(pieces) > 1 and len(pieces[-2].offsets) < min(
            2 * len(pieces[-1].offsets), _PIECE_ROWS
        ):
            pieces[-2:] = [_joined(pieces[-2:])]

    def keep(self, offsets: Ints) -> None:
        """Let go of all rows but those at these offsets (sorted)."""
        for kind, pieces in self._pieces.items():
            self._pieces[kind] = _gathered([_thinned(piece, offsets) for piece in pieces])
        self._live = self.rows

    def find(self, offsets: Ints) -> KeptRows:
        """The events at these offsets (sorted), which partial matches hold."""
        wanted = np.unique(offsets)
        places: dict[int, tuple[str, int]] = {}
        tables: dict[str, pa.Table] = {}
        for kind, pieces in self._pieces.items():
            found: list[pa.Table] = []
            rows = 0
            for piece in pieces:
                # A piece is searched for those alone that may be in it.
                begin, end = np.searchsorted(wanted, (piece.offsets[0], piece.offsets[-1] + 1))
                at = np.searchsorted(piece.offsets, wanted[begin:end])
                at = at[_same(piece.offsets, at, wanted[begin:end])]
                if len(at):
                    held = piece.offsets[at].tolist()
                    places |= {o: (kind, rows + i) for i, o in enumerate(held)}
                    found.append(piece.rows.take(pa.array(at)))
                    rows += len(at)
            if found:
                tables[kind] = pa.concat_tables(found)
        return KeptRows(places, tables)

    def tables(self) -> dict[str, pa.Table]:
        """All rows by event type, with a column ``offset``."""
        found = {}
        for kind, pieces in self._pieces.items():
            if pieces:
                offsets, rows = _ordered(pieces)
                found[kind] = rows.add_column(0, "offset", pa.array(offsets))
        return found

    def restore(self, kind: str, table: pa.Table) -> None:
        """Hold the rows of a table that ``tables`` gave."""
        if kind in self._pieces and table.num_rows:
            offsets = table.column("offset").to_numpy()
            self._pieces[kind].append(_Piece(offsets, table.drop_columns("offset")))
            self._live = self.rows


def _same(offsets: Ints, at: Ints, wanted: Ints) -> npt.NDArray[np.bool_]:
    """Which of the wanted offsets are at the places where they would be."""
    inside = at < len(offsets)
    inside[inside] = offsets[at[inside]] == wanted[inside]
    return inside


def _thinned(piece: _Piece, offsets: Ints) -> _Piece:
    """Only the rows at these offsets (sorted)."""
    at = np.flatnonzero(_same(offsets, np.searchsorted(offsets, piece.offsets), piece.offsets))
    if len(at) == len(piece.offsets):
        return piece
    return _Piece(piece.offsets[at], piece.rows.take(pa.array(at)))


def _gathered(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Neighbours joined as far as they fit one piece; none is empty."""
    found: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        size = len(piece.offsets)
        if not size:
            continue
        if size > room:
            found.append([])
            room = _PIECE_ROWS
        found[-1].append(piece)
        room -= size
    return [some[0] if len(some) == 1 else _joined(some) for some in found]


def _joined(pieces: Sequence[_Piece]) -> _Piece:
    offsets, rows = _ordered(pieces)
    return _Piece(offsets, rows.combine_chunks())


def _ordered(pieces: Sequence[_Piece]) -> _Piece:
    offsets = np.concatenate([p.offsets for p in pieces])
    rows = pa.concat_tables([p.rows for p in pieces])
    if (np.diff(offsets) < 0).any():
        order = np.argsort(offsets, kind="stable")
        offsets, rows = offsets[order], rows.take(pa.array(order))
    return _Piece(offsets, rows)
