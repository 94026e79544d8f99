"""Times that people give and are shown: durations before something, dates, ISO 8601."""

from __future__ import annotations

from datetime import UTC, datetime

from raypipe.config import moment
from raypipe.errors import DeclarationError, UsageError
from raypipe.windows.spec import seconds


def point(flag: str, text: str, newest: int) -> int:
    """A date, a time, or a duration before ``newest``, as ms UTC; raises UsageError."""
    try:
        return newest - 1_000 * seconds(text)
    except DeclarationError:
        pass
    try:
        if len(text) == len("2026-03-01"):
            text += "T00:00:00Z"
        return int(str(moment(text)))
    except ValueError as e:
        raise UsageError(
            f"{flag} {text!r} is neither a duration nor a time: {e}",
            hint="As in 7d, 2026-03-01, 2026-03-01T12:00:00Z.",
        ) from e


def iso(ms: int) -> str:
    """A time as ISO 8601, to the second."""
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat("T", "seconds")
