"""``raypipe status``: what runs on a home folder."""

from __future__ import annotations

from typing import Any

from raypipe.cli import _options, _output
from raypipe.cli._guard import PARTIAL
from raypipe.cli._options import Config, Home, Json, Set


def status(json: Json = False, home: Home = None, config: Config = None, set_: Set = None) -> int:
    """Show what runs.

    Exits with 0 if it can decide, 3 if it runs but can't yet, 1 if nothing.
    """
    settings = _options.settings(home, config, set_)
    from raypipe.clock import SystemClock
    from raypipe.errors import RaypipeError
    from raypipe.ledger import spill
    from raypipe.runtime import running
    from raypipe.runtime.progress import duration

    try:
        spilled: int | None = spill.backlog(settings.spill_dir).rows
    except RaypipeError:
        spilled = None  # doctor says why
    found = running.find(settings.home)
    if found is None:
        result: dict[str, Any] = {"running": False, "home": settings.home, "spilled": spilled}
        line = f"Nothing runs on {settings.home}."
        if spilled:
            line += f"\n{spilled} decisions wait for the log: start it again."
        _output.write(result, as_json=json, text=line)
        return 1
    able, answer = running.ready(found.http_url) if found.http_url else (False, "not serving yet")
    result = {
        "running": True,
        "ready": able,
        "answer": answer,
        "verb": found.verb,
        "state": found.state,
        "pid": found.pid,
        "up_seconds": round((SystemClock().now_ms() - found.started_at) / 1000, 1),
        "http_url": found.http_url,
        "ray_address": found.ray_address,
        "home": settings.home,
        "version": found.version,
        "spilled": spilled,
    }
    text = [
        f"raypipe {found.verb} (pid {found.pid}) is {'ready' if able else found.state}, "
        f"up for {duration(result['up_seconds'])}",
        f"decisions  {found.http_url or '-'}",
        f"home       {settings.home}",
    ]
    if spilled:
        text.append(f"spilled    {spilled} decisions wait for the log")
    if not able:
        text.insert(1, f"readiness  {answer}")
    _output.write(result, as_json=json, text="\n".join(text))
    return 0 if able else PARTIAL
