"""The recommender as a Serve application of its own, beside decisions in the same session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import features
from serving.recommend.http import PREFIX
from serving.recommend.reading import read_selection
from serving.recommend.versions import APPLICATION, DEPLOYMENT, current, require_current

if TYPE_CHECKING:
    from ray.serve import Application, Deployment

    from raypipe.config import Settings

SELECTION = Path(features.__file__).parent / "selections" / "commerce.yaml"
"""How lists are made where the options name no other file."""


def app(args: dict[str, str]) -> Application:
    """Build the application from settings, as serving.app.app does; for Serve's config files.

    Args:
        args: as there, and ``pool``: the nodes on which replicas run that need no log of a node.

    It starts without a version too, and answers 503 until one is fitted.
    """
    from raypipe.config import load_settings

    flags = dict(args)
    config, options = flags.pop("config", None), flags.pop("options", None)
    pool = flags.pop("pool", None)
    settings = load_settings(flags, Path(config) if config else None)
    return build(settings, current(settings.lake), Path(options) if options else None, pool=pool)


def build(
    settings: Settings,
    version: str | None,
    options_file: Path | None = None,
    *,
    pool: str | None = None,
) -> Application:
    """The application for settings that are read already; see ``app``.

    Without a ``version`` replicas wait for the lake's first one. Raises ConfigError for wrong
    options or a cluster on which no node has the embedded log, DeclarationError for a wrong
    selection.
    """
    from serving.app import unwarned

    with unwarned():
        from ray import serve

    from serving.options import deployment_options, load_options
    from serving.recommend.replica import RecommendReplica

    options = load_options(options_file or settings.serving_options)
    told = deployment_options(settings, options)
    told["ray_actor_options"] |= _placed(settings, pool)
    with unwarned():
        deployment = cast(
            "Deployment",
            serve.deployment(
                serve.ingress()(RecommendReplica),
                name=DEPLOYMENT,
                user_config={"version": version},
                **told,
            ),
        )
    selection = read_selection(Path(options.recommend.selection or SELECTION))
    return deployment.bind(settings, options, selection)


def _placed(settings: Settings, pool: str | None) -> dict[str, Any]:
    """Options of a replica's actor that keep it where it can follow the log.

    The embedded log is a folder of one node, and on a cluster that node offers no CPUs to anybody:
    what belongs beside the log asks for none.
    """
    from raypipe.runtime import placement
    from raypipe.runtime.launch.aws import POOL_LABEL

    if settings.log_url.startswith("sqlite:"):
        beside = placement.worker_options(settings)
        return {"num_cpus": 0, **beside} if beside else {}
    return {} if pool is None else {"label_selector": {POOL_LABEL: pool}}


def start(settings: Settings) -> str:
    """Serve in the running Ray session beside what it serves; the version, when it is ready.

    Raises NotFound when nothing was fitted, and as ``build``.
    """
    from ray import serve

    from serving.app import start_http

    version = require_current(settings.lake)
    application = build(settings, version)
    start_http(settings)
    serve.run(application, name=APPLICATION, route_prefix=PREFIX)
    return version
