"""The catalogue tells of every feature what the declaration says, and its page harms nobody."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from features.builds import Manifest
from features.catalogue import AT_REQUEST, NOT_BUILT, Catalogue, closure, describe
from features.catalogue_page import render
from features.commerce import project as commerce
from features.payments import project as payments
from raypipe.errors import NotFound
from raypipe.project import Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, spans
from tests.domains.greenhouse import project as greenhouse

PROJECTS = pytest.mark.parametrize(
    "project", [payments, commerce, greenhouse], ids=lambda p: p.name
)


@PROJECTS
def test_every_feature_is_there_once_in_order_with_its_facts(project: Project) -> None:
    catalogue = describe(project, "x:y")
    assert [f.name for f in catalogue.features] == list(project.feature_names)
    for feature in catalogue.features:
        assert feature.definition
        assert feature.sources
        assert all(
            column in project.event(event)
            for event, column in (s.split(".") for s in feature.sources)
        )
        stored = feature.kind in ("window", "profile")
        assert stored == bool(feature.view) == bool(feature.span)
        assert set(feature.inputs) <= set(project.feature_names)
        assert (feature.kind == "derived") or not feature.inputs
        assert feature.owner or project is greenhouse or not (feature.view or feature.models)


@PROJECTS
def test_lineage_leads_from_event_columns_to_every_model(project: Project) -> None:
    catalogue = describe(project, "x:y")
    above: dict[str, set[str]] = {}
    for source, target in catalogue.edges:
        above.setdefault(source, set()).add(target)

    def reached(name: str) -> set[str]:
        found = {name}
        for up in above.get(name, ()):
            found |= reached(up)
        return found

    for model in project.models:
        read = {f for name in model.features for f in closure(project, name)}
        assert {f.name for f in catalogue.features if model.name in f.models} == read
        for name in read:
            assert f"model {model.name}" in reached(name)
            for source in catalogue.feature(name).sources:
                assert name in reached(source)


def test_one_feature_of_each_kind_in_full() -> None:
    catalogue = describe(payments, "x:y")
    channel = catalogue.feature("channel")
    assert channel.definition == "choice of the transaction; 0 = pos, 1 = online, 2 = recurring"
    assert (channel.entity, channel.freshness) == ("", AT_REQUEST)
    window = catalogue.feature("customer_count_90d_before_14d")
    assert window.sources == ("transaction.customer_id",)
    assert (window.entity, window.span) == ("customer", "90d before 14d")
    assert (window.owner, window.models) == ("payments-risk", ("fraud",))
    assert window.services == ("fraud_online", "fraud_v1")
    derived = catalogue.feature("merchant_risk_rate_1d")
    assert derived.inputs == ("merchant_risk_count_1d", "merchant_count_8d_before_7d")
    assert derived.sources == ("transaction.merchant_id", "chargeback.merchant_id")
    assert derived.entity == "merchant"
    with pytest.raises(NotFound) as e:
        catalogue.feature("merchant_risk_rate")
    assert "merchant_risk_rate_1d" in e.value.hint


def test_conditions_and_several_event_types_are_sources() -> None:
    view = WindowView(
        "valve",
        "valve",
        "opening",
        "valve",
        (count(where="mode == 'spray'", of="opening", name="sprayed"), count(name="all")),
        spans("1h/1m"),
        also=("flood",),
    )
    project = dataclasses.replace(
        greenhouse,
        views=(view,),
        derived=(),
        models=(dataclasses.replace(greenhouse.models[0], features=("litres",)),),
    )
    catalogue = describe(project, "x:y")
    sprayed = catalogue.feature("valve_sprayed_count_1h")
    assert sprayed.sources == ("opening.valve", "opening.mode")
    assert catalogue.feature("valve_all_count_1h").sources == ("opening.valve", "flood.valve")
    assert (sprayed.models, sprayed.services) == ((), ())


def test_a_profile_comes_from_the_fields_that_its_facts_read() -> None:
    found = describe(payments, "x:y", days={"merchant_profile": 20_000})
    rate = found.feature("merchant_profile_chargeback_rate")
    assert (rate.kind, rate.entity, rate.span) == ("profile", "merchant", "365d")
    assert rate.sources == (
        "transaction.merchant_id", "transaction.event_time", "transaction.amount",
        "chargeback.merchant_id", "chargeback.amount",
    )  # fmt: skip
    assert rate.freshness == "2024-10-05T00:00:00+00:00"
    assert found.feature("customer_profile_amount_p90").freshness == NOT_BUILT
    ratio = found.feature("amount_to_p90")
    assert ratio.inputs == ("amount", "customer_profile_amount_p90")
    assert "transaction.customer_id" in ratio.sources
    assert ratio.entity == "customer"


def _build(views: dict[str, str]) -> Manifest:
    return Manifest(
        build="b-1",
        definition_hash="",
        tenant="default",
        end_offset=7,
        rows=3,
        last_event_ms=1_790_000_000_000,
        log="",
        partitions=1,
        rate=0.0,
        views=views,
        segments={},
        days=[],
        events={},
    )


def test_freshness_is_that_of_a_build_of_the_same_definition() -> None:
    hashes = {v.name: v.definition_hash for v in greenhouse.views}
    catalogue = describe(greenhouse, "x:y", _build(hashes | {"floods": "older"}))
    assert (catalogue.build, catalogue.end_offset) == ("b-1", 7)
    assert catalogue.feature("valve_count_2d").freshness == "2026-09-21T14:13:20+00:00"
    assert catalogue.feature("floods_count_2d").freshness == NOT_BUILT


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.links += [named["href"] or ""] if tag == "a" else []
        self.loads += [v or "" for k, v in attrs if k in ("src", "srcset", "action", "data")]
        self.loads += [named.get("href") or ""] if tag == "link" else []
        assert not [k for k in named if k.startswith("on")]


def _page(catalogue: Catalogue) -> _Page:
    return _Page(render(catalogue))


@PROJECTS
def test_the_page_holds_all_and_loads_nothing(project: Project) -> None:
    catalogue = describe(project, "x:y")
    text, page = render(catalogue), _page(catalogue)
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert {f"f-{n}" for n in project.feature_names} <= set(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not re.findall(r"https?://|@import|url\(", text)
    assert 'name="viewport"' in text
    assert '<html lang="en">' in text
    assert "default-src 'none'" in text


def test_what_a_project_says_is_text_on_the_page() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    project = dataclasses.replace(
        greenhouse,
        name=evil,
        derived=(*greenhouse.derived, Derived("bad", "litres * 2", evil)),
        models=(dataclasses.replace(greenhouse.models[0], owner=evil),),
    )
    plain, page = _page(describe(greenhouse, "x:y")), _page(describe(project, evil))
    assert page.tags.count("script") == plain.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.loads == []
