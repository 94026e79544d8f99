"""The event log that a URL names, whichever adapter keeps it."""

from __future__ import annotations

from pathlib import Path

from raypipe.errors import NotFound
from raypipe.log.port import EventLog

_FILL = "Bring events in first: `raypipe load`, or `raypipe up`."


def open_log(url: str, cache: Path, *, create: bool = True, workers: int = 1) -> EventLog:
    """The log at ``sqlite:///DIRECTORY`` or ``kafka://HOST:PORT/TOPIC?options``.

    Args:
        cache: folder on this machine for what an adapter can make again from the log.
        create: make the log if there is none; otherwise that is NotFound.
        workers: how many write to it, each to a partition of its own.

    Raises:
        ConfigError: no such log can be.
        Unavailable: its server doesn't answer.
    """
    if url.startswith("kafka:"):
        from raypipe.log.kafka.log import KafkaLog

        try:
            return KafkaLog.open(url, cache, create=create)
        except NotFound as e:
            raise NotFound(f"there is no event log: {e.detail}", hint=_FILL) from e

    from raypipe.log.partitions import PartitionedLog, partitions
    from raypipe.log.sqlite import SqliteLog

    directory = SqliteLog.directory_of(url)
    if not create and not (directory / "log.db").is_file():
        raise NotFound(f"there is no event log at {directory}", hint=_FILL)
    if workers > 1 or len(partitions(directory)) > 1:
        return PartitionedLog(directory)
    return SqliteLog(directory)
