"""Rules of a RayService or RayJob, and of what Kubernetes needs beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from raypipe.runtime.launch.aws import POOL_LABEL, POOLS
from raypipe.runtime.launch.files import LOCK, SERVE, Variable, read
from raypipe.runtime.launch.kuberay_keys import CLUSTER_OF, groups, unknown_names
from raypipe.runtime.launch.node import Finding, Node
from raypipe.runtime.launch.pods import pod_findings
from raypipe.runtime.launch.versions import locked_ray
from raypipe.runtime.placement import LOG_LABEL

OPEN_SERVICES = ("LoadBalancer", "NodePort")


def kuberay_findings(
    resources: Sequence[Node], environment: Sequence[Variable], root: Path
) -> Iterator[Finding]:
    """Everything in one file: its Ray resources and those beside them."""
    kinds = [r["kind"].text for r in resources]
    for resource in resources:
        if resource["kind"].text not in CLUSTER_OF:
            yield from _beside(resource)
            continue
        yield from unknown_names(resource)
        if resource["apiVersion"].value != "ray.io/v1":
            yield resource["apiVersion"].wrong("ray.io/v1", "The version that KubeRay stores.")
        yield from _cluster(resource, environment, root)
        if resource["kind"].text == "RayService":
            yield from _service(resource, root)
            if "NetworkPolicy" not in kinds:
                yield resources[0].wrong(
                    "a NetworkPolicy in the same file",
                    "KubeRay lets the dashboard and Ray's ports listen on all addresses of a pod.",
                    "no NetworkPolicy",
                )


def _cluster(resource: Node, environment: Sequence[Variable], root: Path) -> Iterator[Finding]:
    cluster = resource["spec"][CLUSTER_OF[resource["kind"].text]]
    locked = locked_ray(root)
    if cluster["rayVersion"].value != locked:
        yield cluster["rayVersion"].wrong(f'"{locked}", as in {LOCK}', "Name the locked version.")
    auth = cluster["authOptions"]
    if auth["mode"].value != "token":
        yield auth["mode"].wrong("token", "Without it whoever reaches Ray runs code.")
    if not auth["secretName"].text:
        yield auth["secretName"].wrong(
            "the secret with the auth_token of `raypipe cluster secrets`",
            "Else the operator makes one per cluster, which clients don't know.",
        )
    head = cluster["headGroupSpec"]
    for exposed, allowed in (
        ("enableIngress", (None, False)),
        ("serviceType", (None, "ClusterIP")),
    ):
        if head[exposed].value not in allowed:
            yield head[exposed].wrong(
                f"no {exposed}", "The dashboard stays inside; use `kubectl port-forward`."
            )
    kind = head.at("headService", "spec", "type")
    if kind.value in OPEN_SERVICES:
        yield kind.wrong("ClusterIP", "The dashboard stays inside; use `kubectl port-forward`.")
    for group in groups(cluster):
        yield from pod_findings(group, environment)
    yield from _placement(resource, cluster)


def _placement(resource: Node, cluster: Node) -> Iterator[Finding]:
    """A service's head is the log node; a job has none."""
    head = cluster["headGroupSpec"]
    service = resource["kind"].text == "RayService"
    label = head["labels"][LOG_LABEL]
    if service and label.value != "true":
        yield label.wrong('"true"', "The worker that owns the event log is placed by it.")
    if not service and label.value is not None:
        yield label.wrong("no such label", "The event log belongs to the service's head alone.")
    if head["resources"]["CPU"].value != "0":
        yield head["resources"]["CPU"].wrong('"0"', "No task may run beside the event log.")
    for group in cluster["workerGroupSpecs"].items():
        if group["labels"][LOG_LABEL].value is not None:
            yield group["labels"][LOG_LABEL].wrong("no such label", "Only one node has the log.")
        if group["labels"][POOL_LABEL].value not in POOLS:
            yield group["labels"][POOL_LABEL].wrong(
                " or ".join(POOLS), "Replicas and batches are placed by this label."
            )


def _service(resource: Node, root: Path) -> Iterator[Finding]:
    spec = resource["spec"]
    if spec["upgradeStrategy"]["type"].value != "None":
        yield spec["upgradeStrategy"]["type"].wrong(
            '"None"',
            "A second cluster beside the first would wait for the one volume of the event log.",
        )
    text, shipped = spec["serveConfigV2"], yaml.safe_load(read(root / SERVE))
    try:
        given = yaml.safe_load(text.text)
    except yaml.YAMLError as e:
        given = None
        yield text.wrong("YAML", "Copy deploy/serve.yaml.", str(e))
    if given != shipped:
        yield text.wrong(f"what {SERVE} says", f"Copy {SERVE}, or change it there too.")
    if spec["excludeHeadPodFromServeSvc"].value is not True:
        yield spec["excludeHeadPodFromServeSvc"].wrong("true", "Requests go to the replicas' pods.")
    pod = spec.at("rayClusterConfig", "headGroupSpec", "template", "spec")
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"].items()]
    if not any(claim.text for claim in claims):
        yield pod["volumes"].wrong(
            "a persistentVolumeClaim", "The event log must outlive the head's pod."
        )


def _beside(resource: Node) -> Iterator[Finding]:
    kind = resource["kind"].text
    if kind == "StorageClass" and resource["parameters"]["encrypted"].value != "true":
        yield resource["parameters"]["encrypted"].wrong('"true"', "The event log lies on it.")
    if kind == "StorageClass" and resource["reclaimPolicy"].value != "Retain":
        yield resource["reclaimPolicy"].wrong("Retain", "Deleting the claim must not end the log.")
    if kind == "PersistentVolumeClaim" and not resource["spec"]["storageClassName"].text:
        yield resource["spec"]["storageClassName"].wrong(
            "an encrypted storage class", "The default class may not encrypt."
        )
    if kind == "Secret":
        yield resource.wrong(
            "no Secret in the file", "Make it by `kubectl create secret`.", "a Secret"
        )
    if kind == "Ingress" or resource["spec"]["type"].value in OPEN_SERVICES:
        yield resource.wrong(
            "nothing that opens the cluster",
            "Publish port 8000 by a gateway of your own, with TLS.",
            f"{kind} {resource['spec']['type'].text}".strip(),
        )
    if kind == "NetworkPolicy":
        yield from _policy(resource)


def _policy(resource: Node) -> Iterator[Finding]:
    spec = resource["spec"]
    if "Ingress" not in [t.value for t in spec["policyTypes"].items()]:
        yield spec["policyTypes"].wrong("Ingress", "Else it closes nothing.")
    for rule in spec["ingress"].items():
        sources = rule["from"].items()
        if not sources:
            yield rule["from"].wrong("who may come in", "A rule without `from` admits everybody.")
        for source in sources:
            if re.fullmatch(r"0\.0\.0\.0/0|::/0", source["ipBlock"]["cidr"].text):
                yield source["ipBlock"]["cidr"].wrong("your own network", "Narrow it.")
