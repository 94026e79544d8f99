"""``raypipe doctor``: every setting with its origin, and what this machine lacks."""

from __future__ import annotations

from dataclasses import asdict

from raypipe.cli import _options, _output
from raypipe.cli._options import Config, Home, Json, Set


def doctor(json: Json = False, home: Home = None, config: Config = None, set_: Set = None) -> int:
    """Show all settings and check this machine.

    Each setting with where it comes from; each check that fails with its cure. Exits with 1 if
    one fails.
    """
    flags = _options.collect(home, set_)
    from raypipe.cli import _checks
    from raypipe.config import load_settings, origins

    settings = origins(flags, config)
    checks = _checks.run(load_settings(flags, config))
    text = _output.table(
        ("SETTING", "VALUE", "FROM"),
        [(n, "-" if v is None else v, origin) for n, (v, origin) in settings.items()],
    )
    text += "\n\n" + _output.table(
        ("", "CHECK", "FOUND"), [(c.state, c.name, c.found) for c in checks]
    )
    cures = [f"{c.state}  {c.name}: {c.cure}" for c in checks if c.cure]
    _output.write(
        {
            "ok": all(c.state != "fail" for c in checks),
            "settings": {n: {"value": v, "origin": o} for n, (v, o) in settings.items()},
            "checks": [asdict(c) for c in checks],
        },
        as_json=json,
        text="\n".join([text, *(["", *cures] if cures else [])]),
    )
    return 1 if any(c.state == "fail" for c in checks) else 0
