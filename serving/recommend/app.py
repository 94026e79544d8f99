"""The recommender as a Serve application of its own, beside decisions in the same session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import features
from serving.recommend.http import PREFIX
from serving.recommend.reading import read_selection
from serving.recommend.versions import APPLICATION, DEPLOYMENT, require_current

if TYPE_CHECKING:
    from ray.serve import Application, Deployment

    from raypipe.config import Settings

SELECTION = Path(features.__file__).parent / "selections" / "commerce.yaml"
"""How lists are made where the options name no other file."""


def app(args: dict[str, str]) -> Application:
    """Build the application from settings, as serving.app.app does; for Serve's config files."""
    from raypipe.config import load_settings

    flags = dict(args)
    config, options = flags.pop("config", None), flags.pop("options", None)
    settings = load_settings(flags, Path(config) if config else None)
    return build(settings, Path(options) if options else None)


def build(settings: Settings, options_file: Path | None = None) -> Application:
    """The application for settings that are read already.

    Raises NotFound when nothing was fitted, ConfigError for wrong options or a cluster on which no
    node has the embedded log, DeclarationError for a wrong selection.
    """
    from serving.app import unwarned

    with unwarned():
        from ray import serve

    from raypipe.runtime import placement
    from serving.options import deployment_options, load_options
    from serving.recommend.replica import RecommendReplica

    options = load_options(options_file or settings.serving_options)
    told = deployment_options(settings, options)
    if settings.log_url.startswith("sqlite:"):
        # Replicas follow the log, and the embedded one is a folder of one node.
        told["ray_actor_options"] |= placement.worker_options(settings)
    with unwarned():
        deployment = cast(
            "Deployment",
            serve.deployment(
                serve.ingress()(RecommendReplica),
                name=DEPLOYMENT,
                user_config={"version": require_current(settings.lake)},
                **told,
            ),
        )
    selection = read_selection(Path(options.recommend.selection or SELECTION))
    return deployment.bind(settings, options, selection)


def start(settings: Settings) -> str:
    """Serve in the running Ray session beside what it serves; the version, when it is ready."""
    from ray import serve

    from serving.app import start_http

    application = build(settings)
    start_http(settings)
    serve.run(application, name=APPLICATION, route_prefix=PREFIX)
    return require_current(settings.lake)
