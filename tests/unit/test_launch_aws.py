from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raypipe.errors import InputError, UsageError
from raypipe.runtime.launch.check import check
from tests.unit.launch_kit import CLUSTER, GONE, ROOT, checkout, edit, faults, put

HEAD = "available_node_types.head"
SERVE = "available_node_types.serve"
NET = f"{SERVE}.node_config.NetworkInterfaces"
DISK = "node_config.BlockDeviceMappings.0.Ebs"


def test_the_shipped_cluster_file_has_no_fault_and_names_what_is_to_be_filled_in() -> None:
    findings = check(ROOT / CLUSTER)
    assert {f.kind for f in findings} == {"placeholder"}
    assert {(f.file, f.place) for f in findings} == {
        ("cluster.yaml", "/metadata/network/0/SubnetId"),
        ("cluster.yaml", "/metadata/network/0/Groups/0"),
        ("deploy/cluster.toml", "/lake_url"),
        ("deploy/cluster.toml", "/online_url"),
    }


def test_a_filled_in_cluster_file_has_no_finding(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    for name in (CLUSTER, "deploy/cluster.toml"):
        file = root / name
        file.write_text(file.read_text().replace("CHANGE-ME", "0123456789abcdef0"))
    assert check(root / CLUSTER) == []


@pytest.mark.parametrize(
    ("path", "value", "place", "word"),
    [
        ("max_wrokers", 3, "/", "max_wrokers"),
        (f"{SERVE}.lables", {}, "/available_node_types/serve", "lables"),
        ("head_node_type", "haed", "/", "head_node_type"),
        ("max_workers", 1, "/", "max_workers"),
        ("max_workers", "many", "/max_workers", "many"),
        ("provider", GONE, "/provider", "a mapping with a type"),
        ("available_node_types", None, "/", "Ray can't read it"),
        ("provider.type", "gcp", "/provider/type", "gcp"),
        ("provider.region", "mars", "/provider/region", "mars"),
        ("provider.use_internal_ips", False, "/provider/use_internal_ips", "false"),
        ("provider.use_internal_ips", GONE, "/provider/use_internal_ips", "nothing"),
        ("provider.cache_stopped_nodes", False, "/provider/cache_stopped_nodes", "false"),
        (
            "provider.security_group",
            {"GroupName": "raypipe", "IpPermissions": []},
            "/provider/security_group",
            "port 22",
        ),
        (
            "metadata.rule",
            {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
            "/metadata/rule/IpRanges/0/CidrIp",
            "0.0.0.0/0",
        ),
        ("metadata.rule", {"CidrIpv6": "::/0"}, "/metadata/rule/CidrIpv6", "::/0"),
        (f"{NET}.0.Groups", GONE, "/serve/node_config/NetworkInterfaces/0/Groups", "port 22"),
        (f"{NET}.0.Groups", [], "/serve/node_config/NetworkInterfaces/0/Groups", "port 22"),
        (NET, GONE, "/serve/node_config/NetworkInterfaces", "AssociatePublicIpAddress"),
        (f"{NET}.0.AssociatePublicIpAddress", True, "/AssociatePublicIpAddress", "true"),
        (f"{NET}.0.AssociatePublicIpAddress", GONE, "/AssociatePublicIpAddress", "nothing"),
        (f"{SERVE}.{DISK}.Encrypted", False, "/serve/node_config/BlockDevice", "Encrypted"),
        (f"{SERVE}.{DISK}.Encrypted", GONE, "/serve/node_config/BlockDevice", "Encrypted"),
        (f"{SERVE}.{DISK}.VolumeType", "gp2", "/Ebs/VolumeType", "gp3"),
        (f"{SERVE}.node_config.BlockDeviceMappings", [], "/BlockDeviceMappings", "encrypted"),
        (f"{HEAD}.{DISK}.DeleteOnTermination", True, "/head/node_config/Block", "event log"),
        (f"{SERVE}.node_config.MetadataOptions.HttpTokens", "optional", "/HttpTokens", "required"),
        (f"{SERVE}.node_config.MetadataOptions", GONE, "/MetadataOptions/HttpTokens", "IMDSv1"),
        (f"{SERVE}.node_config.IamInstanceProfile", GONE, "/IamInstanceProfile", "lake"),
        (f"{HEAD}.node_config.ImageId", GONE, "/head/node_config/ImageId", "Ubuntu 18.04"),
        (
            f"{HEAD}.node_config.InstanceMarketOptions",
            {"MarketType": "spot"},
            "/head/node_config/InstanceMarketOptions",
            "event log",
        ),
        (
            f"{SERVE}.node_config.InstanceMarketOptions",
            {"MarketType": "spot"},
            "/serve/node_config/InstanceMarketOptions",
            "replicas",
        ),
        (f"{HEAD}.labels", {}, "/available_node_types", "no node type"),
        (f"{SERVE}.labels.raypipe~io/log", "true", "/available_node_types", "head, serve"),
        (f"{HEAD}.labels.raypipe~io/log", "yes", "/head/labels/raypipe.io~1log", '"true"'),
        (f"{SERVE}.labels.raypipe~io/pool", "srv", "/labels/raypipe.io~1pool", "srv"),
        (f"{HEAD}.resources.CPU", 4, "/head/resources/CPU", "4"),
        (f"{HEAD}.max_workers", 2, "/head/max_workers", "2"),
        (f"{SERVE}.node_config", None, "/available_node_types/serve/node_config", "None"),
        (f"{HEAD}.node_config.InstanceType", GONE, "/head/node_config/InstanceType", "m7i"),
        (f"{NET}.0.SubnetId", GONE, "/NetworkInterfaces/0/SubnetId", "private subnet"),
        (f"{SERVE}.node_config.SecurityGroupIds", ["sg-1"], "/SecurityGroupIds", "both places"),
        (f"{SERVE}.node_config.SubnetIds", ["subnet-1"], "/SubnetIds", "both places"),
        (f"{SERVE}.node_config.LaunchTemplate", {"LaunchTemplateName": "x"}, "Template", "seen"),
        (f"{SERVE}.worker_setup_commands", ["true"], "/serve/worker_setup_commands", "replace"),
        ("auth", {}, "/auth/ssh_user", "nothing"),
    ],
)
def test_a_fault_of_provider_or_node_type_is_named_with_its_place(
    tmp_path: Path, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, CLUSTER, path, value)
    found = faults(root, CLUSTER)
    assert [f for f in found if place in f.place and word in str(f)], "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("available_node_types", None),
        ("available_node_types", []),
        ("available_node_types.serve", "large"),
        ("provider", []),
        ("provider.region", 7),
        ("file_mounts", ["a"]),
        ("setup_commands", None),
        ("head_start_ray_commands", [None, 3]),
        (f"{NET}", {"0": None}),
        (f"{SERVE}.labels", ["x"]),
        ("auth", None),
    ],
)
def test_values_of_a_wrong_type_are_findings_not_crashes(
    tmp_path: Path, path: str, value: Any
) -> None:
    root = checkout(tmp_path)
    put(root, CLUSTER, path, value)
    assert faults(root, CLUSTER)


