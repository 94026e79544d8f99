"""Rules of a Ray pod: its environment, its rights, its memory, its credentials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raypipe.runtime.launch.files import NODE_ENV, Variable
from raypipe.runtime.launch.node import Finding, Node

HOME = "/home/raypipe"
"""Home of the user of deploy/Dockerfile: what $HOME of node.env is in a container."""

PASSWORD, PASSWORD_FILE = "RAYPIPE_ONLINE_PASSWORD", "RAYPIPE_ONLINE_PASSWORD_FILE"
"""A pod has the first, from a secret, where a host has the second."""

TLS = f"{HOME}/.raypipe/tls"


def pod_findings(group: Node, environment: Sequence[Variable]) -> Iterator[Finding]:
    """A group of pods: head or workers."""
    pod = group.at("template", "spec")
    containers = pod["containers"].items()
    if not containers:
        yield pod["containers"].wrong("Ray's container", "The first container is Ray's.")
        return
    yield from _environment(containers[0], environment)
    yield from _rights(pod, containers)
    yield from _memory(containers[0])
    yield from _credentials(pod, containers[0])


def _environment(container: Node, environment: Sequence[Variable]) -> Iterator[Finding]:
    env = container["env"]
    expected = {
        v.name: v.value.replace("$HOME", HOME) for v in environment if v.name != PASSWORD_FILE
    }
    given = {item["name"].text: item["value"] for item in env.items()}
    password = next((item for item in env.items() if item["name"].value == PASSWORD), env)
    reference = password.at("valueFrom", "secretKeyRef")
    if not (reference["name"].text and reference["key"].text):
        yield password.wrong(
            f"{PASSWORD} by valueFrom.secretKeyRef",
            "Name the secret with the online_password of `raypipe cluster secrets`.",
            f"no {PASSWORD} from a secret",
        )
    for name, value in expected.items():
        if name not in given:
            yield env.wrong(
                f"{name}={value}", f"Head and workers need all of {NODE_ENV}.", f"no {name}"
            )
        elif given[name].value != value:
            yield given[name].wrong(
                f'"{value}" for {name}, as in {NODE_ENV}', "Change it there, for all nodes."
            )
    for name, node in given.items():
        if name not in (*expected, PASSWORD):
            yield node.wrong(
                f"the variables of {NODE_ENV} only",
                "Add it there, for all nodes.",
                f"{name or 'a variable without a name'} besides",
            )


def _rights(pod: Node, containers: list[Node]) -> Iterator[Finding]:
    context = pod["securityContext"]
    if context["runAsNonRoot"].value is not True:
        yield context["runAsNonRoot"].wrong("true", "The image has a user of its own.")
    if context["seccompProfile"]["type"].value != "RuntimeDefault":
        yield context["seccompProfile"]["type"].wrong("RuntimeDefault", "Ray needs no more calls.")
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod[name].value:
            yield pod[name].wrong("false", "A pod that shares the host's is not contained.")
    for container in containers:
        security = container["securityContext"]
        if security["allowPrivilegeEscalation"].value is not False:
            yield security["allowPrivilegeEscalation"].wrong("false", "No process needs it.")
        if security["privileged"].value:
            yield security["privileged"].wrong("false", "No process needs it.")
        if security["capabilities"]["drop"].value != ["ALL"]:
            yield security["capabilities"]["drop"].wrong("[ALL]", "No process needs one.")


def _memory(container: Node) -> Iterator[Finding]:
    """Ray takes the limit for the node's memory; a smaller request gets the pod evicted."""
    resources = container["resources"]
    request, limit = resources["requests"]["memory"], resources["limits"]["memory"]
    if request.value is None or request.value != limit.value:
        yield request.wrong(
            f"the limit, {limit.value}", "Ray plans with the limit; reserve as much."
        )


def _credentials(pod: Node, container: Node) -> Iterator[Finding]:
    mounts = {m["mountPath"].text: m["name"].text for m in container["volumeMounts"].items()}
    volumes = {v["name"].text: v for v in pod["volumes"].items()}
    secret = volumes.get(mounts.get(TLS, ""))
    if secret is None or not secret["secret"]["secretName"].text:
        yield container["volumeMounts"].wrong(
            f"a secret mounted at {TLS}", "It holds ca.crt, node.crt and node.key; never ca.key."
        )
