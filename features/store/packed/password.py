"""The password of the online store: from the environment or from a mounted file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from raypipe.errors import ConfigError

PASSWORD_VARIABLE = "RAYPIPE_ONLINE_PASSWORD"  # noqa: S105 -- a name
"""The password itself. Never in the URL: that is printed, logged and kept in files."""

FILE_VARIABLE = "RAYPIPE_ONLINE_PASSWORD_FILE"
"""Or the file that holds it, as secrets are mounted."""


def password() -> str | None:
    """What the environment names, None where it names nothing; an empty variable is none.

    Raises:
        ConfigError: both variables are set, or the file is absent, empty or open to others.
    """
    given, file = os.environ.get(PASSWORD_VARIABLE), os.environ.get(FILE_VARIABLE)
    if given and file:
        raise ConfigError(
            f"{PASSWORD_VARIABLE} and {FILE_VARIABLE} are both set", hint="Unset one of them."
        )
    return _read(Path(file)) if file else given or None


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            found = stream.read().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"{FILE_VARIABLE}: {file} can't be read: {getattr(e, 'strerror', None) or e.args[-1]}",
            hint="Mount the password there, as text; `raypipe cluster secrets` makes one.",
        ) from None
    if mode & stat.S_IRWXO:  # a pod's group may read it
        raise ConfigError(
            f"{FILE_VARIABLE}: {file} has mode {mode:04o}: others can read it",
            hint=f"`chmod 600 {file}`; if others use this machine, choose a new password.",
        )
    if not found:
        raise ConfigError(f"{FILE_VARIABLE}: {file} is empty", hint="Write the password into it.")
    return found