def test_what_an_alias_shares_is_found_once(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    file = root / CLUSTER
    file.write_text(
        file.read_text().replace("Groups: [sg-CHANGE-ME]", "Groups: [sg-CHANGE-ME, 0.0.0.0/0]")
    )
    assert [f.place for f in faults(root, CLUSTER)] == ["/metadata/network/0/Groups/1"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "holds no mapping"),
        ("- a\n- b\n", "holds no mapping"),
        ("provider: {type: aws\n", "is no YAML"),
        ("provider: {}\nprovider: {}\n", "came before"),
        ("a: &x [*x]\n", "is no YAML"),
        ("x: 1\n", "neither a cluster file nor"),
        ("provider: {}\n---\nprovider: {}\n", "neither a cluster file nor"),
        ("{[a]: 1}", "is no YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "is no YAML"),
        ("a: '" + "x" * 2**20 + "'", "at most 1,048,576"),
    ],
)
def test_a_file_that_is_no_launch_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    root = checkout(tmp_path)
    (root / CLUSTER).write_text(text)
    with pytest.raises(InputError, match=word):
        check(root / CLUSTER)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / CLUSTER).write_bytes(b"cluster_name: \xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        check(root / CLUSTER)


def test_a_missing_file_and_a_folder_without_checkout_are_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        check(ROOT / "nowhere.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / CLUSTER).write_text("provider: {type: aws}\n")
    with pytest.raises(UsageError, match=r"no deploy/node\.env"):
        check(tmp_path / CLUSTER)


@pytest.mark.parametrize(
    ("path", "value", "place", "word"),
    [
        ("setup_commands.0", "pip install 'ray[serve]==2.59.0'", "/setup_commands/0", "2.60.0"),
        ("setup_commands.0", "python3.9 -m venv x", "/setup_commands/0", "Python 3.9"),
        (
            "docker",
            {"image": "rayproject/ray:2.60.0-py39", "container_name": "r"},
            "/docker/image",
            "Python 3.9",
        ),
        (
            "docker",
            {"image": "rayproject/ray-ml:2.9.3-py311", "container_name": "r"},
            "/docker/image",
            "Ray 2.9.3",
        ),
    ],
)
def test_another_ray_or_python_than_the_lock_files_is_named(
    tmp_path: Path, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, CLUSTER, path, value)
    assert [f for f in faults(root, CLUSTER) if f.place == place and word in str(f)]


def test_nothing_of_the_cloud_is_imported(tmp_path: Path) -> None:
    import sys

    check(ROOT / CLUSTER)
    assert not {"boto3", "botocore"} & set(sys.modules)


def test_the_rules_hold_for_every_node_type(tmp_path: Path) -> None:
    """A type that is added later is checked too, whatever its name."""
    root = checkout(tmp_path)

    def change(found: list[Any]) -> None:
        types = found[0]["available_node_types"]
        types["gpu"] = {"resources": {}, "node_config": {"InstanceType": "g6.xlarge"}}

    edit(root, CLUSTER, change)
    places = {f.place.removeprefix("/available_node_types/gpu") for f in faults(root, CLUSTER)}
    assert places >= {
        "/labels/raypipe.io~1pool",
        "/node_config/NetworkInterfaces",
        "/node_config/BlockDeviceMappings",
        "/node_config/MetadataOptions/HttpTokens",
        "/node_config/IamInstanceProfile",
        "/node_config/ImageId",
    }


def test_the_shipped_file_is_plain_yaml_as_ray_reads_it() -> None:
    text = (ROOT / CLUSTER).read_text()
    assert yaml.safe_load(text)["cluster_name"] == "raypipe"
