"""``raypipe doctor``: every setting with its origin, and what this machine lacks."""

from __future__ import annotations

from dataclasses import asdict

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Address, Config, Home, Json, Set


def doctor(
    address: Address = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Show all settings and check this machine, and the cluster that it belongs to.

    Each setting with where it comes from; each check that fails with its cure. With --address (or
    the setting) every node is asked: code, versions, environment, token, certificates, shared
    lake, clock. Exits with 1 if a check fails.
    """
    flags = _options.collect(home, set_, ray_address=address)
    from raypipe.cli import _checks, _cluster_checks
    from raypipe.config import load_settings, origins

    settings = origins(flags, config)
    own = load_settings(flags, config)
    checks = _checks.run(own)
    if own.ray_address is not None:
        with _stage.session():
            checks += _cluster_checks.run(own)
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
