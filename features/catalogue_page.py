"""The catalogue as one HTML page that needs nothing beside it: no server, no network, no script."""

from __future__ import annotations

from pathlib import Path

from features.catalogue import Catalogue

TEMPLATE = Path(__file__).with_name("catalogue.html.j2")


def render(catalogue: Catalogue) -> str:
    """The page. Everything that a project says is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    readers: dict[str, list[str]] = {}
    for source, target in catalogue.edges:
        readers.setdefault(source, []).append(target)
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        catalogue=catalogue,
        names={f.name for f in catalogue.features},
        readers=readers,
        kinds={
            "field": "field of the event",
            "window": "window",
            "profile": "profile",
            "derived": "derived",
        },
    )
