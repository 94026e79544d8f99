"""Parts that the routes of the OpenAPI document share."""

from __future__ import annotations

from typing import Any

REF = "#/components/schemas/{name}"

MEANINGS = {
    "400": "The body or the query can't be read",
    "401": "No API key, or one that isn't known",
    "403": "The key lacks the scope",
    "404": "Nothing of that id for this tenant",
    "409": "The event_id or Idempotency-Key came before with another body, or somebody else has it",
    "413": "The body is too large",
    "415": "Not a form that this route reads",
    "429": "Too much is in work; send it again later",
    "422": "The event breaks the schema; `errors` names every place",
    "503": "A part is away; a retry with the same event_id is safe",
}


def problems(*statuses: str) -> dict[str, Any]:
    """Answers with a problem document."""
    schema = {"$ref": REF.format(name="Problem")}
    return {
        status: {
            "description": MEANINGS[status],
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in statuses
    }


def json_answer(description: str, name: str) -> dict[str, Any]:
    """An answer with a schema of that name."""
    schema = {"$ref": REF.format(name=name)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def path_parameter(name: str) -> dict[str, Any]:
    """A text in the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
