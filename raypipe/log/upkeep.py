"""One round of upkeep: old live rows to Parquet, old events away, space back.

Safe beside a running worker and beside another round, in any process. A round that is killed leaves
nothing that the next one doesn't finish.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from raypipe.clock import DAY_MS, MINUTE_MS, Clock
from raypipe.errors import ConfigError
from raypipe.log.port import EventLog
from raypipe.log.sqlite import SqliteLog

SHRINK_S = 2.0
"""Most time of a round for giving pages of the database back."""

_ARRIVED = ("received_at", "decided_at", "event_time")
"""Columns that tell when a row was logged; the first one that it has counts."""


@dataclass(frozen=True)
class Policy:
    """What stays live, and how long events are kept."""

    keep_rows: int = 100_000
    """Newest rows that stay live: what readers of the log's end and retries touch."""
    keep_ms: int = 10 * MINUTE_MS
    """Rows that came within this time stay live."""
    least_rows: int = 250_000
    """Rows that are worth a range; fewer wait for the next round."""
    retention_ms: int | None = None
    """Events older than this go; None keeps all."""
    events: tuple[str, ...] = ()
    """Kinds that are events. Others are records, which retention keeps."""


@dataclass(frozen=True)
class Report:
    """What one round did to one partition."""

    partition: int
    first: int
    end: int
    compacted_ranges: int
    compacted_rows: int
    live_bytes: int
    """Payload of those rows in the database."""
    sealed_bytes: int
    """The same rows as files."""
    expired: dict[str, int]
    """Deleted events by kind."""
    expired_bytes: int
    merged: int
    """Merges of id arrays."""
    removed_bytes: int
    """Of files that were no longer needed an hour ago."""
    shrunk_bytes: int
    """Of the database file."""
    longest_hold_ms: float
    """Longest that the compaction kept others from writing."""


def policy(
    events: Collection[str],
    longest_span_ms: int,
    *,
    retention_days: int | None,
    least_rows: int | None = None,
) -> Policy:
    """The policy of a project.

    Args:
        events: its event types.
        longest_span_ms: how far its windows and tables reach back.

    Raises:
        ConfigError: events would go before the windows are done with them.
    """
    if retention_days is not None and retention_days * DAY_MS < longest_span_ms:
        raise ConfigError(
            f"log_retention_days is {retention_days}, the project's longest window or table spans "
            f"{longest_span_ms / DAY_MS:g} days",
            hint="What is declared anew is computed from the log: keep events for at least "
            f"{-(-longest_span_ms // DAY_MS)} days, or declare shorter spans.",
        )
    default = Policy()
    return Policy(
        least_rows=default.least_rows if least_rows is None else least_rows,
        retention_ms=None if retention_days is None else retention_days * DAY_MS,
        events=tuple(sorted(events)),
    )


def upkeep(log: SqliteLog, partition: int, rules: Policy, clock: Clock) -> Report:
    """Compact, delete, merge and shrink as the rules say."""
    now = clock.now_ms()
    made = log.compact(partition, until(log, partition, rules, now), least_rows=rules.least_rows)
    expired: dict[str, int] = {}
    expired_bytes = 0
    if rules.retention_ms is not None:
        gone = log.retain(partition, rules.events, now - rules.retention_ms, now)
        expired, expired_bytes = gone.expired, gone.bytes
    return Report(
        partition=partition,
        first=log.first(partition),
        end=log.end(partition),
        compacted_ranges=len(made.ranges),
        compacted_rows=made.rows,
        live_bytes=made.live_bytes,
        sealed_bytes=made.sealed_bytes,
        expired=expired,
        expired_bytes=expired_bytes,
        merged=log.merge_ids(partition, now),
        removed_bytes=log.remove_doomed(now),
        # What was freed just now is what will be written until the next round.
        shrunk_bytes=log.shrink(made.live_bytes, SHRINK_S),
        longest_hold_ms=made.longest_hold_ms,
    )


def until(log: SqliteLog, partition: int, rules: Policy, now_ms: int) -> int:
    """The offset before which rows are old enough to be sealed."""
    low, end = log.live_start(partition), log.end(partition)
    high = end - rules.keep_rows
    if rules.keep_ms <= 0:
        return max(low, high)
    while low < high:
        middle = (low + high) // 2
        if _arrived(log, partition, middle, end) <= now_ms - rules.keep_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _arrived(log: EventLog, partition: int, offset: int, end: int) -> float:
    """When the first row from this offset on that tells it was logged; never, if none does."""
    while offset < end:
        for chunk in log.read(partition, offset, min(1_000, end - offset)):
            for name in _ARRIVED:
                if name in chunk.batch.schema.names:
                    return float(chunk.batch.column(name)[0].as_py())
            offset += len(chunk)
    return math.inf
