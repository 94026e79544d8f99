"""What a worker compiles before it is ready is all that requests need."""

from __future__ import annotations

from pathlib import Path

from tests.unit.compiled_kit import in_new_process

SCRIPT = """
import sys
from pathlib import Path

import pyarrow as pa

from features.commerce import project
from raypipe.config import Settings
from raypipe.events.quarantine import Quarantine
from raypipe.lake import Place
from raypipe.log.port import Group
from raypipe.log.sqlite import SqliteLog
from raypipe.patterns.files import pattern_files, runnable
from raypipe.runtime.worker.compiled import compile_worker
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.snapshots import Snapshots
from tests.unit.compiled_kit import compiled

home, start = Path(sys.argv[1]), 1_790_000_000_000
settings = Settings(home=home, project="features.commerce:project")


def value(field, number):
    if field.nullable and number % 3 == 0:
        return None
    if field.name == "tenant":
        return "default"
    if field.name in ("event_time", "received_at"):
        return start + number
    if pa.types.is_string(field.type):
        return f"{field.name}-{number}"
    return field.type.to_pandas_dtype()(number % 2)


def rows(kind, numbers):
    schema = project.event(kind).arrow_schema
    return pa.RecordBatch.from_pylist(
        [{f.name: value(f, n) for f in schema} for n in numbers], schema
    )


def worker():
    return WorkerCore(
        project,
        SqliteLog(home / "log"),
        quarantine=Quarantine(home / "quarantine.db"),
        snapshots=Snapshots(Place.at(home / "snapshots"), project.definition_hash, 0.0),
        patterns=runnable(pattern_files(settings), project),
    )


assert not compiled()
compile_worker(project)
before = compiled()
core, sent = worker(), 0
for step, size in enumerate((1, 50, 5_000, 1)):
    for kind in (e.name for e in project.events):
        batch = rows(kind, range(sent, sent + size))
        sent += size
        core.ingest(Bulk("default", Group.of(kind, batch), start + sent, "test", bytes(32)))
        sliced = rows(kind, range(sent, sent + 2 * size))[size:]
        sent += 2 * size
        core.ingest(Bulk("default", Group.of(kind, sliced), start + sent, "test", bytes(32)))
        core.commit()
    (event,) = rows(project.decision, [sent]).to_pylist()
    sent += 1
    assert core.observe(event, bytes(32))[0].windows
    core.commit()
    core.stats()
core.save()
worker()
print(sorted(compiled() - before))
"""


def test_requests_compile_nothing_after_a_worker_is_ready(tmp_path: Path) -> None:
    assert in_new_process(SCRIPT, tmp_path) == "[]"
