"""Bring serving up: worker, replicas, HTTP; in this process's session or on a cluster. And down."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from raypipe.errors import NotFound, Unavailable
from raypipe.runtime import running, session
from raypipe.runtime.ingress import own
from raypipe.runtime.worker import actor
from raypipe.tenancy.keys import LOCAL_KEY_FILE

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.project import Project
    from raypipe.runtime.progress import Progress

Announce = Callable[[str, str], None]
"""Called with the HTTP URL and the Ray address once decisions are served."""


def serve(settings: Settings, progress: Progress, announce: Announce) -> dict[str, Any]:
    """Start the worker and the applications; returns where they answer. Recommendations are served
    where a version of them was fitted; where no model was trained, they alone.

    On a cluster they outlive this process, ``stop`` ends them; every node with a replica answers
    at the settings' port. Raises DeclarationError when rows in the log can't be read any more,
    ConfigError for a log of another number of workers, NotFound when no model was trained yet and
    Unavailable when the port is taken or HAProxy is missing, before anything is started.
    """
    from raypipe.project import load_project
    from serving import app, ingest
    from serving.recommend import app as recommend
    from serving.recommend import versions
    from serving.recommend.http import PREFIX
    from serving.releases import first_or_current
    from training.recommend.ranking.fit import is_shop

    project = load_project(settings.project)
    require_readable_log(settings, project)
    recommender = versions.current(settings.lake) if is_shop(project) else None
    try:
        recorded = first_or_current(settings, project.models[0].name)
    except NotFound:
        if recommender is None:
            raise
        recorded = None  # a shop that only recommends
    _require_parts(settings)
    if settings.ray_address is None:
        for name in ("http_port", "ingest_port"):
            _require_port(settings, name)
    session.start(settings, warm=False)  # nothing here is a batch task
    with progress.stage("worker") as stage:
        actor.ensure(settings)
        stage.say("window state restored")
    with progress.stage("ingest") as stage:
        ingest.ensure(settings)
        stage.say(f"bulk events at {settings.ingest_url}/v1/events")
    url = settings.http_url
    model = None if recorded is None else recorded.release.champion
    if recorded is not None:
        with progress.stage("serve") as stage:
            app.start(settings)
            stage.say(f"{model}, release {recorded.number}, at {url}")
    if recommender is not None:
        with progress.stage("recommend") as stage:
            recommend.start(settings)
            stage.say(f"{recommender} at {url}{PREFIX}")
    announce(url, session.address())
    return {
        "url": url,
        "docs": f"{url}{PREFIX if recorded is None else ''}/docs",
        "events": f"{settings.ingest_url}/v1/events",
        **({} if recorded is None else {"model": model, "release": recorded.number}),
        **({} if recommender is None else {"recommender": recommender}),
        # The worker, which holds the keys, has made this one.
        "api_key": str(settings.home / LOCAL_KEY_FILE),
    }


def stop(settings: Settings) -> int | None:
    """End serving on a cluster: what takes requests first, then the worker with a snapshot; its
    offset.

    None where no worker ran or it could not save: the log has everything.
    """
    from ray import serve as ray_serve

    from serving import ingest

    session.start(settings, warm=False)
    ingest.stop()
    ray_serve.shutdown()  # type: ignore[no-untyped-call]
    return actor.stop()


def require_readable_log(settings: Settings, project: Project) -> None:
    """The worker would refuse a breaking declaration too, in the words of a dead actor."""
    from raypipe.events.declarations import check_declarations
    from raypipe.log.opening import open_log
    from raypipe.ownership.checks import check_patterns, check_tables
    from raypipe.ownership.claim import check_claim
    from raypipe.ownership.routes import Ownership
    from raypipe.patterns.files import pattern_files, runnable

    ownership = None
    if settings.workers > 1:
        ownership = Ownership(project, settings.workers)
        check_tables(project.tables)
        check_patterns(ownership, runnable(pattern_files(settings), project))
    try:
        log = open_log(settings.log_url, settings.log_cache, create=False, workers=settings.workers)
    except NotFound:
        return  # a new log, or one of another node
    with closing(log):
        for partition in range(settings.workers):
            check_claim(log, partition, ownership)
            check_declarations(log, project, partition)


def _require_parts(settings: Settings) -> None:
    if find_spec("uvloop") is None:
        raise Unavailable(
            "the package uvloop is missing, without which each answer takes 40 ms more",
            hint="Install raypipe again with all that it depends on.",
        )
    absent = own.missing(os.environ.get(own.BINARY_VARIABLE, ""))
    if settings.ingress == "haproxy" and absent:
        raise Unavailable(
            f"HAProxy can't take requests: {absent}",
            hint="Install ray[serve] again, or serve with --set ingress=proxy.",
        )


def _require_port(settings: Settings, setting: str) -> None:
    port = getattr(settings, setting)
    refusal = running.refusal(settings.http_host, port)
    if refusal:
        raise Unavailable(
            f"nothing can listen on {settings.http_host}:{port}: {refusal}",
            hint="Stop what uses the port, or choose another with "
            + ("--port." if setting == "http_port" else f"--set {setting}=NUMBER."),
        )
