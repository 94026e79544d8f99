"""The command line as a process of its own, to be killed by tests."""

from __future__ import annotations

import importlib
import sys

from raypipe.cli import main


def prepare() -> None:
    """What every start would do again: import the verbs and what they import late."""
    for name in (
        "raypipe.cli._app",
        "raypipe.config",
        "raypipe.runtime.sender",
        "raypipe.sources.feed",
        "raypipe.sources.files",
        "raypipe.sources.requeue",
        "raypipe.sources.watch",
        "httpcore",
        "tests.domains.greenhouse",
    ):
        importlib.import_module(name)


def start(*words: str) -> None:
    """``raypipe`` with these words."""
    sys.argv = ["raypipe", *words]
    main()
