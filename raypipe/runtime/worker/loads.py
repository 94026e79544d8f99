"""What the other workers are told of a worker's events, made from its log alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.events.evolution import align
from raypipe.log.port import Chunk, Group, Part
from raypipe.ownership.routes import AT, Ownership

Mask = npt.NDArray[np.bool_]

One = tuple[int, str, dict[str, Any], bytes]
"""An event that came alone: its offset, its type, its part for the other, its body's hash."""


@dataclass(frozen=True, slots=True)
class Load:
    """All of the events in [first, end) of one log that concerns one other worker."""

    first: int
    end: int
    ones: Sequence[One]
    group: Group

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.ones or self.group.parts)


def load_of(
    ownership: Ownership,
    partition: int,
    worker: int,
    span: tuple[int, int],
    chunks: Sequence[Chunk],
) -> Load:
    """What ``worker`` is told of a span of a partition's rows, whatever their kinds; the chunks are
    those that may concern it."""
    events = {e.name: e for e in ownership.project.events}
    ones: list[One] = []
    parts: dict[str, list[pa.RecordBatch]] = {}
    for logged in chunks:
        event = events.get(logged.kind)
        if event is None:
            continue
        alone = _alone(logged.batch)
        chunk = replace(logged, batch=align(logged.batch, event))
        if alone.any():
            ones += _ones(ownership, worker, _rows(chunk, alone))
        if not alone.all():
            part = ownership.projection(_rows(chunk, ~alone), partition, worker)
            if part is not None:
                parts.setdefault(part.kind, []).append(part.batch)
    ones.sort(key=lambda one: one[0])
    return Load(*span, ones, _group(parts))


def _alone(batch: pa.RecordBatch) -> Mask:
    """Which rows came one by one: their bodies were hashed [n]."""
    alone: Mask = np.zeros(batch.num_rows, np.bool_)
    if "body_hash" in batch.schema.names:
        alone = pc.is_valid(batch.column("body_hash")).to_numpy(zero_copy_only=False)
    return alone


def _rows(chunk: Chunk, mask: Mask) -> Chunk:
    if mask.all():
        return chunk
    return Chunk(chunk.kind, chunk.offsets[mask], chunk.batch.filter(pa.array(mask)))


def _ones(ownership: Ownership, worker: int, chunk: Chunk) -> list[One]:
    found: list[One] = []
    for offset, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True):
        part = ownership.way(chunk.kind, row).others.get(worker)
        if part is not None:
            found.append((offset, chunk.kind, part, row["body_hash"]))
    return found


def _group(parts: dict[str, list[pa.RecordBatch]]) -> Group:
    """The rows of each kind in the order of their offsets over all kinds."""
    whole = {
        kind: pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
        for kind, batches in parts.items()
    }
    offsets = [batch.column(AT).to_numpy() for batch in whole.values()]
    if not offsets:
        return Group(())
    places = np.argsort(np.argsort(np.concatenate(offsets))).astype(np.int32)
    ends = np.cumsum([len(o) for o in offsets])[:-1]
    return Group(
        tuple(
            Part(kind, batch, mine)
            for (kind, batch), mine in zip(whole.items(), np.split(places, ends), strict=True)
        )
    )
