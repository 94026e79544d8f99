"""A batch of rows on its way to a running system, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raypipe.ingest.media import Media


@dataclass(frozen=True, slots=True)
class Batch:
    """The body of one bulk request.

    ``key`` is its idempotency key: the same key always goes with the same bytes, so a batch can be
    sent again after any failure. ``kind`` is the event type of all rows, None if each names its
    own.
    """

    key: str
    body: bytes
    media: Media
    kind: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the rows of a batch; ``refused`` are the reasons by number in the batch."""

    accepted: int = 0
    duplicates: frozenset[int] = frozenset()
    refused: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


Send = Callable[[Batch], Taken]
"""Returns when the rows are durable; may be called again with the same batch."""
