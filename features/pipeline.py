"""Build all features of a project from its log: export, one pass per entity, seal, publish.

`raypipe features`, or ``python -m features.pipeline``, also as a Ray job.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.batch import run_entity
from features.builds import Build, Manifest, folder, new_name
from features.profiles import daily
from features.profiles.made import values_folders
from features.store.duck import scan
from raypipe.aborts import reach
from raypipe.clock import DAY_MS, SystemClock
from raypipe.errors import IntegrityError, NotFound, RaypipeError, StageError
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project, load_project
from raypipe.runtime import placement, session
from raypipe.runtime.worker.core import GROUP
from raypipe.windows import snapshot

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

PARTITION = 0
SNAPSHOT = "snapshot"


def build(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Compute every feature from the whole log and hand it to Feast; returns what was built.

    Needs a Ray session and starts one if there is none. Raises StageError when the log is empty.
    """
    project = load_project(settings.project)
    if settings.ray_address is not None:
        session.start(settings)
        placement.require_log_node(settings)
    log = SqliteLog.open(settings.log_url)
    try:
        daily.check(project)
        made = compute(project, log, settings, progress)
        if project.profiles:
            profiles(project, log, settings, progress, made)
    finally:
        log.close()
    publish(project, settings, progress, made)
    return made.describe()


def event_files(project: Project, log: SqliteLog, lake: Place, end: int) -> dict[str, list[Place]]:
    """Parquet files in the lake with all rows before ``end``, by event type that has rows."""
    present = set(log.kinds(PARTITION))
    exported = lake / "export" / log.id
    return {
        e.name: [
            _in_lake(file, lake, exported)
            for file in log.export(PARTITION, e.name, exported, 0, end)
        ]
        for e in project.events
        if e.name in present
    }


def compute(project: Project, log: SqliteLog, settings: Settings, progress: Progress) -> Build:
    """Window values of all history and their state for the worker; the build, now current."""
    end = log.end(PARTITION)
    events = event_files(project, log, settings.lake, end)
    if not events.get(project.decision):
        raise StageError(
            f"the log has no {project.decision!r} events",
            hint="Bring some in first: `raypipe simulate` and `raypipe load`.",
        )
    session.start(settings)
    before = _current_name(settings.lake)
    name = new_name(SystemClock().now_ms())
    out = folder(settings.lake, name)
    partitions = settings.features_blocks or 2 * session.cpus()
    rows, files = 0, dict[str, str]()
    with progress.stage("features", unit="row-keys") as stage:
        for entity in project.entities:
            if any(v.entity == entity.name for v in project.views):
                rows, made = run_entity(project, entity.name, events, out, partitions=partitions)
                files |= made
                stage.advance(rows)
        stage.say(f"{len(project.window_names)} window values of {len(project.entities)} entities")
    parts = {n.removeprefix(f"{SNAPSHOT}/"): h for n, h in files.items() if n.endswith(".arrow")}
    snapshot.seal(out / SNAPSHOT, end, project.definition_hash, parts)
    paths = {kind: [p.below(settings.lake) or p.name for p in ps] for kind, ps in events.items()}
    manifest = Manifest(
        build=name,
        definition_hash=project.definition_hash,
        tenant=settings.tenant,
        end_offset=end,
        rows=rows,
        last_event_ms=_last_event([p for ps in events.values() for p in ps]),
        views={v.name: v.definition_hash for v in project.views},
        events=paths,
        files=dict(sorted(files.items())),
    )
    done = Build(settings.lake, manifest)
    reach("features.before_manifest")
    done.publish()
    reach("features.after_manifest")
    log.commit(GROUP, PARTITION, end, str(out / SNAPSHOT))
    # Who opened the build before goes on reading it; older ones and killed ones have no readers.
    out.parent.prune({name, before})
    return done


def profiles(
    project: Project, log: SqliteLog, settings: Settings, progress: Progress, made: Build
) -> None:
    """Profiles of the days that ended since the last time, of the events that a build is of."""
    with progress.stage("profiles", unit="rows") as stage:
        done = daily.update(
            project,
            {e.name: made.events(e.name) for e in project.events},
            settings.lake,
            log=log.id,
            tenant=settings.tenant,
            end=made.manifest.end_offset,
            today=SystemClock().now_ms() // DAY_MS,
            parts=settings.features_blocks or 2 * session.cpus(),
        )
        stage.advance(sum(d.rows for d in done))
        stage.say(", ".join(f"{d.profile} until {d.last_day or 'no day yet'}" for d in done))


def publish(project: Project, settings: Settings, progress: Progress, made: Build) -> None:
    """Register the views with Feast and bring the newest state into its online store."""
    from features.materialize import materialize
    from features.profiles.online import materialize as materialize_profiles
    from features.store.registry import apply
    from features.store.repo import open_store

    with progress.stage("feast", unit="keys") as stage:
        store = open_store(settings.home, settings.online_url)
        folders = values_folders(settings.lake, project)
        changes = apply(store, project, made.place, profiles=folders)
        end_ms = made.manifest.last_event_ms
        report = materialize(settings.home, project, made.place, end_ms, store=store)
        slow = materialize_profiles(store, project, settings.lake)
        stage.say(f"{len(changes)} changes in the registry, {report}, {slow:,} profiles")


def _current_name(lake: Place) -> str:
    try:
        return Build.current(lake).manifest.build
    except (NotFound, IntegrityError):
        return ""


def _in_lake(file: Place, lake: Place, folder: Place) -> Place:
    """A sealed file of the log lies on one node: where all must read it, it is copied once."""
    if file.below(lake) is not None:
        return file
    copy = folder / file.name
    if not copy.exists():
        copy.write(file.buffer())
    return copy


def _last_event(files: list[Place]) -> int:
    import duckdb

    with duckdb.connect() as con:
        scan(con, files).create_view("events")
        row = con.execute("select max(event_time) from events").fetchone()
    return int(row[0]) if row else 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m features.pipeline``; the exit code."""
    parser = argparse.ArgumentParser("features.pipeline", description="Compute all features.")
    parser.add_argument("--config", type=Path, help="settings file; default ./raypipe.toml")
    parser.add_argument("--home", type=Path, help="folder of everything that raypipe keeps")
    parser.add_argument("--lake-url", help="where what all nodes read and write lies")
    parser.add_argument("--project", help="module:attribute of the declared project")
    parser.add_argument("--features-blocks", type=int, help="partitions; default: 2 x CPUs")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    flags = vars(parser.parse_args(argv))
    config, as_json, quiet = flags.pop("config"), flags.pop("json"), flags.pop("quiet")

    from raypipe.config import load_settings
    from raypipe.runtime.progress import reporter

    try:
        made = build(load_settings(flags, config), reporter(quiet=quiet))
    except RaypipeError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    finally:
        session.stop()
    sys.stdout.write((json.dumps(made) if as_json else summary(made)) + "\n")
    return 0


def summary(made: Mapping[str, Any]) -> str:
    """The few lines that a terminal shows."""
    names = ("rows", "end_offset", "definition_hash", "folder")
    return "\n".join(f"{name:15} {made[name]}" for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
