"""The OpenAPI document of the recommender: an application of its own has one of its own."""

from __future__ import annotations

from typing import Any

import msgspec

from raypipe import __version__
from serving import schemas
from serving.deadlines import HEADER
from serving.openapi_parts import REF, json_answer, path_parameter, problems
from serving.recommend.body import BODY_LIMIT, MOST, Alive, Listed, Ready, Wanted
from serving.recommend.http import PREFIX

EXAMPLE = {
    "user": "customer-1",
    "session": "visit-1",
    "k": 10,
    "context": {"item_id": "article-1"},
    "filters": {"categories": ["shoes"], "price_to": 9_900},
}

_SECURITY = [{"key": ["recommendations:read"]}]
_PATIENCE = {
    "name": HEADER,
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "How many milliseconds the client waits.",
}


def document(project: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, components = msgspec.json.schema_components(
        (Wanted, Listed, Ready, Alive, schemas.Problem), ref_template=REF
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"raypipe: recommendations, {project}",
            "version": __version__,
            "description": "Lists of items for visitors. Every acknowledged event of a visitor is "
            "in his next list.",
        },
        "paths": {
            PREFIX: {"post": _recommend()},
            f"{PREFIX}/similar/{{item_id}}": {"get": _similar()},
            f"{PREFIX}/trending": {"get": _trending()},
            f"{PREFIX}/healthz": {"get": _plain("The process answers", "Alive")},
            f"{PREFIX}/readyz": {"get": _plain("Which version answers", "Ready", "503")},
            f"{PREFIX}/metrics": {"get": _text("Figures for Prometheus", "text/plain")},
            f"{PREFIX}/openapi.json": {"get": _text("This document", "application/json")},
            f"{PREFIX}/docs": {"get": _text("This document as a page", "text/html")},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, rp_…; it names the tenant.",
                }
            },
        },
    }


def _recommend() -> dict[str, Any]:
    return {
        "operationId": "recommend",
        "summary": "List items that a visitor may want next",
        "description": "For a customer, a session, both, or nobody in particular. The list is "
        "recorded before it is answered, with the propensity of each place. One JSON object of at "
        f"most {BODY_LIMIT} bytes; unknown fields are refused.",
        "security": _SECURITY,
        "parameters": [_PATIENCE],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF.format(name="Wanted")},
                    "example": EXAMPLE,
                }
            },
        },
        "responses": {
            "200": json_answer("The list", "Listed"),
            **problems("400", "401", "403", "404", "413", "415", "422", "429", "503"),
        },
    }


def _similar() -> dict[str, Any]:
    return {
        "operationId": "similar",
        "summary": "List items like one",
        "description": "By who took what; of an item that is new, by its attributes.",
        "security": _SECURITY,
        "parameters": [path_parameter("item_id"), _k(), _PATIENCE],
        "responses": {
            "200": json_answer("The list", "Listed"),
            **problems("400", "401", "403", "404", "429", "503"),
        },
    }


def _trending() -> dict[str, Any]:
    words = [
        {"name": n, "in": "query", "schema": {"type": "string", "minLength": 1, "maxLength": 256}}
        for n in ("category", "brand")
    ]
    return {
        "operationId": "trending",
        "summary": "List items that are wanted more than on the days before",
        "security": _SECURITY,
        "parameters": [_k(), *words, _PATIENCE],
        "responses": {
            "200": json_answer("The list", "Listed"),
            **problems("400", "401", "403", "404", "429", "503"),
        },
    }


def _k() -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": MOST}
    return {"name": "k", "in": "query", "schema": schema, "description": "by default 10"}


def _plain(summary: str, name: str, *failures: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": json_answer(summary, name), **problems(*failures)},
    }


def _text(summary: str, media: str) -> dict[str, Any]:
    content = {media: {"schema": {"type": "string"}}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}}}
