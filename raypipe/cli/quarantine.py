"""``raypipe quarantine``: what was refused, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli import _options, _output
from raypipe.cli._options import Config, Home, Json, Set


def quarantine(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="Rows to show, newest first.")
    ] = 10,
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Whose rows (setting tenant).")
    ] = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """List the rows that were refused, and why."""
    from raypipe.events.quarantine import QUARANTINE_FILE

    settings = _options.settings(home, config, set_, tenant=tenant)
    file = settings.home / QUARANTINE_FILE
    if not file.is_file():
        result: dict[str, object] = {"counts": {}, "rows": []}
        _output.write(result, as_json=json, text="Nothing was refused.")
        return 0
    from dataclasses import asdict

    from raypipe.events.quarantine import Quarantine

    store = Quarantine(file)
    try:
        counts = store.counts(tenant=settings.tenant)
        rows = store.rows(limit, tenant=settings.tenant)
    finally:
        store.close()
    if not counts:
        text = f"Nothing of tenant {settings.tenant} was refused."
    else:
        text = _output.table(
            ("ROWS", "EVENT", "REASON"),
            [(n, event, reason) for event, by in counts.items() for reason, n in by.items()],
        )
        for row in rows:
            text += f"\n\n{row.event_type} from {row.source}\n  {row.body}"
            text += "".join(f"\n  {reason}" for reason in row.reasons)
    _output.write({"counts": counts, "rows": [asdict(r) for r in rows]}, as_json=json, text=text)
    return 0
