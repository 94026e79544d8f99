"""Requests that schemathesis makes from the published OpenAPI document, good and bad ones: every
answer is one that the document knows, and none is a failure of the server."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from tests.domains.greenhouse_line import Served

pytest_plugins = ["tests.domains.greenhouse_line"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance)
EXAMPLES = 25
"""Of each route."""


def test_every_answer_is_a_documented_one(greenhouse: Served) -> None:
    published = schemathesis.openapi.from_url(
        f"{greenhouse.url}/openapi.json", proxies={"http": "", "https": ""}
    )
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update(greenhouse.headers)
        for operation in published.get_all_operations():
            fuzz(operation.ok(), session)


def fuzz(operation: Any, session: requests.Session) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def tried(case: schemathesis.Case) -> None:
        case.call_and_validate(session=session, checks=list(CHECKS), timeout=60)

    tried()


def test_the_document_has_every_route_that_is_served(greenhouse: Served) -> None:
    with greenhouse.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
        for path, operations in paths.items():
            given = path.replace("{", "").replace("}", "")
            for method in operations:
                # Without a body and a key a route refuses or answers; 404 and 405 are of no route.
                answer = client.request(method, given, headers={"Authorization": "none"})
                assert answer.status_code not in (404, 405), (method, path)
