"""``raypipe features``: compute the features of all history, or show what is declared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Config, Home, Json, Quiet, Set
from raypipe.errors import UsageError

if TYPE_CHECKING:
    from raypipe.config import Settings


def features(
    list_: Annotated[
        bool, typer.Option("--list", help="Only list the features: the catalogue.")
    ] = False,
    show: Annotated[
        str | None,
        typer.Option("--show", metavar="NAME", help="Only show one feature and its lineage."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Only write the catalogue as an HTML page."),
    ] = None,
    day: Annotated[
        str | None,
        typer.Option("--day", metavar="DATE", help="Compute this UTC day again, as 2026-03-01."),
    ] = None,
    bucket: Annotated[
        int | None, typer.Option("--bucket", help="With --day: this key bucket alone.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file and mend those that changed.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Compute all features, or show what is declared.

    Brings every view up to the end of the event log and hands the results to the feature store.
    What is there already is kept; `raypipe plan` shows what would be computed. The catalogue tells
    of each feature what it is, its owner, where it comes from, how fresh it is and who uses it.
    """
    if bucket is not None and day is None:
        raise UsageError("--bucket needs --day", hint="Name the day: --day 2026-03-01.")
    settings = _options.settings(home, config, set_)
    if list_ + (show is not None) + (html is not None) > 1:
        raise UsageError("--list, --show and --html exclude each other")
    if list_ or show is not None or html is not None:
        catalogue = _stage.call("features.catalogue:of_settings", settings)
        if html is not None:
            _page(catalogue, html, as_json=json)
        elif show is not None:
            _show(catalogue, show, as_json=json)
        else:
            _list(catalogue, as_json=json)
        return 0
    return _build(settings, json, quiet, day=day, bucket=bucket, verify=verify)


def _build(settings: Settings, json: bool, quiet: bool, **again: object) -> int:
    from raypipe.runtime import running

    with running.claim(settings.home, "features"), _stage.session():
        manifest = _stage.call(
            "features.pipeline:build",
            settings,
            _options.progress(quiet),
            **again,
        )
    shown = {name: manifest[name] for name in ("rows", "end_offset", "definition_hash", "folder")}
    _output.write(manifest if json else shown, as_json=json)
    return 0


def _list(catalogue: Any, *, as_json: bool) -> None:
    import msgspec

    header = ("FEATURE", "KIND", "ENTITY", "OWNER", "FRESHNESS", "MODELS", "FROM", "DEFINITION")
    rows = [
        (
            f.name,
            f.kind,
            f.entity or "-",
            f.owner or "-",
            f.freshness,
            ", ".join(f.models) or "-",
            ", ".join(f.inputs or f.sources),
            f.definition,
        )
        for f in catalogue.features
    ]
    _output.write(msgspec.to_builtins(catalogue), as_json=as_json, text=_output.table(header, rows))


def _show(catalogue: Any, name: str, *, as_json: bool) -> None:
    import msgspec

    feature = catalogue.feature(name)
    about = msgspec.to_builtins(feature)
    seen: dict[str, None] = {}
    tree = [*(f"model {m}" for m in feature.models), *_tree(catalogue, name, seen)]
    text = _output.lines({k: v for k, v in about.items() if v}) + "\n\n" + "\n".join(tree)
    edges = [edge for edge in catalogue.edges if edge[1] in seen]
    _output.write(about | {"edges": edges}, as_json=as_json, text=text)


def _tree(catalogue: Any, name: str, seen: dict[str, None], depth: int = 1) -> Iterator[str]:
    """What a feature is computed from, down to columns of events; what is below a name once."""
    sources = catalogue.sources(name)
    again = name in seen and bool(sources)
    yield f"{'  ' * depth}{name}{' (above)' if again else ''}"
    seen[name] = None
    for source in () if again else sources:
        yield from _tree(catalogue, source, seen, depth + 1)


def _page(catalogue: Any, file: Path, *, as_json: bool) -> None:
    text = _stage.call("features.catalogue_page:render", catalogue)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    result = {"file": file.absolute(), "features": len(catalogue.features)}
    _output.write(result, as_json=as_json)
