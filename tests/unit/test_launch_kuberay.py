from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raypipe.runtime.launch.check import check
from tests.unit.launch_kit import GONE, JOB, ROOT, SERVICE, checkout, documents, faults, put

CLUSTER = "spec.rayClusterConfig"
HEAD = f"{CLUSTER}.headGroupSpec"
WORKER = f"{CLUSTER}.workerGroupSpecs.0"
POD = "template.spec"
BOX = f"{POD}.containers.0"
STORAGE, CLAIM, POLICY = 0, 1, 3


@pytest.mark.parametrize("name", [SERVICE, JOB])
def test_the_shipped_resources_have_no_fault_and_name_what_is_to_be_filled_in(name: str) -> None:
    findings = check(ROOT / name)
    assert {f.kind for f in findings} == {"placeholder"}
    assert {f.place.rpartition("/")[2] for f in findings} == {"image", "lake_url", "online_url"}


@pytest.mark.parametrize(
    ("path", "value", "place", "word"),
    [
        ("apiVersion", "ray.io/v1alpha1", "/apiVersion", "ray.io/v1"),
        ("spec.serveConfig", "x", "/spec/serveConfig", "the unknown name"),
        (f"{CLUSTER}.rayVersoin", "2", "/rayVersoin", "the unknown name"),
        (f"{HEAD}.label", {}, "/headGroupSpec/label", "the unknown name"),
        (f"{WORKER}.minReplica", 1, "/workerGroupSpecs/0/minReplica", "the unknown name"),
        (f"{WORKER}.{POD}.container", [], "/template/spec/container", "the unknown name"),
        (f"{HEAD}.{BOX}.envs", [], "/containers/0/envs", "the unknown name"),
        (CLUSTER, None, "/spec/rayClusterConfig", "a mapping"),
        (f"{CLUSTER}.rayVersion", "2.59.0", "/rayVersion", "2.60.0"),
        (f"{HEAD}.{BOX}.image", "x/raypipe:1-ray2.59.0-py311", "/containers/0/image", "Ray 2.59.0"),
        (f"{HEAD}.{BOX}.image", "x/raypipe:1-ray2.60.0-py310", "/0/image", "Python 3.10"),
        (f"{CLUSTER}.authOptions.mode", "disabled", "/authOptions/mode", "token"),
        (f"{CLUSTER}.authOptions", GONE, "/authOptions/mode", "token"),
        (f"{CLUSTER}.authOptions.secretName", GONE, "/authOptions/secretName", "auth_token"),
        (f"{HEAD}.enableIngress", True, "/headGroupSpec/enableIngress", "port-forward"),
        (f"{HEAD}.serviceType", "LoadBalancer", "/headGroupSpec/serviceType", "port-forward"),
        (
            f"{HEAD}.headService",
            {"spec": {"type": "NodePort"}},
            "/headService/spec/type",
            "port-forward",
        ),
        (f"{HEAD}.labels", GONE, "/headGroupSpec/labels/raypipe.io~1log", "true"),
        (f"{WORKER}.labels.raypipe~io/log", "true", "/0/labels/raypipe.io~1log", "Only one"),
        (f"{WORKER}.labels.raypipe~io/pool", "x", "/0/labels/raypipe.io~1pool", "serve or batch"),
        (f"{HEAD}.resources.CPU", "4", "/headGroupSpec/resources/CPU", "beside the event log"),
        ("spec.upgradeStrategy.type", "NewCluster", "/spec/upgradeStrategy/type", "one volume"),
        ("spec.upgradeStrategy", GONE, "/spec/upgradeStrategy/type", "one volume"),
        ("spec.excludeHeadPodFromServeSvc", False, "/excludeHeadPodFromServeSvc", "true"),
        ("spec.serveConfigV2", "applications: []", "/spec/serveConfigV2", "deploy/serve.yaml"),
        ("spec.serveConfigV2", "{", "/spec/serveConfigV2", "YAML"),
        (f"{HEAD}.{POD}.volumes.0", {"name": "home", "emptyDir": {}}, "/volumes", "outlive"),
        (f"{WORKER}.{BOX}.env.0.value", "disabled", "/0/env/0/value", "RAY_AUTH_MODE"),
        (f"{WORKER}.{BOX}.env", [], "/containers/0/env", "no RAY_AUTH_MODE"),
        (f"{HEAD}.{BOX}.env.3", GONE, "/containers/0/env", "no RAY_health_check_period_ms"),
        (f"{HEAD}.{BOX}.env.0", {"name": "A", "value": "b"}, "/env/0/value", "A besides"),
        (
            f"{WORKER}.{BOX}.env.0",
            {"name": "RAY_AUTH_TOKEN", "value": "hunter2"},
            "/env/0/value",
            "a secret in clear",
        ),
        (f"{WORKER}.{BOX}.env.18", GONE, "/containers/0/env", "no RAYPIPE_ONLINE_PASSWORD from"),
        (
            f"{WORKER}.{BOX}.env.18",
            {"name": "RAYPIPE_ONLINE_PASSWORD", "value": "hunter2"},
            "/env/18",
            "no RAYPIPE_ONLINE_PASSWORD from a secret",
        ),
        (
            f"{HEAD}.{BOX}.env.18",
            {"name": "RAYPIPE_ONLINE_PASSWORD", "value": "hunter2"},
            "/env/18/value",
            "a secret in clear",
        ),
        (
            f"{HEAD}.{BOX}.env.18.valueFrom",
            {"configMapKeyRef": {"name": "x", "key": "y"}},
            "/env/18",
            "by valueFrom.secretKeyRef",
        ),
        (
            f"{HEAD}.{BOX}.env.18.valueFrom.secretKeyRef",
            {"key": "online_password"},
            "/env/18",
            "by valueFrom.secretKeyRef",
        ),
        (
            f"{HEAD}.{BOX}.env.0",
            {"name": "RAYPIPE_ONLINE_PASSWORD_FILE", "value": "/x"},
            "/env/0/value",
            "RAYPIPE_ONLINE_PASSWORD_FILE besides",
        ),
        (f"{HEAD}.{POD}.securityContext.runAsNonRoot", False, "/runAsNonRoot", "true"),
        (f"{WORKER}.{POD}.securityContext", GONE, "/seccompProfile/type", "RuntimeDefault"),
        (f"{HEAD}.{POD}.hostNetwork", True, "/spec/hostNetwork", "false"),
        (
            f"{HEAD}.{BOX}.securityContext.allowPrivilegeEscalation",
            True,
            "/allowPrivilegeEscalation",
            "false",
        ),
        (f"{HEAD}.{BOX}.securityContext.privileged", True, "/privileged", "false"),
        (f"{WORKER}.{BOX}.securityContext", GONE, "/capabilities/drop", "ALL"),
        (f"{WORKER}.{BOX}.resources.requests.memory", "1Gi", "/requests/memory", "32Gi"),
        (f"{WORKER}.{BOX}.resources", GONE, "/requests/memory", "the limit"),
        (f"{WORKER}.{BOX}.volumeMounts.1", GONE, "/volumeMounts", "node.key"),
        (f"{WORKER}.{POD}.containers", [], "/template/spec/containers", "Ray's container"),
    ],
)
def test_a_fault_of_a_service_is_named_with_its_place(
    tmp_path: Path, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, SERVICE, path, value)
    found = faults(root, SERVICE)
    assert [f for f in found if f.place.endswith(place) and word in str(f)], "\n".join(
        map(str, found)
    )
    assert not [f for f in found if "hunter2" in str(f)]


