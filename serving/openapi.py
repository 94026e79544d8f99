"""The OpenAPI document of a project: another domain's event type documents itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from raypipe import __version__
from raypipe.events.schema import AMOUNT_LIMIT, EARLIEST_MS, EventType, Field, Kind
from raypipe.project import Project
from serving import openapi_reviews, reviews, schemas
from serving.deadlines import HEADER
from serving.openapi_parts import REF, json_answer, path_parameter, problems

_EXAMPLE_TIME_MS = 1_760_000_000_000


def document(project: Project, currency: str, body_limit: int) -> dict[str, Any]:
    """OpenAPI 3.1 for the decisions of ``project``."""
    event = project.decision_event
    answers = (
        schemas.Decision,
        schemas.DecisionDetail,
        schemas.DecidedBatch,
        schemas.Taken,
        schemas.KeyFeatures,
        schemas.TableRows,
        schemas.ExperimentState,
        schemas.Health,
        schemas.Readiness,
        schemas.ReviewPage,
        schemas.OpenReview,
        schemas.Outcome,
        reviews.ClaimBody,
        reviews.VerdictBody,
        reviews.OutcomeBody,
        schemas.Problem,
    )
    _, components = msgspec.json.schema_components(answers, ref_template=REF)
    name = re.sub(r"[^a-zA-Z0-9]+", " ", event.name).title().replace(" ", "")
    if name in components:
        name += "Event"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"raypipe: {project.name}",
            "version": __version__,
            "description": "Real-time decisions. Every decision is recorded before it is answered, "
            "and a repeated event_id gets the recorded one.",
        },
        "paths": {
            "/v1/decisions": {"post": _decide(event, name, currency, body_limit)},
            "/v1/decisions:batch": {"post": _batch(event, name, currency)},
            "/v1/decisions/{decision_id}": {"get": _decision()},
            **openapi_reviews.paths(),
            "/v1/events": {"post": _events(project, currency)},
            "/v1/features/{entity}/{key}": {"get": _features(project)},
            "/v1/tables/{name}": {"get": _table(project)},
            "/v1/experiments/{reference}": {"get": _experiment()},
            "/healthz": {"get": _plain("The process answers", "Health")},
            "/readyz": {"get": _plain("Whether decisions can be made", "Readiness", "503")},
            "/metrics": {"get": _text("Figures for Prometheus", "text/plain")},
            "/openapi.json": {"get": _text("This document", "application/json")},
            "/docs": {"get": _text("This document as a page", "text/html")},
        },
        "components": {
            "schemas": {name: event_schema(event, currency), **components},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, rp_…; it names the tenant.",
                }
            },
        },
    }


def event_schema(event: EventType, currency: str) -> dict[str, Any]:
    """JSON Schema of what a client sends."""
    return {
        "type": "object",
        "description": event.description,
        "properties": {f.name: _field_schema(f, currency) for f in event.client_fields},
        "required": [f.name for f in event.client_fields if f.required],
        "additionalProperties": False,
        "examples": [example(event, currency)],
    }


def example(event: EventType, currency: str) -> dict[str, Any]:
    """A body that is accepted, with every field."""
    values = {f.name: _example_value(f, currency) for f in event.client_fields}
    return values | {"event_id": f"{event.name}-1"}


def _field_schema(f: Field, currency: str) -> dict[str, Any]:
    schema: dict[str, Any]
    match f.kind:
        case Kind.STRING:
            schema = {"type": "string", "minLength": 1, "maxLength": f.max_length}
        case Kind.CHOICE:
            schema = {"type": "string", "enum": list(f.choices)}
        case Kind.CURRENCY:
            schema = {"type": "string", "enum": [currency]}
        case Kind.BOOLEAN:
            schema = {"type": "boolean"}
        case Kind.NUMBER:
            schema = {"type": "number"}
        case Kind.TIME:
            schema = {"type": "integer", "format": "int64", "minimum": EARLIEST_MS}
        case Kind.AMOUNT:
            limit = AMOUNT_LIMIT - 1
            schema = {"type": "integer", "format": "int64", "minimum": -limit, "maximum": limit}
        case Kind.INTEGER:
            schema = {"type": "integer", "format": "int64"}
    if f.minimum is not None:
        schema["minimum"] = _whole(f, f.minimum)
    if f.maximum is not None:
        schema["maximum"] = _whole(f, f.maximum)
    if not f.required:  # null says the same as leaving it out
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    if f.description:
        schema["description"] = f.description
    if f.tags:
        schema["x-tags"] = sorted(t.value for t in f.tags)
    return schema


def _example_value(f: Field, currency: str) -> Any:
    match f.kind:
        case Kind.STRING:
            text = f"{f.name}-1"
            return text if len(text) <= f.max_length else "A" * f.max_length
        case Kind.CHOICE:
            return f.choices[0]
        case Kind.CURRENCY:
            return currency
        case Kind.BOOLEAN:
            return True
        case Kind.TIME:
            return _EXAMPLE_TIME_MS
        case Kind.NUMBER:
            return _within(f, 1.5)
        case Kind.AMOUNT | Kind.INTEGER:
            return int(_within(f, 1999))


def _within(f: Field, value: float) -> float:
    if f.minimum is not None and value < f.minimum:
        return f.minimum
    return f.maximum if f.maximum is not None and value > f.maximum else value


def _whole(f: Field, limit: float) -> float:
    return limit if f.kind is Kind.NUMBER else int(limit)


def _decide(event: EventType, name: str, currency: str, body_limit: int) -> dict[str, Any]:
    header = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string"},
        "description": "Stands for event_id when the body has none.",
    }
    return {
        "operationId": "decide",
        "summary": f"Decide about one {event.name}",
        "description": "The event is stored and counted once per event_id. The same event again "
        "gets the stored decision (replayed); another body for the same event_id is a conflict. "
        f"One JSON object of at most {body_limit} bytes; unknown fields are refused.",
        "security": [{"key": ["decisions:write"]}],
        "parameters": [header, _PATIENCE, _EXPLAIN],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF.format(name=name)},
                    "example": example(event, currency),
                }
            },
        },
        "responses": {
            "200": json_answer("The recorded decision", "Decision"),
            **problems("400", "401", "403", "409", "413", "415", "422", "429", "503"),
        },
    }


def _batch(event: EventType, name: str, currency: str) -> dict[str, Any]:
    sample = example(event, currency)
    return {
        "operationId": "decideBatch",
        "summary": f"Decide about many {event.name} events",
        "description": "Each row is decided, recorded and counted as if it had come alone, by its "
        "own event_id; the answers stand in the order of the rows, and a row that fails has a "
        "problem instead of a decision. Rows begin in their order and share one deadline. "
        "JSON lines or a JSON array, plain or with Content-Encoding gzip or zstd; the settings "
        "batch_rows and batch_body_bytes limit it.",
        "security": [{"key": ["decisions:write"]}],
        "parameters": [_PATIENCE, _EXPLAIN],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": {"$ref": REF.format(name=name)}},
                    "example": [sample],
                },
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
        "responses": {
            "200": json_answer("Every row was decided", "DecidedBatch"),
            "207": json_answer("Some rows were not", "DecidedBatch"),
            **problems("400", "401", "403", "413", "415", "503"),
        },
    }


_PATIENCE: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "Milliseconds that the client waits, at most the server's own limit. When the "
    "worker does not answer by then, the answer is `degraded`.",
}

_EXPLAIN: dict[str, Any] = {
    "name": "explain",
    "in": "query",
    "schema": {"type": "string", "enum": ["true", "false"]},
    "description": "true: with reasons where the record has none, as of an approved event. They "
    "are computed from the recorded features by the model that decided, and not recorded.",
}


def _decision() -> dict[str, Any]:
    return {
        "operationId": "decision",
        "summary": "Read a recorded decision in full",
        "security": [{"key": ["decisions:read"]}],
        "parameters": [path_parameter("decision_id"), _EXPLAIN],
        "responses": {
            "200": json_answer("The record", "DecisionDetail"),
            **problems("400", "401", "403", "404", "503"),
        },
    }


def _events(project: Project, currency: str) -> dict[str, Any]:
    kinds = [e.name for e in project.events]
    row = {"oneOf": [_row_schema(e, currency) for e in project.events]}
    return {
        "operationId": "events",
        "summary": "Report many events at once",
        "description": "Also answered, faster, by the server at the setting ingest_port. JSON "
        "lines, a JSON array or an Arrow IPC stream, plain or with Content-Encoding gzip or zstd. "
        "Each row names its event type in `type`, unless the URL does. Good rows are stored and "
        "counted in the order of the request, whatever becomes of the others; refused rows go to "
        "quarantine. A row whose event_id came lately is a duplicate.",
        "security": [{"key": ["events:write"]}],
        "parameters": [
            {
                "name": "type",
                "in": "query",
                "schema": {"type": "string", "enum": kinds},
                "description": "The event type of all rows, which then have no member `type`.",
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": {"type": "string", "maxLength": 128},
                "description": "The same request again gets the first answer and counts nothing.",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "array", "items": row}},
                "application/x-ndjson": {"schema": {"type": "string"}},
                "application/vnd.apache.arrow.stream": {
                    "schema": {"type": "string", "format": "binary"}
                },
            },
        },
        "responses": {
            "200": json_answer("Every row is stored or was before", "Taken"),
            "207": json_answer("Some rows were refused", "Taken"),
            **problems("400", "401", "403", "409", "413", "415", "422", "429", "503"),
        },
    }


def _row_schema(event: EventType, currency: str) -> dict[str, Any]:
    schema = event_schema(event, currency)
    schema["properties"] = {"type": {"const": event.name}, **schema["properties"]}
    schema["required"] = ["type", *schema["required"]]
    schema["examples"] = [{"type": event.name, **schema["examples"][0]}]
    return schema


def _features(project: Project) -> dict[str, Any]:
    entities = list(dict.fromkeys(g.entity for g in project.groups))
    return {
        "operationId": "features",
        "summary": "Read the windows and profiles of a key as of now",
        "description": "Counts nothing. A key without events has counts of 0. While the worker is "
        "away the online store's last values are answered, `degraded`.",
        "security": [{"key": ["features:read"]}],
        "parameters": [
            {
                "name": "entity",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "enum": entities},
            },
            {
                "name": "key",
                "in": "path",
                "required": True,
                "description": "percent-encoded; it may contain slashes",
                "schema": {"type": "string", "minLength": 1},
            },
        ],
        "responses": {
            "200": json_answer("The values", "KeyFeatures"),
            **problems("401", "403", "404", "503"),
        },
    }


def _table(project: Project) -> dict[str, Any]:
    time = {"type": "integer", "format": "int64", "minimum": 0}
    return {
        "operationId": "table",
        "summary": "Read what a table counted, window by window",
        "description": "Windows that overlap [since, until), by default the last 60. A window is "
        "final once events that arrive later than its table allows would be late; those are "
        "counted in `late` and change nothing. Rows of a window that is not final may grow.",
        "security": [{"key": ["features:read"]}],
        "parameters": [
            {
                "name": "name",
                "in": "path",
                "required": True,
                "schema": _names(t.name for t in project.tables),
            },
            *(
                {"name": n, "in": "query", "schema": time, "description": "ms since 1970 UTC"}
                for n in ("since", "until")
            ),
        ],
        "responses": {
            "200": json_answer("The rows", "TableRows"),
            **problems("400", "401", "403", "404", "503"),
        },
    }


def _experiment() -> dict[str, Any]:
    return {
        "operationId": "experiment",
        "summary": "Read the state of an experiment",
        "description": "By `name@version`; a name alone is the version that runs, else the "
        "highest. Exposures are counted for the tenant of the key, one for each decision that was "
        "made with the arm.",
        "security": [{"key": ["decisions:read"]}],
        "parameters": [path_parameter("reference")],
        "responses": {
            "200": json_answer("The experiment", "ExperimentState"),
            **problems("401", "403", "404", "503"),
        },
    }


def _names(known: Iterable[str]) -> dict[str, Any]:
    names = list(known)
    return {"type": "string", "enum": names} if names else {"type": "string"}


def _plain(summary: str, name: str, *refused: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": json_answer("Yes", name), **problems(*refused)},
    }


def _text(summary: str, media: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media: {}}}},
    }
