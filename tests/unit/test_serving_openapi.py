from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from features.commerce import project as commerce
from features.payments import project as payments
from raypipe.events.row import RowValidator
from raypipe.project import Project
from serving.docs import render
from serving.openapi import document, example
from tests.unit.serving_kit import HOT, NOW, PROJECT, Service, body, train

PROJECTS = pytest.mark.parametrize("project", [PROJECT, payments, commerce], ids=lambda p: p.name)


def _schema(project: Project) -> dict[str, Any]:
    whole = document(project, "EUR", 65_536)
    content = whole["paths"]["/v1/decisions"]["post"]["requestBody"]["content"]
    return whole | content["application/json"]["schema"]


@PROJECTS
def test_the_document_describes_the_declared_event_and_resolves(project: Project) -> None:
    whole = document(project, "EUR", 65_536)
    assert whole["openapi"].startswith("3.1")
    text = json.dumps(whole)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in whole["components"]["schemas"]
    body_schema = _schema(project)
    jsonschema.Draft202012Validator.check_schema(body_schema)
    name = body_schema["$ref"].rsplit("/", 1)[1]
    declared = whole["components"]["schemas"][name]
    assert list(declared["properties"]) == [f.name for f in project.decision_event.client_fields]
    assert "tenant" not in declared["properties"]


@PROJECTS
def test_the_example_is_accepted_by_schema_and_validator(project: Project) -> None:
    sample = example(project.decision_event, "EUR")
    jsonschema.validate(sample, _schema(project))
    checked = RowValidator(project.decision_event, "EUR").check(dict(sample), "default", NOW)
    assert checked["event_id"] == sample["event_id"]


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"tenant": "x"},
        {"sensor_id": ...},
        {"sensor_id": None},
        {"sensor_id": ""},
        {"sensor_id": "s" * 17},
        {"cost": "1"},
        {"cost": -1},
        {"cost": 2**40},
        {"heat": 1e6},
        {"side": "up"},
        {"currency": "USD"},
        {"event_time": NOW // 1000},
        {"tampered": 1},
    ],
)
def test_what_the_validator_refuses_the_schema_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body(**change), _schema(PROJECT))


@pytest.mark.parametrize("change", [{}, {"side": None}, {"side": ...}, {"ticks": 2**62}])
def test_what_the_validator_accepts_the_schema_accepts(change: dict[str, Any]) -> None:
    jsonschema.validate(body(**change), _schema(PROJECT))
    RowValidator(PROJECT.decision_event, "EUR").check(body(**change), "default", NOW)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    home = tmp_path_factory.mktemp("home")
    train(home)
    return Service(home, home / "tenants.db")


def test_every_answer_fits_its_schema(service: Service) -> None:
    whole = json.loads(service.get("/openapi.json", key=None).content)

    def check(name: str, answer: Any) -> None:
        schema = whole | {"$ref": f"#/components/schemas/{name}"}
        jsonschema.validate(answer.json(), schema)
        # Nothing is answered that the document doesn't mention.
        assert set(answer.json()) <= set(whole["components"]["schemas"][name]["properties"])

    for change in ({}, {"event_id": "r-2", **HOT}):
        decided = service.post(body(**change))
        check("Decision", decided)
        check("DecisionDetail", service.get(f"/v1/decisions/{decided.json()['decision_id']}"))
    check("KeyFeatures", service.get("/v1/features/sensor/s-1"))
    check("Problem", service.post(body(cost="1", heat=None)))
    check("Problem", service.post(body(), key=None))
    check("Health", service.get("/healthz", key=None))
    check("Readiness", service.get("/readyz", key=None))


def test_every_documented_route_exists_and_every_route_is_documented(service: Service) -> None:
    whole = json.loads(service.get("/openapi.json", key=None).content)
    documented = {(path, method.upper()) for path, ms in whole["paths"].items() for method in ms}
    served = {
        (r.path.replace(":path", ""), m)
        for r in service.app.routes
        for m in r.methods
        if m != "HEAD"
    }  # type: ignore[attr-defined]
    assert documented == served


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if "src" in given or tag == "link":
            self.loads.append(tag)
        if tag == "a":
            self.links.append(str(given.get("href")))


@PROJECTS
def test_the_page_stands_alone_and_lists_routes_fields_and_problems(project: Project) -> None:
    whole = document(project, "EUR", 65_536)
    made = render(whole)
    text = made.page.decode()
    page = _Page(text)
    assert page.loads == []
    assert "//" not in "".join(page.links)
    assert len(page.ids) == len(set(page.ids))
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    for path in whole["paths"]:
        assert path in text
    for field in project.decision_event.client_fields:
        assert f"<code>{field.name}</code>" in text
    assert {"problem-invalid_event", "problem-unavailable", "problem-internal"} <= set(page.ids)


def test_the_page_may_run_its_own_script_only(service: Service) -> None:
    answer = service.get("/docs", key=None)
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]+'", policy)


def test_text_of_a_declaration_cannot_break_out_of_the_page() -> None:
    whole = document(PROJECT, "EUR", 65_536)
    whole["info"]["title"] = "<script>alert(1)</script>"
    assert b"<script>alert" not in render(whole).page


def test_the_scripts_hash_is_the_one_of_the_page(service: Service) -> None:
    answer = asyncio.run(service.call("GET", "/docs"))
    script = re.search(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]