@pytest.mark.parametrize(
    ("document", "path", "value", "place", "word"),
    [
        (STORAGE, "parameters.encrypted", "false", "/parameters/encrypted", "event log"),
        (STORAGE, "parameters", GONE, "/parameters/encrypted", "event log"),
        (STORAGE, "reclaimPolicy", "Delete", "/reclaimPolicy", "Retain"),
        (CLAIM, "spec.storageClassName", GONE, "/spec/storageClassName", "encrypted"),
        (CLAIM, "kind", "Secret", "/", "no Secret in the file"),
        (CLAIM, "kind", "Ingress", "/", "opens the cluster"),
        (CLAIM, "spec.type", "LoadBalancer", "/", "opens the cluster"),
        (POLICY, "kind", "ConfigMap", "/", "no NetworkPolicy"),
        (POLICY, "spec.policyTypes", ["Egress"], "/spec/policyTypes", "closes nothing"),
        (POLICY, "spec.ingress.0", {}, "/spec/ingress/0/from", "admits everybody"),
        (
            POLICY,
            "spec.ingress.0.from.0",
            {"ipBlock": {"cidr": "0.0.0.0/0"}},
            "/from/0/ipBlock/cidr",
            "Narrow it",
        ),
    ],
)
def test_a_fault_beside_the_service_is_named(
    tmp_path: Path, document: int, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, SERVICE, path, value, document)
    assert [f for f in faults(root, SERVICE) if f.place.endswith(place) and word in str(f)]


@pytest.mark.parametrize(
    ("path", "value", "place", "word"),
    [
        ("spec.entrypiont", "python", "/spec/entrypiont", "the unknown name"),
        (
            "spec.rayClusterSpec.headGroupSpec.labels",
            {"raypipe.io/log": "true"},
            "/headGroupSpec/labels/raypipe.io~1log",
            "the service's head",
        ),
        ("spec.rayClusterSpec.rayVersion", "2.9.0", "/rayVersion", "2.60.0"),
        (
            f"spec.rayClusterSpec.workerGroupSpecs.0.{BOX}.env.9.value",
            "0",
            "/env/9/value",
            "RAY_DATA_DISABLE_PROGRESS_BARS",
        ),
    ],
)
def test_a_fault_of_a_job_is_named_with_its_place(
    tmp_path: Path, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, JOB, path, value)
    assert [f for f in faults(root, JOB) if f.place.endswith(place) and word in str(f)]


def test_a_variable_new_in_node_env_is_missed_in_head_and_workers(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    with (root / "deploy/node.env").open("a") as stream:
        stream.write("RAY_new=1\n")
    places = [f.place for f in faults(root, SERVICE) if "no RAY_new" in f.found]
    assert len(places) == 2
    assert "headGroupSpec" in places[0]
    assert "workerGroupSpecs" in places[1]


def test_the_image_has_a_user_whose_home_the_pods_name() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    pod = documents(ROOT, SERVICE)[-1]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    user = pod["spec"]["securityContext"]["runAsUser"]
    assert f"--uid {user} raypipe" in dockerfile
    assert f"USER {user}" in dockerfile
    assert "WORKDIR /home/raypipe/raypipe" in dockerfile


@pytest.mark.parametrize("name", [SERVICE, JOB])
def test_a_file_is_read_by_kubernetes_too(name: str) -> None:
    """An alias, unlike an anchor's redefinition, means the same to every reader of YAML."""
    for document in yaml.safe_load_all((ROOT / name).read_text()):
        assert document["apiVersion"]
        assert document["metadata"].get("name") or document["metadata"]["generateName"]
