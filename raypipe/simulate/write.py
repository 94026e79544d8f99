"""A world on disk: tables to load, the truth beside them, and what made them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import UsageError
from raypipe.events.schema import canonical_json
from raypipe.simulate import tables
from raypipe.simulate.world import LATE_MS, World

ROW_GROUP = 2**17
FORMAT = 1
"""Version of the world's rules: raised whenever the same config begins to give other rows."""

TRANSACTIONS = "transactions.parquet"
CHARGEBACKS = "chargebacks.parquet"
LABELS = "truth/labels.parquet"
MAPPING = "load.toml"
MANIFEST = "world.json"

Progress = Callable[[int, int], None]
"""Called with the transactions written so far and the number expected."""


_REPEATED = [
    *("card_id", "customer_id", "merchant_id", "device_id"),
    *("currency", "channel", "category", "country"),
]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a world holds. Times are the smallest and largest event time, 0 without rows."""

    transactions: int
    chargebacks: int
    late: int
    frauds_by_kind: dict[str, int]
    first_ms: int
    last_ms: int

    @property
    def frauds(self) -> int:
        """Fraudulent transactions."""
        return sum(self.frauds_by_kind.values())

    def describe(self) -> dict[str, Any]:
        """Plain data for documents."""
        return {**asdict(self), "frauds": self.frauds}


@dataclass(frozen=True, slots=True)
class Report:
    """What was written where. The hash is of all content: equal for equal worlds."""

    directory: Path
    counts: Counts
    hash: str


class _ParquetFile:
    """Writes tables in whole row groups, so that the bytes don't depend on their sizes."""

    def __init__(self, path: Path, schema: pa.Schema, dictionaries: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=1, use_dictionary=dictionaries
        )
        self._held: list[pa.Table] = []
        self._count = 0

    def add(self, table: pa.Table) -> None:
        self._held.append(table)
        self._count += len(table)
        if self._count >= ROW_GROUP:
            self._flush(self._count // ROW_GROUP * ROW_GROUP)

    def _flush(self, count: int) -> None:
        held = pa.concat_tables(self._held)
        self._writer.write_table(held.slice(0, count), row_group_size=ROW_GROUP)
        self._held, self._count = [held.slice(count)], len(held) - count

    def __enter__(self) -> _ParquetFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        if kind is None and self._count:
            self._flush(self._count)
        self._writer.close()


def write(world: World, out: Path, progress: Progress | None = None) -> Report:
    """Write the world's history to a directory; raises UsageError if ``out`` is a file.

    ``transactions.parquet`` and ``chargebacks.parquet`` are what a client would send, in arrival
    order, and ``load.toml`` maps them; ``truth/labels.parquet`` is for judges alone. Files of an
    earlier world are replaced. ``world.json`` is written last: without it the rest is incomplete.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"{out} is not a directory", hint="Name a directory to write the world to."
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    counts = _write_tables(world, out, progress)
    (out / MAPPING).write_text(_mapping(), "utf-8")
    manifest = {
        "format": FORMAT,
        "seed": world.config.seed,
        "config": {**world.config.describe(), "end_ms": world.config.end_ms},
        "counts": counts.describe(),
        "files": {name: _sha256(out / name) for name in (TRANSACTIONS, CHARGEBACKS, LABELS)},
    }
    manifest["hash"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    part = out / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    part.replace(out / MANIFEST)
    return Report(out, counts, str(manifest["hash"]))


def _write_tables(world: World, out: Path, progress: Progress | None) -> Counts:
    transactions = chargebacks = late = 0
    kinds: Counter[str] = Counter(dict.fromkeys(tables.KINDS[1:], 0))
    first, last = 2**63 - 1, 0
    with (
        _ParquetFile(out / TRANSACTIONS, tables.TRANSACTIONS, _REPEATED) as bought,
        _ParquetFile(out / CHARGEBACKS, tables.CHARGEBACKS, ["currency"]) as disputed,
        _ParquetFile(out / LABELS, tables.LABELS, ["campaign_id", "kind"]) as truth,
    ):
        for batch in world.batches(ROW_GROUP):
            bought.add(batch.transactions)
            disputed.add(batch.chargebacks)
            truth.add(batch.labels)
            time = batch.transactions["event_time"].to_numpy()
            received = batch.transactions["received_at"].to_numpy()
            transactions += len(time)
            chargebacks += len(batch.chargebacks)
            late += int(np.count_nonzero(received - time >= LATE_MS[0]))
            kinds.update(batch.labels["kind"].drop_null().to_pylist())
            first = min(first, int(time.min(initial=first)))
            last = max(last, int(time.max(initial=last)))
            if progress:
                progress(transactions, world.config.expected_rows)
    return Counts(transactions, chargebacks, late, dict(kinds), first if transactions else 0, last)


def _mapping() -> str:
    """The mapping file: every field under its own name, times and amounts as raypipe has them."""
    lines = ["# How `raypipe load` reads the tables beside this file."]
    for event, table, schema in (
        ("transaction", TRANSACTIONS, tables.TRANSACTIONS),
        ("chargeback", CHARGEBACKS, tables.CHARGEBACKS),
    ):
        lines += [
            "",
            "[[stream]]",
            f'event = "{event}"',
            f'table = "{Path(table).stem}"',
            'time_unit = "ms"',
        ]
        lines += ["", "[stream.columns]"]
        for name in schema.names:
            minor = name == "amount"
            lines.append(
                f'{name} = {{ from = "{name}", unit = "minor" }}' if minor else f'{name} = "{name}"'
            )
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
