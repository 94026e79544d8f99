"""What the log and the windows say after a load, held against what was answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.shop.traffic import ID_DIGITS
from features.commerce import project
from raypipe.log.port import EventLog

Ints = npt.NDArray[np.int64]
Read = Callable[[str, str], Awaitable[dict[str, float]]]
"""Window values of an entity's key, all as of one time."""

SAMPLED = {
    "card": ("card_id", "payment", "card_count", "card_amount_sum"),
    "session": ("session_id", "page_view", "session_page_view_count", ""),
    "customer": ("customer_id", "payment", "customer_payment_count", "customer_spent_amount_sum"),
}
"""By entity: its key, the event that is looked at, its windows' counts and sums."""

_STEP = 200_000


def ids_in(log: EventLog, size: int) -> tuple[Ints, int]:
    """How often each live id 0 to size - 1 is in the log, and how many events are live."""
    times, live = np.zeros(size, np.int64), 0
    for chunk in events(log):
        names = chunk.column("event_id").cast(pa.binary())
        if not len(names) or names[0].as_py()[:1] != b"e":
            continue
        width = 1 + ID_DIGITS
        start = names.offset
        offsets = np.frombuffer(names.buffers()[1], np.int32)[start : start + len(names) + 1]
        if not (np.diff(offsets) == width).all():
            raise AssertionError("an id of the log is not of this load")
        data = np.frombuffer(names.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        digits = data.reshape(-1, width)[:, 1:] - ord("0")
        numbers = digits.astype(np.int64) @ (10 ** np.arange(ID_DIGITS - 1, -1, -1))
        np.add.at(times, numbers, 1)
        live += len(numbers)
    return times, live


def events(log: EventLog, kinds: tuple[str, ...] = ()) -> Iterator[pa.RecordBatch]:
    """Every event of the log, or those of some types."""
    wanted = kinds or tuple(e.name for e in project.events)
    offset, end = 0, log.end(0)
    while offset < end:
        for chunk in log.read(0, offset, _STEP):
            offset += len(chunk)
            if chunk.kind in wanted:
                yield chunk.batch


async def mismatches(log: EventLog, read: Read, now_ms: int, keys: int, seed: int) -> int:
    """Counts and sums of sampled keys that differ from the windows' definition, applied to the
    log's rows one key at a time."""
    rng, wrong = np.random.default_rng(seed), 0
    for entity, (column, kind, counted, summed) in SAMPLED.items():
        seen = _keys_of(log, kind, column, keys * 20, rng)
        names = rng.choice(seen, min(len(seen), keys // len(SAMPLED)), replace=False).tolist()
        happened = _rows_of(log, kind, column, names)
        for name in names:
            times, amounts = happened.get(name, (np.empty(0, np.int64), np.empty(0, np.int64)))
            found = await read(entity, name)
            for label, hop, hops in _spans(entity):
                at = max(now_ms, int(times.max(initial=0))) // 1_000
                inside = times // 1_000 // hop > at // hop - hops
                count, total = float(inside.sum()), float(amounts[inside].sum())
                wrong += found.get(f"{counted}_{label}", count) != count
                wrong += found.get(f"{summed}_{label}", total) != total
    return wrong


def _spans(entity: str) -> list[tuple[str, int, int]]:
    view = next(v for v in project.views if v.name == entity)
    return [(s.label, s.hop, s.length // s.hop) for s in view.spans]


def _keys_of(
    log: EventLog, kind: str, column: str, some: int, rng: np.random.Generator
) -> list[str]:
    """Keys from all over the log."""
    found: set[str] = set()
    for batch in events(log, (kind,)):
        keys = batch.column(column)
        places = rng.integers(0, len(keys), min(len(keys), 50))
        found.update(keys.take(pa.array(places)).drop_null().to_pylist())
        if len(found) > some:
            found = set(rng.choice(sorted(found), some // 2, replace=False).tolist())
    return sorted(found)


def _rows_of(
    log: EventLog, kind: str, column: str, names: list[str]
) -> dict[str, tuple[Ints, Ints]]:
    """Times and amounts (0 where there are none) of the events of some keys."""
    wanted = pa.array(names)
    parts: dict[str, list[tuple[int, int]]] = {}
    for batch in events(log, (kind,)):
        mine = batch.filter(pc.is_in(batch.column(column), value_set=wanted))
        if not mine.num_rows:
            continue
        amounts = (
            mine.column("amount").to_pylist()
            if "amount" in mine.schema.names
            else [0] * mine.num_rows
        )
        for name, time, amount in zip(
            mine.column(column).to_pylist(),
            mine.column("event_time").to_pylist(),
            amounts,
            strict=True,
        ):
            parts.setdefault(name, []).append((time, amount))
    return {
        name: (np.array([t for t, _ in rows]), np.array([a for _, a in rows]))
        for name, rows in parts.items()
    }
