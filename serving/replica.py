"""One Serve replica: holds a model and a connection to the worker, and no other state."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

from raypipe.clock import SystemClock
from raypipe.errors import ConfigError
from serving.autoscaling import P95
from serving.http import HttpApp

if TYPE_CHECKING:
    from raypipe.config import Settings
    from serving.options import Options


class Replica:
    """The class that Ray Serve deploys; ``user_config`` names the model version.

    Ray Serve calls ``__init__``, then ``__serve_build_asgi_app__``, then ``reconfigure``, before
    the first request; ``reconfigure`` again when another version is deployed, without a restart.
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
        from serving.credentials import Credentials
        from serving.docs import render
        from serving.events import Events
        from serving.explain import Explainer
        from serving.guard import Guard
        from serving.key_values import KeyValues, OnlineStore
        from serving.metrics import Metrics
        from serving.openapi import document
        from serving.profiles import OnlineProfiles
        from serving.scoring import feature_names
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
            reader = ProfileReader(self._project, settings.home, settings.online_url)
            self._profiles = OnlineProfiles(reader, settings.tenant)
        models = settings.lake / "models"
        replica = serve.get_replica_context().replica_id.unique_id
        self._metrics = metrics = Metrics(replica)
        keys = Credentials(self._worker)
        stored = OnlineStore(self._project, settings.home, settings.online_url)
        self._guard = Guard(settings, options, self._project, self._worker, stored, keys, metrics)
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

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's controller hands to the autoscaling policy."""
        return {P95: self._app.latencies.p95_ms}

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Exchange the model for ``{"model": name, "version": version}``.

        A version that can't be loaded raises, and Serve keeps the old one.
        """
        from raypipe.runtime.worker.actor import ensure
        from serving.decide import Decider
        from serving.scoring import load_judge

        if user_config.keys() != {"model", "version"}:
            raise ConfigError(
                f"user_config has {sorted(user_config)}", hint="It needs model and version."
            )
        # Loading takes a second; requests go on meanwhile, with the model before.
        judge = await asyncio.to_thread(
            load_judge,
            self._settings.lake / "models",
            self._project,
            user_config["model"],
            user_config["version"],
            self._options.policy.on_error,
            table_bytes=self._settings.reasons_table_bytes,
        )
        # Whoever starts the application need not have started the worker; there is only one.
        await asyncio.to_thread(ensure, self._settings)
        self._app.decider = Decider(
            self._project.decision_event,
            self._validator,
            self._worker,
            judge,
            SystemClock(),
            self._settings.decision_deadline_ms / 1000,
            self._profiles,
            self._guard.fallback,
        )
        self._metrics.loaded({judge.model: judge.scorer.ways})
        self._guard.begin()
        # What is loaded now stays: no collection needs to walk it again within a request.
        gc.collect()
        gc.freeze()
