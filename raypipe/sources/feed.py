"""Sends the batches of files, several at once, and counts what became of their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from raypipe.aborts import reach
from raypipe.sources.batch import Send, Taken
from raypipe.sources.files import EventFile, FileBatch

REASONS_KEPT = 10_000
"""Refused rows of a file that are named; all are counted."""

Advance = Callable[[int], None]
"""Told of the rows of each batch that is durable."""


@dataclass
class Fed:
    """What became of a file's rows; ``refused`` are reasons by row, from 0."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    refused: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def count(self, taken: Taken, sent: FileBatch | None = None) -> None:
        """Add a batch; that of a file also names its refused rows."""
        self.accepted += taken.accepted
        self.duplicates += len(taken.duplicates)
        self.rejected += len(taken.refused)
        for number, why in taken.refused.items():
            self.reasons.update(why)
            if sent is not None and len(self.refused) < REASONS_KEPT:
                self.refused[sent.row(number)] = why

    def add(self, other: Fed) -> None:
        """Add the counts of another file."""
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.rejected += other.rejected
        self.reasons += other.reasons


def feed(
    file: EventFile,
    send: Send,
    in_flight: int,
    advance: Advance,
    halt: Callable[[], None] = lambda: None,
) -> Fed:
    """Send a whole file; returns when every row is durable or refused.

    Batches are read as they can be sent, so memory holds ``in_flight`` of them. Only one at a time
    keeps the file's order in the log. Raises what ``send`` and the file raise, after the batches
    in flight have ended; ``halt`` makes them end when the process is asked to stop.
    """
    fed = Fed()
    running: dict[Future[Taken], FileBatch] = {}

    def collect(done: set[Future[Taken]]) -> None:
        for future in done:
            sent = running.pop(future)
            fed.count(future.result(), sent)
            reach("feed.taken")
            advance(sent.batch.rows)

    with ThreadPoolExecutor(in_flight, "feed") as pool:
        try:
            for sent in file.batches():
                running[pool.submit(send, sent.batch)] = sent
                if len(running) >= in_flight:
                    collect(wait(running, return_when=FIRST_COMPLETED).done)
            while running:
                collect(wait(running, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            halt()
            raise
    return fed
