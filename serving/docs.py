"""The page at /docs: one file without anything from elsewhere, made from the OpenAPI document."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from raypipe.errors import RaypipeError, Unavailable
from serving.http import Documents


def render(
    document: dict[str, Any], tried: str = "/v1/decisions", to: str = "v1/decisions"
) -> Documents:
    """The document as JSON and as a page, with headers that forbid the page to load anything.

    Args:
        document: OpenAPI.
        tried: the route that the page can try.
        to: the same as a link of the page.
    """
    source = files("serving")
    script = (source / "docs.js").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    body = document["paths"][tried]["post"]["requestBody"]
    page = template.from_string((source / "docs.html").read_text("utf-8")).render(
        info=document["info"],
        tried=tried,
        to=to,
        operations=operations,
        schemas=document["components"]["schemas"],
        example=json.dumps(body["content"]["application/json"]["example"], indent=2),
        type_of=_type_of,
        problems=sorted(_problems().items()),
        script=Markup(script),  # noqa: S704 - our own file
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return Documents(json.dumps(document).encode(), page.encode(), headers)


def _problems() -> dict[str, tuple[int, str]]:
    """Every problem code that a caller can see, with its status and meaning."""
    found = {
        "internal": (500, "Something failed here; the log knows it by the request_id."),
        "method_not_allowed": (405, "The route has other methods; see the Allow header."),
    }
    kinds: list[type[RaypipeError]] = [RaypipeError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.status < 500 or kind is Unavailable:
            found[kind.code] = (kind.status, (kind.__doc__ or kind.headline).strip())
    return found


def _type_of(schema: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_type_of(s) for s in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join("null" if v is None else str(v) for v in schema["enum"])
    kind = schema.get("type", "any")
    text = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if text == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "up to"))
        if key in schema
    ]
    return " ".join([text, *bounds])
