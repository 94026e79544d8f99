from __future__ import annotations

from pathlib import Path

import pytest

from raypipe.errors import InputError, UsageError
from raypipe.runtime.launch.render import render
from tests.unit.launch_kit import CLUSTER, ROOT, checkout, faults

TEXT = (ROOT / CLUSTER).read_text()


def test_the_shipped_file_in_another_region_differs_in_the_region_alone(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    rendered = render(TEXT, "eu-west-1")
    (root / CLUSTER).write_text(rendered)
    assert faults(root, CLUSTER) == []
    changed = [
        (a, b) for a, b in zip(TEXT.splitlines(), rendered.splitlines(), strict=True) if a != b
    ]
    assert changed == [("  region: us-east-1", "  region: eu-west-1")]


def test_back_in_its_own_region_it_is_the_same_text() -> None:
    assert render(render(TEXT, "eu-west-1"), "us-east-1") == TEXT
    assert render(TEXT, "us-east-1") == TEXT


def test_zones_move_along_and_ids_of_the_old_region_are_to_be_filled_in_again() -> None:
    filled = (
        TEXT.replace("subnet-CHANGE-ME", "subnet-0a1b2c3d4e5f60718")
        .replace("sg-CHANGE-ME", "sg-0a1b2c3d")
        .replace(
            "  region: us-east-1",
            "  region: us-east-1\n  availability_zone: us-east-1a,us-east-1b # not us-east-10",
        )
    )
    rendered = render(filled, "ap-southeast-2")
    assert "availability_zone: ap-southeast-2a,ap-southeast-2b # not us-east-10\n" in rendered
    assert "subnet-CHANGE-ME" in rendered
    assert "sg-CHANGE-ME" in rendered
    assert "0a1b2c3d" not in rendered
    # The ids of the region that it is in already are the user's own and stay.
    assert render(filled, "us-east-1") == filled


def test_what_is_no_region_is_refused() -> None:
    for region in ("", "mars", "us-east-1a", "eu_west_1", "us-east-1\n", "a" * 300):
        with pytest.raises(UsageError, match="no region"):
            render(TEXT, region)


def test_without_an_image_a_region_that_ray_has_none_for_is_refused_with_those_it_has() -> None:
    bare = TEXT.replace("ImageId: *image", "")
    assert "region: eu-west-1" in render(bare, "eu-west-1")
    with pytest.raises(UsageError, match="head, serve, batch: no ImageId") as refused:
        render(bare, "eu-north-1")
    assert "eu-west-1" in refused.value.hint
    assert "region: eu-north-1" in render(TEXT, "eu-north-1")  # the shipped file names one


def test_a_file_without_a_region_is_refused() -> None:
    for text in ("provider: {type: local}\n", "x: 1\n", "provider: {region: here}\n"):
        with pytest.raises(InputError, match="names no region"):
            render(text, "eu-west-1")
