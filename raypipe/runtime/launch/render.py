"""A cluster file for another region."""

from __future__ import annotations

import re

from raypipe.errors import InputError, UsageError
from raypipe.runtime.launch.aws import REGION
from raypipe.runtime.launch.files import parse
from raypipe.runtime.launch.node import PLACEHOLDER
from raypipe.runtime.launch.ray_schema import regions_with_image

_REGIONAL_ID = re.compile(r"\b(subnet|sg|ami|vpc)-(?!CHANGE-ME)[0-9a-f]{8,17}\b")


def render(text: str, region: str, name: str = "cluster.yaml") -> str:
    """The cluster file ``text`` with everything of its region replaced; comments stay.

    Region and availability zones (``us-east-1a``) are rewritten. Ids of subnets, groups and images
    exist in one region only: they become CHANGE-ME, which the check then lists. Raises UsageError
    for what is no region, or one for which a node type without ImageId would get no image.
    """
    documents = parse(text, name)
    now = documents[0]["provider"]["region"].text
    if len(documents) != 1 or not REGION.fullmatch(now):
        raise InputError(f"{name} names no region of AWS", hint="provider.region: us-east-1")
    if not REGION.fullmatch(region):
        raise UsageError(f"{region!r} is no region of AWS", hint="As in: eu-west-1")
    types = documents[0]["available_node_types"].children()
    bare = [name for name, node in types if not node["node_config"]["ImageId"].text]
    if bare and region not in (known := regions_with_image()):
        raise UsageError(
            f"{', '.join(bare)}: no ImageId, and Ray has no image of its own in {region!r}",
            hint=f"Name an ImageId, or take one of: {', '.join(sorted(known))}.",
        )
    if region == now:
        return text
    moved = re.sub(rf"(?<![\w-]){re.escape(now)}(?=[a-z]?(?![\w-]))", region, text)
    return _REGIONAL_ID.sub(rf"\1-{PLACEHOLDER}", moved)
