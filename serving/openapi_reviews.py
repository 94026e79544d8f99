"""The part of the OpenAPI document about reviews and outcomes."""

from __future__ import annotations

from typing import Any

from serving.openapi_parts import json_answer, path_parameter, problems
from serving.reviews import MOST

_ID = path_parameter("decision_id")
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 128},
    "description": "Names the statement. Without it the same statement again is a repetition.",
}


def paths() -> dict[str, Any]:
    """The routes by path."""
    return {
        "/v1/reviews": {"get": _list()},
        "/v1/reviews/{decision_id}:claim": {"post": _claim()},
        "/v1/reviews/{decision_id}:verdict": {"post": _verdict()},
        "/v1/decisions/{decision_id}/outcome": {"post": _outcome()},
    }


def _list() -> dict[str, Any]:
    parameters = (
        ("limit", {"type": "integer", "minimum": 1, "maximum": MOST}, "by default 50"),
        ("after", {"type": "string"}, "what the page before told as its next"),
        ("action", {"type": "string"}, "only after this action"),
        ("claimed_by", {"type": "string"}, "only those that this one works on now"),
        ("free", {"type": "boolean"}, "only those that nobody works on now"),
    )
    return {
        "operationId": "reviews",
        "summary": "List the decisions that wait for a person, oldest first",
        "description": "A decision leaves the list with the first outcome that is told of it.",
        "security": [{"key": ["reviews:read"]}],
        "parameters": [
            {"name": n, "in": "query", "schema": schema, "description": about}
            for n, schema, about in parameters
        ],
        "responses": {
            "200": json_answer("A page", "ReviewPage"),
            **problems("400", "401", "403", "503"),
        },
    }


def _claim() -> dict[str, Any]:
    return {
        "operationId": "claim",
        "summary": "Take a review to work on",
        "description": "One holder at a time. The claim ends by itself; claimed again by the same "
        "holder it lasts from then on.",
        "security": [{"key": ["reviews:write"]}],
        "parameters": [_ID],
        "requestBody": _content("ClaimBody", required=False),
        "responses": {
            "200": json_answer("The review, claimed", "OpenReview"),
            **problems("400", "401", "403", "404", "409", "413", "422", "503"),
        },
    }


def _verdict() -> dict[str, Any]:
    return {
        "operationId": "verdict",
        "summary": "End a review",
        "description": "For who claimed it, or anybody while nobody has it. It is stored as an "
        "outcome of the source `review`; `fraud` becomes a label event.",
        "security": [{"key": ["reviews:write"]}],
        "parameters": [_ID, _KEY],
        "requestBody": _content("VerdictBody"),
        "responses": {
            "200": json_answer("The stored outcome", "Outcome"),
            **problems("400", "401", "403", "404", "409", "413", "415", "422", "503"),
        },
    }


def _outcome() -> dict[str, Any]:
    return {
        "operationId": "outcome",
        "summary": "Tell what the event of a decision turned out to be",
        "description": "At any time after the decision, whatever its action was. The same "
        "statement again is stored once; a later one corrects an earlier one and both are kept. "
        "`fraud` becomes a label event, one a decision: it counts in windows, training and "
        "backtests.",
        "security": [{"key": ["outcomes:write"]}],
        "parameters": [_ID, _KEY],
        "requestBody": _content("OutcomeBody"),
        "responses": {
            "200": json_answer("The stored outcome", "Outcome"),
            **problems("400", "401", "403", "404", "409", "413", "415", "422", "503"),
        },
    }


def _content(name: str, *, required: bool = True) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"required": required, "content": {"application/json": {"schema": schema}}}
