"""The Serve application, composed: `serve run serving.app:app home=.raypipe`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ray.serve import Application, Deployment

    from raypipe.config import Settings

APPLICATION = "raypipe"
DEPLOYMENT = "decisions"


def app(args: dict[str, str]) -> Application:
    """Build the application from settings: raypipe.toml, then RAYPIPE_*, then ``args``.

    Args:
        args: settings by name, and besides them ``config`` (a settings file), ``options`` (as the
            setting serving_options). ``model`` (by default the project's first) or ``version``
            (by default the model's current one) serve that version instead of the current release.

    Raises ConfigError for an unknown or wrong setting, NotFound when there is no such model.
    """
    from raypipe.config import load_settings

    flags = dict(args)
    config, options = flags.pop("config", None), flags.pop("options", None)
    model, version = flags.pop("model", None), flags.pop("version", None)
    settings = load_settings(flags, Path(config) if config else None)
    return build(settings, model, version, Path(options) if options else None)


def build(
    settings: Settings,
    model: str | None = None,
    version: str | None = None,
    options_file: Path | None = None,
) -> Application:
    """The application for settings that are read already; see ``app``."""
    with unwarned():
        from ray import serve

    from raypipe.project import load_project
    from serving.options import deployment_options, load_options
    from serving.release import Release
    from serving.releases import first_or_current
    from serving.replica import Replica
    from training import registry

    options = load_options(options_file or settings.serving_options)
    name = model or load_project(settings.project).models[0].name
    # Resolved here, so that all replicas, also later ones, serve the same versions.
    if model is None and version is None:
        release = first_or_current(settings, name).release
    else:
        place = registry.locate(settings.lake / "models", name, version)
        release = Release(champion=f"{name}@{place.name}")
    with unwarned():
        deployment = cast(
            "Deployment",
            serve.deployment(
                serve.ingress()(Replica),
                name=DEPLOYMENT,
                user_config=release.describe(),
                **deployment_options(settings, options),
            ),
        )
    return deployment.bind(settings, options)


@contextmanager
def unwarned() -> Iterator[None]:
    """Hide what Ray warns its own developers of: pydantic's changes in its configuration, and
    metrics_interval_s, whose successor its validation does not know yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def start(settings: Settings) -> None:
    """Serve at the settings' host and port, in the running Ray session; returns when ready.

    Called again, it replaces the replicas one by one and keeps serving: Ray Serve takes every
    ``serve.run`` for new code. ``serving.rollout`` changes the release inside running replicas.
    """
    from ray import serve

    application = build(settings)
    start_http(settings)
    serve.run(application, name=APPLICATION, route_prefix="/")


def start_http(settings: Settings) -> None:
    """Have Serve take HTTP at the settings' host and port; nothing where it does already."""
    import logging

    from ray import serve
    from ray.serve.config import HTTPOptions

    from raypipe.runtime import session

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # callers report in their own words
    serve.start(
        # Of a cluster every node with a replica answers, so that none stands before the others.
        proxy_location="HeadOnly" if settings.ray_address is None else "EveryNode",
        http_options=HTTPOptions(host=session.bind_host(settings), port=settings.http_port),
    )
