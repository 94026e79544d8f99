"""What a sealed range consists of; the adapter stores it, the reader follows it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One Parquet file: rows of one kind, ascending by offset. Event times are ms UTC."""

    kind: str
    name: str
    rows: int
    sha256: str
    min_offset: int
    max_offset: int
    min_event_time: int | None
    max_event_time: int | None


@dataclass(frozen=True, slots=True)
class SealedIds:
    """One array, uint64 [2, rows]: id hashes ascending over the offsets that bear them.

    It belongs to a range and may be that of ranges before it, too: small arrays are merged, so that
    an id is looked for in few of them.
    """

    kind: str
    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class SealedRange:
    """Offsets start to end - 1, kept as files by kind (in offset order) and ids by kind."""

    start: int
    end: int
    files: Mapping[str, tuple[SealedFile, ...]]
    ids: Mapping[str, SealedIds]
    id: int = 0
    """Its number in the manifest, when it is there."""

    @property
    def names(self) -> list[str]:
        """Its files, arrays of ids among them."""
        files = [f.name for of in self.files.values() for f in of]
        return [*files, *(i.name for i in self.ids.values())]


class Ranges:
    """A partition's sealed ranges in offset order."""

    def __init__(self, ranges: list[SealedRange]) -> None:
        self.all = ranges
        self._starts = [r.start for r in ranges]

    def at(self, offset: int) -> SealedRange | None:
        """The range that holds this offset."""
        i = bisect_right(self._starts, offset) - 1
        return self.all[i] if i >= 0 and offset < self.all[i].end else None

    def next_start(self, offset: int, end: int) -> int:
        """Where the first range after this offset starts, ``end`` if none does before it."""
        i = bisect_right(self._starts, offset)
        return min(self._starts[i], end) if i < len(self._starts) else end
