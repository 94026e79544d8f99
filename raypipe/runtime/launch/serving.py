"""Rules of the settings file of a cluster and of the config for ``serve deploy``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raypipe.runtime.launch.aws import POOL_LABEL
from raypipe.runtime.launch.node import Finding, Node

if TYPE_CHECKING:
    from pydantic import BaseModel

DECISIONS = "serving.app:app"
RECOMMENDATIONS = "serving.recommend.app:app"


def settings_findings(settings: Node) -> Iterator[Finding]:
    """What must hold for every cluster; single values are judged when a node reads them."""
    if settings["ray_address"].value != "auto":
        yield settings["ray_address"].wrong('"auto"', "Each node finds the cluster it belongs to.")
    if not settings["home"].text.startswith(("~/", "/")):
        yield settings["home"].wrong(
            "a path on each node's own disk", "A relative one lies beside this file."
        )
    if not settings["lake_url"].text.startswith("s3://"):
        yield settings["lake_url"].wrong(
            "s3://BUCKET/PREFIX", "All nodes share features, models and sweeps there."
        )
    if not settings["online_url"].text.startswith("rediss://"):
        yield settings["online_url"].wrong(
            "rediss://HOST:PORT/DB",
            "Replicas on all nodes read profiles from one Redis, and its password crosses the "
            "network.",
        )
    if not settings["tls_dir"].text:
        yield settings["tls_dir"].wrong(
            "the folder of the mounted certificates", "Replicas and log node talk across nodes."
        )


def serve_findings(serve: Node, settings: Node) -> Iterator[Finding]:
    """What Serve reads for itself must be what the settings say."""
    import pydantic

    with warnings.catch_warnings():
        # Ray warns its own developers of changes in pydantic.
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.serve.schema import (
            DeploymentSchema,
            HTTPOptionsSchema,
            RayActorOptionsSchema,
            ServeApplicationSchema,
            ServeDeploySchema,
        )

    try:
        ServeDeploySchema.model_validate(serve.value)
    except pydantic.ValidationError as e:
        for error in e.errors(include_url=False):
            place = "".join(f"/{step}" for step in error["loc"])
            yield Finding(
                serve.file, place or "/", str(error.get("input")), error["msg"], "Correct it."
            )
        return
    yield from _unknown(serve, ServeDeploySchema)
    yield from _unknown(serve["http_options"], HTTPOptionsSchema)
    for application in serve["applications"].items():
        yield from _unknown(application, ServeApplicationSchema)
        for deployment in application["deployments"].items():
            yield from _unknown(deployment, DeploymentSchema)
            yield from _unknown(deployment["ray_actor_options"], RayActorOptionsSchema)
    for name in ("host", "port"):
        node, wanted = serve["http_options"][name], settings[f"http_{name}"].value
        if node.value != wanted:
            yield node.wrong(f"{wanted}, http_{name} of the settings", "Make the two agree.")
    if serve["proxy_location"].value != "EveryNode":
        yield serve["proxy_location"].wrong("EveryNode", "Each serving node answers by itself.")
    yield from _application_findings(serve["applications"], settings)


def _application_findings(applications: Node, settings: Node) -> Iterator[Finding]:
    """Decisions first, and recommendations beside them or not."""
    found = applications.items()
    if [a["import_path"].value for a in found] not in ([DECISIONS], [DECISIONS, RECOMMENDATIONS]):
        yield applications.wrong(
            f"{DECISIONS}, then {RECOMMENDATIONS} or nothing", "As in the shipped file."
        )
        return
    deployments = found[0]["deployments"].items()
    options = deployments[0]["ray_actor_options"] if deployments else found[0]
    if options["label_selector"][POOL_LABEL].value != "serve":
        yield options["label_selector"][POOL_LABEL].wrong(
            "serve", "Replicas belong on nodes that stay."
        )
    if options["num_cpus"].value != settings["replica_cpus"].value:
        yield options["num_cpus"].wrong(
            f"{settings['replica_cpus'].value}, replica_cpus of the settings",
            "Make the two agree: this one wins.",
        )
    for recommender in found[1:]:
        if recommender["args"]["pool"].value != "serve":
            yield recommender["args"]["pool"].wrong("serve", "Replicas belong on nodes that stay.")
        for deployment in recommender["deployments"].items():
            if deployment["ray_actor_options"].value is not None:
                yield deployment["ray_actor_options"].wrong(
                    "no such options", "They would take replicas away from an embedded log."
                )


def _unknown(node: Node, schema: type[BaseModel]) -> Iterator[Finding]:
    """Ray drops an unknown name in silence."""
    for name, child in node.children():
        if name not in schema.model_fields:
            yield child.wrong(
                f"one of {', '.join(sorted(schema.model_fields))}",
                "Correct the name.",
                f"the unknown name {name!r}",
            )
