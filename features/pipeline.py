"""Build all features of a project from its log: take in what is new, compute what lacks, publish.

`raypipe features`, or ``python -m features.pipeline``, also as a Ray job.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features import building
from features.builds import Build
from features.intake import PARTITION
from features.profiles import daily
from features.profiles.made import values_folders
from features.steps import Wish
from raypipe.aborts import reach
from raypipe.clock import DAY_MS, SystemClock
from raypipe.errors import Conflict, RaypipeError
from raypipe.log.opening import open_log
from raypipe.log.port import EventLog
from raypipe.ownership.claim import require_single
from raypipe.project import Project, load_project
from raypipe.runtime import placement, session
from raypipe.runtime.worker.core import GROUP

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

LOCK = "features.lock"


def build(
    settings: Settings,
    progress: Progress,
    *,
    day: str | None = None,
    bucket: int | None = None,
    verify: bool = False,
) -> dict[str, Any]:
    """Bring every feature up to the log's end and hand it to Feast; returns what was built.

    Needs a Ray session if there is something to compute, and starts one if there is none.

    Args:
        day: compute the outputs of this UTC day (2026-03-01) again, too.
        bucket: of this key range alone.
        verify: read every file of the build and mend those that changed; without, a file counts
            as whole when its size is right.

    Raises:
        Conflict: another process is building.
        StageError: the log is empty.
        NotFound: no events arrived on that day, or there is no such key range.
    """
    project = load_project(settings.project)
    if settings.ray_address is not None:
        session.start(settings)
        placement.require_log_node(settings)
    wish = Wish(day, bucket) if day is not None else None
    with _alone(settings.home), closing(open_log(settings.log_url, settings.log_cache)) as log:
        require_single(log, "`raypipe features`")
        daily.check(project)
        made = compute(project, log, settings, progress, wish=wish, verify=verify)
        if project.profiles:
            profiles(project, settings, progress, made)
    publish(project, settings, progress, made)
    return made.describe()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two builds would take each other's unfinished files for leftovers."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Conflict(
                f"another process computes the features of {home}", hint="Wait until it has ended."
            ) from e
        yield
    finally:
        os.close(descriptor)


def compute(
    project: Project,
    log: EventLog,
    settings: Settings,
    progress: Progress,
    *,
    wish: Wish | None = None,
    verify: bool = False,
) -> Build:
    """Window values of all history and their state for the worker; the build, now current."""
    plan = building.plan(project, log, settings, wish=wish, verify=verify)
    done = building.carry_out(project, plan, settings, progress)
    reach("features.before_manifest")
    done.publish()
    reach("features.after_manifest")
    end = done.manifest.end_offset
    log.commit(GROUP, PARTITION, end, str(building.snapshot_folder(done)))
    building.prune(project, log, done, plan)
    return done


def profiles(project: Project, settings: Settings, progress: Progress, made: Build) -> None:
    """Profiles of the days that ended since the last time, of the events that a build is of."""
    session.start(settings)
    with progress.stage("profiles", unit="rows") as stage:
        done = daily.update(project, made, SystemClock().now_ms() // DAY_MS)
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


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m features.pipeline``; the exit code."""
    parser = argparse.ArgumentParser("features.pipeline", description="Compute all features.")
    parser.add_argument("--config", type=Path, help="settings file; default ./raypipe.toml")
    parser.add_argument("--home", type=Path, help="folder of everything that raypipe keeps")
    parser.add_argument("--lake-url", help="where what all nodes read and write lies")
    parser.add_argument("--project", help="module:attribute of the declared project")
    parser.add_argument(
        "--features-blocks", type=int, help="key ranges; default: as they are, at first 2 x CPUs"
    )
    parser.add_argument("--day", help="compute this UTC day again, as 2026-03-01")
    parser.add_argument("--bucket", type=int, help="of that day, this key range alone")
    parser.add_argument("--verify", action="store_true", help="mend files whose content changed")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    flags = vars(parser.parse_args(argv))
    config, as_json, quiet = flags.pop("config"), flags.pop("json"), flags.pop("quiet")
    again = {name: flags.pop(name) for name in ("day", "bucket", "verify")}

    from raypipe.config import load_settings
    from raypipe.runtime.progress import reporter

    try:
        made = build(load_settings(flags, config), reporter(quiet=quiet), **again)
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
