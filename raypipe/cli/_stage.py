"""How the command line reaches the stages: by name, because their packages lie above this one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raypipe.cli._signals import unhurried
from raypipe.errors import UsageError


def call(reference: str, *args: Any, **options: Any) -> Any:
    """Import ``module:function`` and call it.

    Raises UsageError when this installation lacks the module or the function; an import that
    fails inside the module is that module's own error.
    """
    name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise
        raise UsageError(
            f"this installation has no {name!r}",
            hint="Install the whole project: `make setup`, or `pip install -e .` in a checkout.",
        ) from e
    function = getattr(module, attribute, None)
    if function is None:
        raise UsageError(
            f"{name!r} has no {attribute!r}",
            hint="Is another package of that name on the path? `raypipe doctor` looks.",
        )
    return function(*args, **options)


def stop_worker() -> None:
    """End the session's ingest server, then its worker with a snapshot, if there are any."""
    from raypipe.runtime.worker import actor

    with unhurried():
        if "serving.ingest" in sys.modules:
            call("serving.ingest:stop")
        actor.stop()


@contextmanager
def session() -> Iterator[None]:
    """End the Ray session that the block's stages started, however the block ends."""
    from raypipe.runtime import session as ray_session

    try:
        yield
    finally:
        with unhurried():
            ray_session.stop()
