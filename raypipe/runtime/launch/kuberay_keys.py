"""Names that KubeRay's resources may have, at the levels that the shipped files use.

Kubernetes drops an unknown name in silence unless it is asked not to. From the definitions (CRDs)
of KubeRay 1.7.0, helm-chart/kuberay-operator/crds.
"""

from __future__ import annotations

from collections.abc import Iterator

from raypipe.runtime.launch.node import Finding, Node


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


RAY_SERVICE = _names(
    "deploymentUnhealthySecondThreshold excludeHeadPodFromServeSvc managedBy rayClusterConfig "
    "rayClusterDeletionDelaySeconds serveConfigV2 serveService serviceUnhealthySecondThreshold "
    "suspend upgradeStrategy"
)
RAY_JOB = _names(
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint "
    "entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata "
    "preRunningDeadlineSeconds rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes "
    "submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished"
)
RAY_CLUSTER = _names(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations historyServerOptions managedBy networkPolicy rayVersion suspend "
    "tlsOptions upgradeStrategy workerGroupSpecs"
)
HEAD = _names(
    "enableIngress headService ingressOptions labels rayStartParams resources serviceType template"
)
WORKER = _names(
    "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority "
    "rayStartParams replicas resources scaleStrategy suspend template"
)
POD = _names(
    "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy "
    "enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers "
    "hostname hostnameOverride imagePullSecrets initContainers nodeName nodeSelector os overhead "
    "preemptionPolicy priority priorityClassName readinessGates resourceClaims resources "
    "restartPolicy runtimeClassName schedulerName schedulingGates schedulingGroup securityContext "
    "serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain "
    "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes"
)
CONTAINER = _names(
    "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports "
    "readinessProbe resizePolicy resources restartPolicy restartPolicyRules securityContext "
    "startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy tty "
    "volumeDevices volumeMounts workingDir"
)

CLUSTER_OF = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
"""Kind -> the name below spec that holds the cluster."""


def unknown_names(resource: Node) -> Iterator[Finding]:
    """Names that KubeRay doesn't know, in a RayService or RayJob."""
    kind = resource["kind"].text
    spec = resource["spec"]
    cluster = spec[CLUSTER_OF[kind]]
    yield from _unknown(spec, RAY_SERVICE if kind == "RayService" else RAY_JOB)
    yield from _unknown(cluster, RAY_CLUSTER)
    yield from _unknown(cluster["headGroupSpec"], HEAD)
    for worker in cluster["workerGroupSpecs"].items():
        yield from _unknown(worker, WORKER)
    for group in groups(cluster):
        pod = group.at("template", "spec")
        yield from _unknown(pod, POD)
        for container in pod["containers"].items():
            yield from _unknown(container, CONTAINER)


def groups(cluster: Node) -> list[Node]:
    """The head's group, then the workers'."""
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"].items()]


def _unknown(node: Node, known: frozenset[str]) -> Iterator[Finding]:
    if not node.children():
        yield node.wrong("a mapping", "The shipped file is an example.")
    for name, child in node.children():
        if name not in known:
            yield child.wrong(
                f"one of {', '.join(sorted(known))}",
                "Correct the name: Kubernetes would drop it in silence.",
                f"the unknown name {name!r}",
            )
