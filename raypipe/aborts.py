"""Scripted death: a recovery test names the point where the process must die, without warning.

``RAYPIPE_ABORT_AT=log.append.before_commit`` kills the process (SIGKILL: no handler, no flush) when
it reaches that point; ``point:3`` means the third arrival. ``RAYPIPE_ABORT_ONCE=FILE`` creates FILE
before the kill and, while FILE exists, nothing is killed: so a restarted process gets further.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_AT = os.environ.get("RAYPIPE_ABORT_AT", "")
_POINT, _, _NTH = _AT.partition(":")
_arrivals = 0


def reach(point: str) -> None:
    """Die here if the environment says so; otherwise do nothing (the usual case: one compare)."""
    if _POINT and point == _POINT:
        _arrive()


def _arrive() -> None:
    global _arrivals  # noqa: PLW0603 - one process, one scripted death
    _arrivals += 1
    if _arrivals < int(_NTH or 1):
        return
    once = os.environ.get("RAYPIPE_ABORT_ONCE")
    if once:
        try:
            os.close(os.open(Path(once), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
