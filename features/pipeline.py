"""Build all features of a project from its log: export, one pass per entity, seal, publish.

The results are built beside the old ones and take their place only when they are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.batch import run_entity
from raypipe.errors import StageError
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project, load_project
from raypipe.runtime import placement, session
from raypipe.runtime.worker.core import GROUP
from raypipe.windows import snapshot

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

MANIFEST = "manifest.json"
PARTITION = 0


def build(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Compute every feature from the whole log and hand it to Feast; returns the manifest.

    Needs a Ray session and starts one if there is none. Raises StageError when the log is empty.
    """
    project = load_project(settings.project)
    if settings.ray_address is not None:
        session.start(settings)
        placement.require_log_node(settings)
    log = SqliteLog.open(settings.log_url)
    try:
        manifest = compute(project, log, settings, progress)
    finally:
        log.close()
    publish(project, settings, progress, manifest["last_event_ms"])
    return manifest


def event_files(
    project: Project, log: SqliteLog, directory: Path, end: int
) -> dict[str, list[Path]]:
    """Parquet files with all rows before ``end`` by event type; types without rows left out."""
    present = set(log.kinds(PARTITION))
    return {
        e.name: log.export(PARTITION, e.name, directory, 0, end)
        for e in project.events
        if e.name in present
    }


def compute(
    project: Project, log: SqliteLog, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Window values of all history, their state for the worker, and the manifest."""
    end = log.end(PARTITION)
    events = event_files(project, log, settings.home / "export", end)
    if not events.get(project.decision):
        raise StageError(
            f"the log has no {project.decision!r} events",
            hint="Bring some in first: `raypipe simulate` and `raypipe load`.",
        )
    session.start(settings)
    out = settings.home / "features.partial"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    partitions = settings.features_blocks or 2 * session.cpus()
    rows = 0
    with progress.stage("features", unit="row-keys") as stage:
        for entity in project.entities:
            if any(v.entity == entity.name for v in project.views):
                rows = run_entity(project, entity.name, events, out, partitions=partitions)
                stage.advance(rows)
        stage.say(f"{len(project.window_names)} window values of {len(project.entities)} entities")
    snapshot.seal(out / "snapshot", end, project.definition_hash)
    manifest = {
        "definition_hash": project.definition_hash,
        "tenant": settings.tenant,
        "end_offset": end,
        "rows": rows,
        "last_event_ms": _last_event([p for paths in events.values() for p in paths]),
        "views": {v.name: v.definition_hash for v in project.views},
        "events": {kind: [os.fspath(p) for p in paths] for kind, paths in events.items()},
        "files": {
            os.fspath(p.relative_to(out)): _sha256(p) for p in sorted(out.rglob("*.parquet"))
        },
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _replace(out, settings.home / "features")
    log.commit(GROUP, PARTITION, end, os.fspath(settings.home / "features" / "snapshot"))
    return manifest


def publish(project: Project, settings: Settings, progress: Progress, end_ms: int) -> None:
    """Register the views with Feast and bring the newest state into its online store."""
    from features.materialize import materialize
    from features.store.registry import apply
    from features.store.repo import open_store

    with progress.stage("feast", unit="keys") as stage:
        store = open_store(settings.home)
        changes = apply(store, project)
        report = materialize(settings.home, project, end_ms, store=store)
        stage.say(f"{len(changes)} changes in the registry, {report}")


def _last_event(paths: list[Path]) -> int:
    import duckdb

    query = "select max(event_time) from read_parquet(?)"
    row = duckdb.execute(query, [[os.fspath(p) for p in paths]]).fetchone()
    return int(row[0]) if row else 0


def _replace(new: Path, current: Path) -> None:
    old = current.with_name(current.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    new.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
