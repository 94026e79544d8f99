"""Small arrays of ids become one large one, so that an id is looked for in few of them.

Arrays of about the same size are neighbours in offset order; four of them merge into one, which
belongs to the last one's range. So a kind with n rows has about 3 log4(n / rows of a range) arrays,
and each hash is written again that many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raypipe.aborts import reach
from raypipe.durable import sync_directory
from raypipe.log import files
from raypipe.log.database import Database
from raypipe.log.history import History, changed
from raypipe.log.manifest import SealedIds, SealedRange

FAN = 4

STEP_ROWS = 1_000_000
"""Rows that are sorted in memory at once."""

Owned = tuple[SealedRange, SealedIds]
"""An array and the range that it belongs to."""


def merge(database: Database, history: History, partition: int, now_ms: int) -> int:
    """Merge until no four neighbours are alike; returns the number of merges."""
    merges = 0
    while True:
        with history.sealing():
            ranges = history.ranges(partition).all
            kinds = {kind for span in ranges for kind in span.ids}
            for kind in sorted(kinds):
                due = _due([(s, s.ids[kind]) for s in ranges if kind in s.ids])
                if due:
                    _merge(database, history, partition, due, now_ms)
                    merges += 1
                    break
            else:
                return merges


def _due(owned: Sequence[Owned]) -> list[Owned]:
    """The newest FAN neighbours of a tier, if it has so many; the last tier first."""
    tiers = [_tier(ids.rows) for _, ids in owned]
    for stop in range(len(owned), FAN - 1, -1):
        # A smaller array before larger ones is as good as one of theirs.
        if max(tiers[stop - FAN : stop]) == tiers[stop - 1]:
            return list(owned[stop - FAN : stop])
    return []


def _tier(rows: int) -> int:
    return (rows.bit_length() - 1) // 2


def _merge(
    database: Database, history: History, partition: int, due: list[Owned], now_ms: int
) -> None:
    span, newest = due[-1]
    name = f"{partition:05d}-{due[0][0].start:012d}-{span.end:012d}-{newest.kind}-ids.npy"
    path = history.directory / name
    rows = sum(ids.rows for _, ids in due)
    arrays = [history.reader.ids(s, newest.kind) for s, _ in due]
    with files.writing(name):
        _write(files.temporary(path), arrays, rows)
        digest = files.sync(files.temporary(path))
        files.temporary(path).replace(path)
        sync_directory(history.directory)
    reach("log.merge.published")
    with database.write() as db:
        for owner, ids in due:
            db.execute("delete from sealed_ids where range = ? and kind = ?", (owner.id, ids.kind))
        db.execute(
            "insert into sealed_ids values(?, ?, ?, ?, ?)",
            (span.id, newest.kind, name, rows, digest),
        )
        history.doom(db, [ids.name for _, ids in due], now_ms)
        changed(db)
        reach("log.merge.before_commit")
    reach("log.merge.after_commit")


def _write(path: Path, arrays: Sequence[npt.NDArray[np.uint64]], rows: int) -> None:
    """One array of all, by hash; of equal hashes the earlier offset first."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint64, shape=(2, rows))
    at = 0
    # Hashes are evenly spread: equal parts of their range hold about as many rows.
    parts = rows // STEP_ROWS + 1
    bounds = [np.uint64(i * 2**64 // parts) for i in range(1, parts)]
    cuts = [[0, *a[0].searchsorted(bounds).tolist(), a.shape[1]] for a in arrays]
    for part in range(parts):
        pieces = [a[:, c[part] : c[part + 1]] for a, c in zip(arrays, cuts, strict=True)]
        piece = np.concatenate(pieces, axis=1)
        order = np.argsort(piece[0], kind="stable")
        out[:, at : at + len(order)] = piece[:, order]
        at += len(order)
    out.flush()
