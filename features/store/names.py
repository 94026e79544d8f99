"""What things are called in Feast and where the files of a build of the features lie."""

from __future__ import annotations

from raypipe.lake import Place
from raypipe.windows.spec import WindowView

EVENT_ENTITY = "event"
"""The Feast entity of `*_at_event` views; its join key is EVENT_KEY."""

EVENT_KEY = "event_id"
TIMESTAMP = "event_timestamp"
CREATED = "created"
"""Log offset as a timestamp in microseconds: which of two rows of equal time is newer."""

AT_EVENT = "at_event"
STATE = "state"
"""Folders of a build: values before each decision event, values after each counted one."""

DEFINITION_CHARACTERS = 12
"""Of a definition's hash, in the names of folders."""


def at_event_view(view: str) -> str:
    """Feature view of the values before each decision event."""
    return f"{view}_at_event"


def state_view(view: str) -> str:
    """Feature view of the values after each counted event."""
    return f"{view}_state"


def version_service(model: str, version: int) -> str:
    """Feature service of one trained version of a model."""
    return f"{model}_v{version}"


def online_service(model: str) -> str:
    """Feature service of a model's online state."""
    return f"{model}_online"


def newest_column(view: str) -> str:
    """Column of the newest log offset that values of a view or profile used; -1 for none."""
    return f"newest_{view}"


def at_event_folder(build: Place, view: WindowView) -> Place:
    """Folder of a view's values before each decision event."""
    return build / AT_EVENT / definition_folder(view)


def state_folder(build: Place, view: WindowView) -> Place:
    """Folder of a view's values after each counted event."""
    return build / STATE / definition_folder(view)


def definition_folder(view: WindowView) -> str:
    """``<view>/<definition>``: files of one declaration never lie among those of another."""
    return f"{view.name}/{view.definition_hash[:DEFINITION_CHARACTERS]}"
