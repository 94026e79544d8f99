"""Checks a launch file, and the files that it brings to the nodes, without a cloud."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from raypipe.errors import InputError
from raypipe.runtime.launch import aws, commands, files
from raypipe.runtime.launch.clear_text import placeholders_in, secrets_in
from raypipe.runtime.launch.kuberay import kuberay_findings
from raypipe.runtime.launch.kuberay_keys import CLUSTER_OF
from raypipe.runtime.launch.node import Finding, Node
from raypipe.runtime.launch.node_env import node_env_findings
from raypipe.runtime.launch.ray_schema import ray_findings
from raypipe.runtime.launch.serving import serve_findings, settings_findings
from raypipe.runtime.launch.versions import strange_versions


def check(file: Path) -> list[Finding]:
    """What is wrong in a cluster file for ``ray up``, or a file with a RayService or RayJob.

    Also read, from the checkout that the file belongs to: deploy/node.env, deploy/cluster.toml,
    deploy/serve.yaml, the lock file. Raises UsageError and InputError when one can't be read.
    """
    root = files.root_of(file)
    documents = files.documents(file, _name(file, root))
    environment = files.variables(root / files.NODE_ENV, files.NODE_ENV)
    secret = [f for document in documents for f in secrets_in(document)]
    found = list(_launch(documents, environment, root))
    for document in documents:
        found += strange_versions(document, root)
    found = [*(_quiet(f, secret) for f in found), *secret, *node_env_findings(environment)]
    found += _settings(root)
    for document in documents:
        found += placeholders_in(document)
    return found


def _quiet(finding: Finding, secret: list[Finding]) -> Finding:
    """The finding, without the value if that holds a secret."""
    if any(s.place == finding.place for s in secret):
        return dataclasses.replace(finding, found="(not shown: it holds a secret)")
    return finding


def _launch(
    documents: list[Node], environment: list[files.Variable], root: Path
) -> Iterator[Finding]:
    if any(d["kind"].text in CLUSTER_OF for d in documents):
        yield from kuberay_findings(documents, environment, root)
    elif len(documents) == 1 and documents[0].value.keys() & {"provider", "available_node_types"}:
        cluster = documents[0]
        yield from ray_findings(cluster)
        yield from aws.provider_findings(cluster)
        if cluster["provider"]["type"].value == "aws":
            yield from aws.node_type_findings(cluster)
        yield from commands.mount_findings(cluster)
        yield from commands.setup_findings(cluster)
        yield from commands.start_findings(cluster)
    else:
        raise InputError(
            f"{documents[0].file} is neither a cluster file nor a KubeRay resource",
            hint="A cluster file has a provider; a resource has the kind RayService or RayJob.",
        )


def _settings(root: Path) -> Iterator[Finding]:
    settings = files.table(root / files.SETTINGS, files.SETTINGS)
    serve = files.documents(root / files.SERVE, files.SERVE)[0]
    yield from settings_findings(settings)
    yield from serve_findings(serve, settings)
    yield from secrets_in(settings)
    yield from placeholders_in(settings)


def _name(file: Path, root: Path) -> str:
    path = file.absolute()
    return str(path.relative_to(root) if path.is_relative_to(root) else file)
