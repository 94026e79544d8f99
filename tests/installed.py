"""Programs that tests start: installed where that can be done, as a user would install them."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache


@cache
def program(name: str, package: str) -> str | None:
    """The path of a program, installed from Debian's packages if it is absent; None without it."""
    found = shutil.which(name)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["install", "-y", "--no-install-recommends", package]
        for words in (["update"], install):
            subprocess.run(["apt-get", "-qq", *words], capture_output=True, check=False)
        found = shutil.which(name)
    return found
