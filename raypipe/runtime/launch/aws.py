"""Rules of the provider and the node types of a cluster on AWS.

Ray's schema sees nothing of a ``node_config``. What Ray does with it, and what it adds when
something is missing, is in ray/autoscaler/_private/aws/config.py and node_provider.py (2.60).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raypipe.runtime.launch.node import Finding, Node
from raypipe.runtime.placement import LOG_LABEL

POOL_LABEL = "raypipe.io/pool"
POOLS = ("serve", "batch")

REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d{1,2}")
ANYWHERE = ("0.0.0.0/0", "::/0")


def provider_findings(cluster: Node) -> Iterator[Finding]:
    """Region, addresses, security group, and what becomes of stopped nodes."""
    provider = cluster["provider"]
    if provider["type"].value != "aws":
        yield provider["type"].wrong(
            "aws", "Only AWS is checked here; Ray's other providers have other rules."
        )
        return
    if not REGION.fullmatch(provider["region"].text):
        yield provider["region"].wrong(
            "a region such as eu-west-1", "`raypipe cluster render --region R` writes it."
        )
    if provider["use_internal_ips"].value is not True:
        yield provider["use_internal_ips"].wrong(
            "true", "Reach the nodes from inside the VPC, not by public addresses."
        )
    if provider["cache_stopped_nodes"].value is not True:
        yield provider["cache_stopped_nodes"].wrong(
            "true", "Else `ray down` terminates the log node instead of stopping it."
        )
    if provider["security_group"].value is not None:
        yield provider["security_group"].wrong(
            "no security_group here",
            "Ray opens port 22 to 0.0.0.0/0 in a group that it makes; "
            "name an existing one under NetworkInterfaces/Groups.",
        )
    for _, leaf in cluster.leaves():
        if leaf.text in ANYWHERE:
            yield leaf.wrong(
                "addresses of your own network", "Admit the VPC's range or a security group only."
            )


def node_type_findings(cluster: Node) -> Iterator[Finding]:
    """Each node type by itself, then all together: one log node, which is the head."""
    head = cluster["head_node_type"].text
    logs = []
    for name, node_type in cluster["available_node_types"].children():
        config = node_type["node_config"]
        yield from _network(config)
        yield from _disks(config, log=name == head)
        yield from _instance(config)
        yield from _market(node_type, head=name == head)
        if node_type["labels"][LOG_LABEL].value is not None:
            logs.append(name)
        if name != head and node_type["labels"][POOL_LABEL].value not in POOLS:
            yield node_type["labels"][POOL_LABEL].wrong(
                " or ".join(POOLS), "Replicas and batches are placed by this label."
            )
    yield from _log_node(cluster, head, logs)


def _network(config: Node) -> Iterator[Finding]:
    interfaces = config["NetworkInterfaces"]
    for name in ("SubnetId", "SubnetIds", "SecurityGroupIds"):
        if config[name].value is not None:
            yield config[name].wrong(
                f"no {name} here", "Name it under NetworkInterfaces; Ray refuses it in both places."
            )
    if not interfaces.items():
        yield interfaces.wrong(
            "an interface with SubnetId, Groups and AssociatePublicIpAddress: false",
            "Without a group Ray makes one that opens port 22 to 0.0.0.0/0, "
            "and without an interface the subnet decides about public addresses.",
        )
    for interface in interfaces.items():
        if not interface["SubnetId"].text:
            yield interface["SubnetId"].wrong("a private subnet", "Name one of the region.")
        if not interface["Groups"].items():
            yield interface["Groups"].wrong(
                "an existing security group",
                "Name one that admits its own members; Ray's own opens port 22 to 0.0.0.0/0.",
            )
        if interface["AssociatePublicIpAddress"].value is not False:
            yield interface["AssociatePublicIpAddress"].wrong(
                "false", "No node may get a public address, whatever the subnet says."
            )


def _disks(config: Node, *, log: bool) -> Iterator[Finding]:
    mappings = config["BlockDeviceMappings"]
    if not mappings.items():
        yield mappings.wrong(
            "the root disk, encrypted", "Without a mapping the image decides about encryption."
        )
    for mapping in mappings.items():
        disk = mapping["Ebs"]
        if disk["Encrypted"].value is not True:
            yield disk["Encrypted"].wrong("true", "Events and decisions lie on it.")
        if disk["VolumeType"].value != "gp3":
            yield disk["VolumeType"].wrong("gp3", "Its throughput doesn't depend on its size.")
        if log and disk["DeleteOnTermination"].value is not False:
            yield disk["DeleteOnTermination"].wrong(
                "false", "The event log lies on it and must outlive the instance."
            )


def _instance(config: Node) -> Iterator[Finding]:
    imds = config["MetadataOptions"]["HttpTokens"]
    if imds.value != "required":
        yield imds.wrong(
            "required", "IMDSv1 gives the node's role to any request that it can be made to send."
        )
    profile = config["IamInstanceProfile"]
    if not (profile["Name"].text or profile["Arn"].text):
        yield profile.wrong(
            "the Name of an instance profile",
            "Workers get none from Ray and could not read the lake; the head would get Ray's own, "
            "with all rights over EC2 and S3.",
        )
    if not config["ImageId"].text:
        yield config["ImageId"].wrong(
            "an image, best by resolve:ssm:PARAMETER",
            "Ray's own default is Ubuntu 18.04, too old for the locked wheels.",
        )
    if config["LaunchTemplate"].value is not None:
        yield config["LaunchTemplate"].wrong(
            "no template", "What it adds is not seen here; write it into the node_config."
        )
    if not config["InstanceType"].text:
        yield config["InstanceType"].wrong("an instance type", "As in m7i.2xlarge.")


def _market(node_type: Node, *, head: bool) -> Iterator[Finding]:
    market = node_type["node_config"]["InstanceMarketOptions"]
    if market.value is None:
        return
    serves = node_type["labels"][POOL_LABEL].value == "serve"
    if head or serves or node_type["labels"][LOG_LABEL].value is not None:
        yield market.wrong(
            "no InstanceMarketOptions",
            "A spot node goes with two minutes' notice: "
            + ("the head with the event log" if not serves else "replicas")
            + " must run on demand.",
        )


def _log_node(cluster: Node, head: str, logs: list[str]) -> Iterator[Finding]:
    types = cluster["available_node_types"]
    node_type = types[head]
    if logs != [head]:
        yield types.wrong(
            f'the label {LOG_LABEL}: "true" on {head or "the head"} alone',
            "The event log lies on one disk, and its worker is placed by this label.",
            f"{LOG_LABEL} on {', '.join(logs) or 'no node type'}",
        )
    elif node_type["labels"][LOG_LABEL].value != "true":
        yield node_type["labels"][LOG_LABEL].wrong('"true"', "Write it as text, in quotes.")
    if node_type["resources"]["CPU"].value != 0:
        yield node_type["resources"]["CPU"].wrong("0", "No task may run beside the event log.")
    if node_type["max_workers"].value != 0:
        yield node_type["max_workers"].wrong("0", "A second node of this type would be a log node.")
