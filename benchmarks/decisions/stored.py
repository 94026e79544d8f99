"""What a home's log says after the load, read without the code that wrote it but for the codec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field

from benchmarks.harness import check

OWN = "bench-"


@dataclass
class Stored:
    """How often each of the benchmark's events lies in the log, and each decision about one."""

    events: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    degraded: int = 0

    def double_counts(self) -> int:
        """Events and decisions that are there more than once."""
        return sum(n - 1 for c in (self.events, self.decisions) for n in c.values())

    def missing(self, asked: Iterable[str]) -> set[str]:
        """Those of ``asked`` whose event or decision is not there."""
        return set(asked) - (self.events.keys() & self.decisions.keys())

    def check_once(self, asked: Iterable[str]) -> None:
        """Raise WrongResult unless each of ``asked``, and nothing else, is there exactly once."""
        wanted = set(asked)
        lost = self.missing(wanted)
        strange = (self.events.keys() | self.decisions.keys()) - wanted
        check(not lost, f"{len(lost)} requests are not stored, as {sorted(lost)[:3]}")
        check(
            not strange, f"{len(strange)} are stored and were not asked, as {sorted(strange)[:3]}"
        )
        check(not self.double_counts(), f"{self.double_counts()} are stored more than once")


def read_log(log_url: str, decision_event: str) -> Stored:
    """Count from the log's first row to its last."""
    from raypipe.ledger.record import LOG_KIND
    from raypipe.log.sqlite import SqliteLog

    found = Stored()
    with closing(SqliteLog.open(log_url)) as log:
        offset = log.first(0)
        while offset < log.end(0):
            for chunk in log.read(0, offset, 100_000):
                offset = int(chunk.offsets[-1]) + 1
                if chunk.kind not in (LOG_KIND, decision_event):
                    continue
                counts = found.decisions if chunk.kind == LOG_KIND else found.events
                ids = chunk.batch.column("event_id").to_pylist()
                counts.update(i for i in ids if i.startswith(OWN))
                if chunk.kind == LOG_KIND:
                    found.degraded += sum(chunk.batch.column("degraded").to_pylist())
    return found
