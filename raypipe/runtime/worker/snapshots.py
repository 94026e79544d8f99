"""A worker's snapshots: made in pieces between its rounds, written beside them; two are kept."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raypipe.errors import RaypipeError
from raypipe.lake import Place
from raypipe.windows import snapshot

Tables = Sequence[pa.Table]
Taken = Tables | Callable[[], Tables]
"""A part of the state, or what makes it in another thread."""

Piece = Callable[[int], Taken]
"""Takes a part of the state as of now; its argument is the offset up to which that has counted."""

KEPT = 2
"""If the newest can't be read, the one before it needs little more replay."""

_WAITING = 2
"""Pieces that wait for the disk: memory that a snapshot may take."""

_SHARE = 0.1
"""Of the worker's time that a snapshot may take: that of a large state takes longer."""

_POLL_S = 0.005
_NAME = re.compile(r"\d{12}-\d{6}")

_log = logging.getLogger("raypipe.worker")


@dataclass
class _Making:
    """A snapshot that is being made: replay from ``offset`` on completes each of its pieces."""

    folder: Place
    offset: int
    pieces: Sequence[Piece]
    taken: int = 0
    resume: float = 0.0
    """When the next piece may be taken."""
    files: dict[str, str] = field(default_factory=dict)
    """Those that are written, with their sha256."""
    writing: deque[Future[dict[str, str]]] = field(default_factory=deque)
    """Of the next pieces, in order, their files: the writer takes one after the other."""
    sealed: Future[None] | None = None

    @property
    def waiting(self) -> int:
        """How many pieces are being written."""
        return sum(not f.done() for f in self.writing)

    @property
    def all_taken(self) -> bool:
        """Whether what is left is the writer's."""
        return self.taken == len(self.pieces)

    def collect(self) -> None:
        """Note what is written; raises what prevented it."""
        while self.writing and self.writing[0].done():
            self.files |= self.writing.popleft().result()

    def wait(self) -> None:
        """Until there is a next step: a piece to take, or the end of what the writer does."""
        unfinished: list[Future[Any]] = [f for f in self.writing if not f.done()]
        if self.sealed is not None:
            unfinished.append(self.sealed)
        if len(unfinished) >= _WAITING or self.all_taken:
            wait(unfinished, return_when=FIRST_COMPLETED)


class Snapshots:
    """The snapshots in one folder, which no other process writes.

    Args:
        made_by: definition hash of the project.
        every_s: seconds from the start of one to that of the next; only if events came.
    """

    def __init__(
        self,
        folder: Place,
        made_by: str,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._made_by = made_by
        self._every_s = every_s
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, "snapshot")
        self._making: _Making | None = None
        self._begun = clock()
        self._last_offset = -1
        self.seconds = 0.0
        """How long the last one took."""

    @property
    def wants_last(self) -> bool:
        """Whether only the last piece is left to be taken."""
        making = self._making
        return making is not None and making.taken == len(making.pieces) - 1

    def due(self, offset: int) -> bool:
        """Whether ``tick`` has something to do."""
        return self.idle_s(offset) == 0.0

    def idle_s(self, offset: int) -> float | None:
        """After how long ``tick`` may have something to do; None: not before more events came."""
        making = self._making
        if making is not None:
            if making.sealed is not None:
                return 0.0 if making.sealed.done() else _POLL_S
            if making.waiting >= _WAITING or (making.waiting and making.all_taken):
                return _POLL_S
            return max(0.0, making.resume - self._clock())
        if offset <= self._last_offset:
            return None
        return max(0.0, self._begun + self._every_s - self._clock())

    def tick(
        self, offset: int, epoch: int, pieces: Callable[[], Sequence[Piece]]
    ) -> tuple[int, str] | None:
        """Go on for one piece, or begin if it is time; call it when all state is durable.

        Returns offset and reference of a snapshot that is complete now. A snapshot that can't be
        written is given up: the log has everything.
        """
        making = self._making
        if making is None:
            if offset <= self._last_offset or self._clock() < self._begun + self._every_s:
                return None
            making = self._begin(offset, epoch, pieces())
        started = self._clock()
        if started < making.resume:
            return None
        try:
            done = self._step(making, offset)
            making.resume = self._clock() + (self._clock() - started) * (1 / _SHARE - 1)
            return done
        except (OSError, RaypipeError) as e:
            _log.warning("no snapshot at offset %d: %s", offset, e)
            self._give_up()
            return None

    def finish(
        self, offset: int, epoch: int, pieces: Callable[[], Sequence[Piece]]
    ) -> tuple[int, str]:
        """Make a whole one now; raises what prevents it."""
        self._give_up()
        making = self._begin(offset, epoch, pieces())
        while (done := self._step(making, offset)) is None:
            making.wait()
        return done

    def prune(self) -> Future[None]:
        """Remove all but the newest two, beside the worker's rounds."""
        return self._writer.submit(lambda: self._folder.prune(set(self._names()[:KEPT])))

    def others(self, reference: str) -> list[Place]:
        """The snapshots besides the one at ``reference``, newest first."""
        places = [self._folder / name for name in self._names()]
        return [place for place in places if place.url != reference]

    def _names(self) -> list[str]:
        """Those that are complete."""
        names = sorted((n for n in self._folder.names() if _NAME.fullmatch(n)), reverse=True)
        return [n for n in names if (self._folder / n / snapshot.MANIFEST).exists()]

    def _begin(self, offset: int, epoch: int, pieces: Sequence[Piece]) -> _Making:
        self._begun = self._clock()
        folder = self._folder / f"{offset:012d}-{epoch:06d}"
        folder.remove_tree()
        self._making = _Making(folder, offset, pieces)
        return self._making

    def _step(self, making: _Making, offset: int) -> tuple[int, str] | None:
        making.collect()
        if not making.all_taken:
            if making.waiting < _WAITING:
                taken = making.pieces[making.taken](offset)
                making.writing.append(
                    self._writer.submit(_write, making.folder, making.taken, taken)
                )
                making.taken += 1
            return None
        if making.writing:
            return None
        if making.sealed is None:
            making.sealed = self._writer.submit(
                snapshot.seal, making.folder, making.offset, self._made_by, making.files
            )
        if not making.sealed.done():
            return None
        making.sealed.result()
        self._making = None
        self._last_offset = making.offset
        self.seconds = self._clock() - self._begun
        return making.offset, making.folder.url

    def _give_up(self) -> None:
        making, self._making = self._making, None
        if making is None:
            return
        for writing in making.writing:
            writing.cancel()
        self._writer.submit(making.folder.remove_tree)


def _write(folder: Place, number: int, taken: Taken) -> dict[str, str]:
    tables = taken() if callable(taken) else taken
    names = [f"part-{number:05d}-{i:03d}.arrow" for i in range(len(tables))]
    pairs = zip(names, tables, strict=True)
    return {name: (folder / name).write(snapshot.part_bytes(table)) for name, table in pairs}
