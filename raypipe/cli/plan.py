"""``raypipe plan``: what ``raypipe features`` would compute, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Config, Home, Json, Set


def plan(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file and find changed ones too.")
    ] = False,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Show what `raypipe features` would compute now, and why.

    Compares declarations, log and lake; starts no Ray and computes nothing.
    """
    settings = _options.settings(home, config, set_)
    shown = _stage.call("features.showing:show", settings, verify=verify)
    _output.write(shown, as_json=json, text=_text(shown))
    return 0


def _text(shown: dict[str, Any]) -> str:
    rows = []
    for name, view in shown["views"].items():
        mark = "=" if view["action"] == "keep" else "+"
        days = f"{view['first_day']} to {view['last_day']}" if view["compute_days"] else "-"
        why = ", ".join(view["why"]) or "up to date"
        rows.append((mark, name, view["compute_days"], view["compute_cells"], days, why))
    rows += [("-", name, 0, 0, "-", "no longer declared") for name in shown["removed_views"]]
    total = f"{shown['passes']} passes over {shown['row_views']:,} rows x views"
    if shown["estimated_s"] is not None:
        total += f", about {shown['estimated_s']:,} s at the rate of the last run"
    held = f"{shown['days']} days in {shown['buckets']} buckets; "
    table = _output.table(("", "VIEW", "DAYS", "DAYS x BUCKETS", "WHICH", "WHY"), rows)
    return f"{table}\n{held}{total if shown['passes'] else 'nothing to compute'}"
