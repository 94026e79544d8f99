from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from raypipe.simulate.config import WorldConfig
from raypipe.simulate.rows import Campaign

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/simulator.md"


def test_every_setting_of_a_world_is_documented_with_its_default() -> None:
    table = PAGE.read_text().partition("## Settings of a world")[2].partition("\n## ")[0]
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`.+?`) \| (.*?) ?\| ", table, re.MULTILINE):
        found = re.findall(r"`(\w+)`", names)
        values = default.replace(",000", "000").split(", ")
        told |= dict(zip(found, values, strict=True))
    fields = {f.name: f.default for f in dataclasses.fields(WorldConfig)}
    assert set(told) == set(fields)
    assert told.pop("start_ms") == ""
    assert {n: float(v) for n, v in told.items()} == {n: fields[n] for n in told}


def test_every_kind_of_campaign_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    for campaign in Campaign:
        if campaign is not Campaign.GENUINE:
            assert campaign.name.lower() in documented
