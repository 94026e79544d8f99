"""What `feast -c features apply` and `feast -c features plan` find.

Feast's command line imports the files of its repository and collects the objects that ``dir``
shows; whatever it doesn't find, it deletes. The objects are built when it asks, not at import.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _objects() -> dict[str, Any]:
    from features.builds import Build
    from features.profiles.made import values_folders
    from features.store.registry import desired
    from features.store.repo import open_store
    from raypipe.errors import ConfigError
    from raypipe.lake import Place
    from raypipe.project import load_project

    home = os.environ.get("RAYPIPE_HOME")
    if not home:
        raise ConfigError("RAYPIPE_HOME is not set", hint="Set it to the home folder's full path.")
    project = load_project(os.environ.get("RAYPIPE_PROJECT", "features.payments:project"))
    lake = Place.at(os.environ.get("RAYPIPE_LAKE_URL") or home)
    build, profiles = Build.current(lake), values_folders(lake, project)
    contents = desired(open_store(Path(home)), project, build.place, profiles=profiles)
    return {
        f"{kind}_{o.name}": o
        for kind in ("projects", "data_sources", "entities", "feature_views", "feature_services")
        for o in getattr(contents, kind)
    }


def __dir__() -> list[str]:
    return list(_objects())


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return _objects()[name]
    except KeyError:
        raise AttributeError(name) from None
