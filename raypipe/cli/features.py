"""``raypipe features``: compute the features of all history, or list the declared ones."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Config, Home, Json, Quiet, Set


def features(
    list_: Annotated[bool, typer.Option("--list", help="Only list the declared features.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Compute all features, or list the declared ones.

    Reads the whole event log and hands the results to the feature store.
    """
    settings = _options.settings(home, config, set_)
    if list_:
        _list(settings.project, as_json=json)
        return 0
    from raypipe.runtime import running

    with running.claim(settings.home, "features"), _stage.session():
        manifest = _stage.call("features.pipeline:build", settings, _options.progress(quiet))
    shown = {name: manifest[name] for name in ("rows", "end_offset", "definition_hash", "folder")}
    _output.write(manifest if json else shown, as_json=json)
    return 0


def _list(reference: str, *, as_json: bool) -> None:
    from raypipe.project import load_project

    project = load_project(reference)
    rows = [(name, "field", project.decision) for name in project.raw_names]
    rows += [(name, "window", view.name) for view in project.views for name in view.column_names]
    rows += [(derived.name, "derived", derived.expression) for derived in project.derived]
    _output.write(
        {
            "project": reference,
            "features": [{"name": n, "kind": kind, "source": source} for n, kind, source in rows],
        },
        as_json=as_json,
        text=_output.table(("FEATURE", "KIND", "FROM"), rows),
    )
