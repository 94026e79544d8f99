"""A project that contradicts itself is refused where it is declared, in words that help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.payments import project as payments
from raypipe.clock import DAY_MS
from raypipe.errors import DeclarationError
from raypipe.events.schema import AMOUNT_LIMIT, EventType, Field, Kind
from raypipe.project import Entity, Label, Model, Project, load_project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, distinct, last, maximum, mean, std, total

SALE = EventType(
    "sale",
    (
        Field("buyer", Kind.STRING),
        Field("device", Kind.STRING, required=False),
        Field("amount", Kind.AMOUNT),
        Field("tip", Kind.AMOUNT, required=False),
        Field("items", Kind.INTEGER, minimum=0, maximum=1_000),
        Field("stock", Kind.INTEGER),
        Field("debt", Kind.INTEGER, minimum=-AMOUNT_LIMIT, maximum=0),
        Field("edge", Kind.INTEGER, minimum=1 - AMOUNT_LIMIT, maximum=AMOUNT_LIMIT - 1),
        Field("weight", Kind.NUMBER),
        Field("gift", Kind.BOOLEAN),
        Field("due", Kind.TIME),
        Field("channel", Kind.CHOICE, choices=("shop", "web")),
        Field("currency", Kind.CURRENCY),
    ),
)
RETURN = EventType("return", (Field("sale_id", Kind.STRING), Field("buyer", Kind.STRING)))


def view(*aggregates: Any, name: str = "buyer", **changes: Any) -> WindowView:
    fields = {"entity": "buyer", "event": "sale", "key": "buyer"} | changes
    return WindowView(name, aggregates=aggregates or (count(),), **fields)


GOOD: dict[str, Any] = {
    "name": "shop",
    "events": (SALE, RETURN),
    "entities": (Entity("buyer"), Entity("device")),
    "views": (view(), view(name="device", entity="device", key="device")),
    "derived": (Derived("pace", "buyer_count_1h / buyer_count_1d"),),
    "decision": "sale",
    "label": Label("return", "sale_id", DAY_MS),
    "models": (Model("fraud", ("amount", "buyer_count_1h", "pace")),),
}


def refused(**changes: Any) -> DeclarationError:
    with pytest.raises(DeclarationError) as e:
        Project(**GOOD | changes)
    return e.value


def test_a_project_that_works() -> None:
    project = Project(**GOOD)
    assert project.raw_names == (
        *("event_time", "amount", "tip", "items", "stock", "debt", "edge", "weight"),
        *("gift", "due", "channel"),
    )
    assert project.window_names == tuple(n for v in project.views for n in v.column_names)
    assert project.feature_names == (*project.raw_names, *project.window_names, "pace")


@pytest.mark.parametrize(
    "aggregate", [total("amount"), mean("items"), maximum("edge"), std("items"), distinct("device")]
)
def test_what_can_be_aggregated(aggregate: Any) -> None:
    Project(**GOOD | {"views": (view(aggregate),), "derived": (), "models": ()})


@pytest.mark.parametrize("make", [total, mean, maximum, std])
@pytest.mark.parametrize(
    "column", ["tip", "stock", "debt", "weight", "gift", "due", "channel", "currency", "device"]
)
def test_only_required_bounded_integers_are_aggregated(make: Any, column: str) -> None:
    error = refused(views=(view(make(column)),))
    assert f"can't aggregate sale.{column}" in error.detail
    assert "required amount" in error.hint


@pytest.mark.parametrize("column", ["amount", "items", "weight", "gift", "due", "event_time"])
def test_distinct_counts_strings(column: str) -> None:
    detail = refused(views=(view(distinct(column)),)).detail
    assert f"distinct sale.{column} is not a string" in detail


@pytest.mark.parametrize(
    ("aggregate", "hint"),
    [
        (total("amuont"), "'amount'"),
        (last("amuont"), "'amount'"),
        (distinct("devise"), "'device'"),
        (count(where="amonut > 3", name="x"), "'amount'"),
        (count(where="chanel == 'web'", name="x"), "'channel'"),
        (distinct("zzz"), "device"),
    ],
)
def test_an_unknown_column_is_refused_with_the_nearest_or_the_known_ones(
    aggregate: Any, hint: str
) -> None:
    error = refused(views=(view(aggregate),))
    assert "unknown column sale." in error.detail
    assert hint in error.hint


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("device > 3", "of kind string, as a number"),
        ("channel > 0", "of kind choice, as a number"),
        ("amount == 'much'", "of kind amount, with text"),
        ("gift == 'yes'", "of kind boolean, with text"),
    ],
)
def test_a_condition_compares_what_can_be_compared(where: str, words: str) -> None:
    error = refused(views=(view(count(where=where, name="x")),))
    assert where in error.detail
    assert words in error.detail
    assert error.hint


def test_a_condition_on_a_choice_that_is_none_is_refused_with_the_choices() -> None:
    error = refused(views=(view(count(where="channel == 'onlin'", name="x")),))
    assert "'onlin' is no choice of sale.channel" in error.detail
    assert "Its choices: " in error.hint


def test_conditions_that_fit_are_taken() -> None:
    aggregates = (
        count(where="channel != 'web' and 10 <= amount < 20", name="a"),
        count(where="gift or is_missing(weight)", name="b"),
        count(where="currency == 'EUR' and due > event_time", name="c"),
    )
    Project(**GOOD | {"views": (view(*aggregates),), "derived": (), "models": ()})


def test_units_of_several_event_types_must_agree() -> None:
    """`amount` is money in one type and a number of pieces in the other."""
    other = EventType(
        "return",
        (
            *RETURN.fields,
            Field("amount", Kind.INTEGER, minimum=0, maximum=9),
        ),
    )
    views = (WindowView("buyer", "buyer", "sale", "buyer", (total("amount"),), also=("return",)),)
    error = refused(events=(SALE, other), views=views, derived=(), models=())
    assert "mixes units in amount_sum: sale.amount amount, return.amount integer" in error.detail
    assert "of=" in error.hint
    one = (WindowView("buyer", "buyer", "sale", "buyer", (total("amount", of="sale"),)),)
    Project(**GOOD | {"events": (SALE, other), "views": one, "derived": (), "models": ()})


@pytest.mark.parametrize("key", ["amount", "channel", "currency", "weight", "event_time"])
def test_a_key_is_a_string(key: str) -> None:
    assert f"key sale.{key} is not a string" in refused(views=(view(key=key),)).detail


def test_a_key_is_in_the_views_event_and_in_the_deciding_one() -> None:
    assert "key of unknown column sale.nobody" in refused(views=(view(key="nobody"),)).detail
    only_returns = EventType("return", (*RETURN.fields, Field("clerk", Kind.STRING)))
    error = refused(events=(SALE, only_returns), views=(view(event="return", key="clerk"),))
    assert "key of unknown column sale.clerk" in error.detail
    error = refused(views=(view(event="return", key="device", entity="device"),))
    assert "key of unknown column return.device" in error.detail


def test_a_key_of_another_type_in_the_deciding_event_is_refused() -> None:
    other = EventType("return", (Field("sale_id", Kind.STRING), Field("amount", Kind.STRING)))
    error = refused(events=(SALE, other), views=(view(event="return", key="amount"),))
    assert "key sale.amount is not a string" in error.detail


def test_an_entity_has_one_key() -> None:
    error = refused(views=(view(), view(name="other", key="device")))
    assert "several keys: ['buyer', 'device']" in error.detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": (view(entity="ghost"),)}, "unknown entity 'ghost'"),
        ({"views": (view(event="ghost"),)}, "unknown event type 'ghost'"),
        ({"decision": "ghost"}, "unknown event type 'ghost'"),
        ({"decision": "ghost", "views": ()}, "unknown event type 'ghost'"),
        ({"label": Label("ghost", "sale_id", 1)}, "unknown event type 'ghost'"),
        ({"label": Label("return", "ghost", 1)}, "has no field 'ghost'"),
        ({"label": Label("sale", "amount", 1)}, "label reference 'amount' is not a string"),
    ],
)
def test_unknown_names(changes: dict[str, Any], words: str) -> None:
    assert words in refused(**changes).detail


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"events": (SALE, SALE)}, "event"),
        ({"entities": (Entity("buyer"), Entity("device"), Entity("buyer"))}, "entity"),
        ({"views": (view(), view())}, "view"),
        ({"models": (Model("a", ("pace",)), Model("a", ("amount",)))}, "model"),
        ({"derived": (Derived("pace", "1"), Derived("pace", "2"))}, "feature"),
        ({"derived": (Derived("amount", "1"),)}, "feature"),
        ({"derived": (Derived("buyer_count_1h", "1"),)}, "feature"),
    ],
)
def test_names_are_unique(changes: dict[str, Any], what: str) -> None:
    assert refused(**changes).detail.startswith(f"{what} names must be unique; twice: ")


def test_two_views_that_spell_one_feature_are_refused() -> None:
    sale = replace(SALE, fields=(*SALE.fields, Field("tax_amount", Kind.AMOUNT)))
    views = (view(total("tax_amount", ["1h"])), view(total("amount", ["1h"]), name="buyer_tax"))
    error = refused(events=(sale, RETURN), views=views)
    assert "twice: buyer_tax_amount_sum_1h" in error.detail


def test_a_derived_feature_must_compile() -> None:
    error = refused(derived=(Derived("bad", "buyer_count_1x / 2"),))
    assert "unknown name 'buyer_count_1x'" in error.detail
    assert "buyer_count_1" in error.hint
    assert "not allowed" in refused(derived=(Derived("bad", "amount ** 2"),)).detail
    assert "unknown name 'buyer'" in refused(derived=(Derived("bad", "buyer + 1"),)).detail


def test_a_model_uses_declared_features() -> None:
    error = refused(models=(Model("m", ("amount", "ghost", "buyer")),))
    assert "unknown features ['ghost', 'buyer']" in error.detail
    assert "raypipe features" in error.hint
    assert "has no features" in refused(models=(Model("m", ()),)).detail


def test_unknown_parts_are_refused_by_name() -> None:
    project = Project(**GOOD)
    for look, hint in ((project.event, "sale, return"), (project.model, "fraud")):
        with pytest.raises(DeclarationError, match="ghost") as e:
            look("ghost")
        assert hint in e.value.hint
    with pytest.raises(DeclarationError, match="ghost"):
        project.entity("ghost")
    assert project.event("return") is RETURN
    assert project.entity("buyer").name == "buyer"
    assert project.model("fraud").features[0] == "amount"


def test_the_definition_hash_follows_values_and_not_words() -> None:
    base = Project(**GOOD)
    worded = replace(SALE, description="words")
    same = Project(
        **GOOD
        | {
            "events": (worded, RETURN),
            "derived": (replace(GOOD["derived"][0], description="words"),),
            "models": (Model("other", ("amount",), "words", "owner"),),
        }
    )
    assert same.definition_hash == base.definition_hash
    others = [
        {"name": "other"},
        {"events": (replace(SALE, version=2), RETURN)},
        {"views": (view(count(["1h", "1d"])),)},
        {"derived": (Derived("pace", "buyer_count_1d / buyer_count_1h"),)},
        {"label": Label("return", "sale_id", 2 * DAY_MS)},
        {"label": Label("return", "buyer", DAY_MS)},
    ]
    hashes = {Project(**GOOD | change).definition_hash for change in others}
    assert len(hashes | {base.definition_hash}) == len(others) + 1


@pytest.mark.parametrize(
    "reference",
    [
        *("", ":", ":project", "ghost:project", "./shop.py:project", "features.ghost:project"),
        *("features.payments", "features.payments:", "features.payments:ghost"),
        "features.payments:project:x",
    ],
)
def test_what_is_not_there_cannot_be_loaded(reference: str) -> None:
    with pytest.raises(DeclarationError) as e:
        load_project(reference)
    assert repr(reference) in e.value.detail
    assert "module:attribute" in e.value.hint


def test_what_is_no_project_cannot_be_loaded() -> None:
    with pytest.raises(DeclarationError, match="is a tuple, not a Project"):
        load_project("features.payments:VIEWS")


def test_loading_gives_the_declared_project() -> None:
    assert load_project("features.payments:project") is payments


@pytest.mark.usefixtures("_elsewhere")
def test_a_project_module_that_is_broken_says_why() -> None:
    with pytest.raises(DeclarationError, match="can't be imported") as e:
        load_project("broken_project_of_a_user:project")
    assert "no_such_package" in e.value.detail


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_project_of_a_user.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
