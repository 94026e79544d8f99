"""One Serve replica: holds models and a connection to the worker, and no other state."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from raypipe.clock import MINUTE_MS, SystemClock
from raypipe.errors import ConfigError, RaypipeError
from serving.autoscaling import P95
from serving.http import HttpApp

if TYPE_CHECKING:
    from raypipe.config import Settings
    from serving.options import Options
    from serving.panel import Panel
    from serving.release import Release

_log = logging.getLogger("raypipe.serving")


class Replica:
    """The class that Ray Serve deploys; ``user_config`` is a serving.release.Release.

    Ray Serve calls ``__init__``, then ``__serve_build_asgi_app__``, then ``reconfigure``, before
    the first request; ``reconfigure`` again when another release is deployed, without a restart.
    Before that ``serving.rollout`` has called ``prepare`` and ``switch`` of every replica.
    """

    def __init__(self, settings: Settings, options: Options) -> None:
        from ray import serve

        from features import parity_report
        from features.profiles.lookup import ProfileReader
        from raypipe.events.row import RowValidator
        from raypipe.project import load_project
        from raypipe.runtime.worker import actor
        from serving import loopback
        from serving.batch import Limits
        from serving.credentials import AWAY_S, Credentials
        from serving.docs import render
        from serving.events import Events
        from serving.experiments import Experiments
        from serving.explain import Explainer
        from serving.guard import Guard
        from serving.key_shelf import KeyShelf
        from serving.key_values import KeyValues, OnlineStore
        from serving.lists import WatchedLists
        from serving.metrics import Metrics
        from serving.openapi import document
        from serving.profiles import OnlineProfiles
        from serving.reviews import Reviews
        from serving.scoring import feature_names
        from serving.shadows import FOLDER, Shadows
        from serving.tables import TableReader

        loopback.narrow()
        self._settings = settings
        self._options = options
        self._project = load_project(settings.project)
        event = self._project.decision_event
        self._validator = RowValidator(event, settings.currency)
        self._worker = actor.client(settings, self._project)
        self._profiles = None
        if self._project.profiles:
            reader = ProfileReader(self._project.profiles, settings.home, settings.online_url)
            self._profiles = OnlineProfiles(reader, settings.tenant)
        models = settings.lake / "models"
        replica = serve.get_replica_context().replica_id.unique_id
        self._metrics = metrics = Metrics(replica)
        shelf = KeyShelf(settings.spill_dir / "keys", AWAY_S)
        keys = Credentials(self._worker, shelf=shelf)
        stored = OnlineStore(self._project, settings.home, settings.online_url)
        self._guard = Guard(settings, options, self._project, self._worker, stored, keys, metrics)
        self._shadows = Shadows(settings.lake / FOLDER, metrics.shadowed)
        self._lists = WatchedLists(settings.lake)
        self._experiments = Experiments(settings.lake, self._worker)
        self._panel: Panel | None = None
        self._prepared: Panel | None = None
        self._app = HttpApp(
            keys=keys,
            entrance=self._guard.entrance,
            worker=self._worker,
            key_values=KeyValues(
                self._project,
                self._worker,
                stored,
                settings.tenant,
                SystemClock(),
                self._profiles,
            ),
            tables=TableReader(self._project, self._worker, SystemClock()),
            events=Events.of(settings, self._project, self._worker),
            explainer=Explainer(models),
            reviews=Reviews(
                self._project, self._worker, SystemClock(), settings.review_minutes * MINUTE_MS
            ),
            experiments=self._experiments,
            metrics=metrics,
            documents=render(document(self._project, settings.currency, settings.body_limit_bytes)),
            feature_names=lambda reference: feature_names(models, reference),
            last_parity=lambda: parity_report.last(settings.lake),
            replica=replica,
            body_limit=settings.body_limit_bytes,
            batch_limits=Limits.of(settings),
            patience_s=settings.decision_deadline_ms / 1000,
            echo_request_id=False,  # Serve's own middleware does
        )

    def __serve_build_asgi_app__(self) -> HttpApp:
        return self._app

    async def __del__(self) -> None:
        """Ray Serve awaits this once, after the last request of a replica that it stops."""
        await self._guard.end()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's controller hands to the autoscaling policy; Serve would begin a thread
        for a plain function."""
        return {P95: self._app.latencies.p95_ms}

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve a release, or a newer one that the history has.

        The first one must load, or the replica doesn't start. Later a release that doesn't load
        leaves the old one serving and is counted: Serve would stop a replica that raises here, and
        a bad release would end what a good one does.
        """
        from raypipe.runtime.worker.actor import ensure

        first = self._panel is None
        try:
            wanted = await asyncio.to_thread(self._newest, user_config)
            if self._panel is not None and self._panel.release == wanted:
                return
            panel = await self._load(wanted)
            if first:
                # Whoever starts the application need not have started the worker.
                await asyncio.to_thread(ensure, self._settings)
        except Exception as e:
            if first:
                raise
            self._metrics.release_refused()
            _log.error("the release is refused, the old one serves on: %s", e)
            return
        self._use(panel)
        if first:
            await self._guard.begin()
            gc.collect()
        # What is loaded now stays: no collection needs to walk it again within a request.
        gc.freeze()

    async def prepare(self, wanted: dict[str, Any]) -> dict[str, str] | None:
        """Load and check a release beside the one that serves; None, or why it can't be used."""
        from serving.release import read

        try:
            self._prepared = await self._load(read(wanted))
        except RaypipeError as e:
            return {"code": e.code, "detail": e.detail, "hint": e.hint}
        except Exception as e:  # noqa: BLE001 - whatever it is, whoever asked must hear of it
            _log.exception("a release can't be prepared")
            return {"code": RaypipeError.code, "detail": f"{type(e).__name__}: {e}", "hint": ""}
        return None

    async def forget(self) -> None:
        """Drop what was prepared: it will not be served."""
        self._prepared = None

    async def switch(self, wanted: dict[str, Any]) -> None:
        """Serve the prepared release from the next request on; nothing if that is another one."""
        from serving.release import read

        found = self._as_prepared(read(wanted))
        if found is not None:
            self._use(found)
            gc.freeze()

    async def serves(self) -> dict[str, Any]:
        """The release that serves now, as plain data."""
        if self._panel is None:
            raise ConfigError("no release is loaded yet", hint="Wait until /readyz answers 200.")
        return self._panel.release.describe()

    def _newest(self, user_config: dict[str, Any]) -> Release:
        """What to serve: a numbered release gives way to the history's current one.

        A config file that is deployed again brings the release of the day on which the application
        was built first; what was promoted since must stay. One without a number is taken as it is.
        """
        from serving.release import read
        from serving.releases import Releases

        given = read(user_config)
        if given.number == 0:
            return given
        current = Releases(self._settings.lake).current()
        return given if current is None or current.number <= given.number else current.release

    async def _load(self, wanted: Release) -> Panel:
        """In a thread: requests go on meanwhile."""
        from serving.panel import load_panel

        found = self._as_prepared(wanted)
        if found is not None:
            return found
        return await asyncio.to_thread(
            load_panel,
            self._settings.lake,
            self._project,
            wanted,
            self._options.policy.on_error,
            self._lists,
            table_bytes=self._settings.reasons_table_bytes,
        )

    def _as_prepared(self, wanted: Release) -> Panel | None:
        """The prepared panel, if it is of this release: it had no number yet."""
        panel = self._prepared
        if panel is None or panel.release != msgspec.structs.replace(
            wanted, number=panel.release.number
        ):
            return None
        return replace(panel, release=wanted)

    def _use(self, panel: Panel) -> None:
        """From the next request on; those that run end with what they began with."""
        from serving.decide import Decider

        self._app.decider = Decider(
            self._project.decision_event,
            self._validator,
            self._worker,
            panel.champion,
            SystemClock(),
            self._settings.decision_deadline_ms / 1000,
            self._profiles,
            self._guard.fallback,
            chooser=panel,
            onlookers=self._shadows,
        )
        self._app.release = panel.release.number
        self._experiments.release = panel.release
        self._metrics.loaded({judge.model: judge.scorer.ways for judge in panel.loaded})
        self._shadows.use(panel.shadows)
        self._panel, self._prepared = panel, None
