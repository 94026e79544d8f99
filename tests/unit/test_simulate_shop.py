"""The simulated shop: same seed, same days; its events are valid; its tastes can be found."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from features.commerce import project
from raypipe.clock import DAY_MS
from raypipe.errors import ConfigError, UsageError
from raypipe.events.validate import validate
from raypipe.simulate.shop import tables
from raypipe.simulate.shop.clicks import attraction, clicks, examined, expected
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.world import Shop

START = 1_790_035_200_000  # midnight UTC
CONFIG = ShopConfig(start_ms=START, days=40, shoppers=1_500, items=400, groups=6)
KINDS = ("page_view", "cart", "order", "order_line", "listing")


@cache
def shop() -> Shop:
    return Shop(CONFIG)


@cache
def history() -> dict[str, pa.Table]:
    days = [tables.events(shop(), day) for day in range(CONFIG.days)]
    return {kind: pa.concat_tables([d[kind] for d in days]) for kind in KINDS}


def test_a_day_is_the_same_each_time_and_another_seed_gives_another() -> None:
    again = tables.events(Shop(CONFIG), 9)
    assert all(again[kind].equals(tables.events(shop(), 9)[kind]) for kind in KINDS)
    other = ShopConfig(start_ms=START, days=40, shoppers=1_500, items=400, groups=6, seed=8)
    assert not tables.events(Shop(other), 9)["page_view"].equals(again["page_view"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_accepted_and_has_its_own_id(kind: str) -> None:
    table = history()[kind]
    checked = validate(
        project.event(kind),
        table,
        tenant="default",
        currency="EUR",
        received_at=None,
        now=START + 60 * DAY_MS,
    )
    assert (len(checked.rejected), len(checked.accepted)) == (0, len(table))
    assert len(set(table["event_id"].to_pylist())) == len(table) > 50
    times = table["event_time"].to_numpy()
    assert START <= times.min() <= times.max() < CONFIG.end_ms


def test_an_order_is_the_sum_of_its_lines_which_were_put_into_the_cart() -> None:
    lines, orders = history()["order_line"].to_pylist(), history()["order"].to_pylist()
    carted = {(r["session_id"], r["item_id"]) for r in history()["cart"].to_pylist()}
    viewed = {(r["session_id"], r["item_id"]) for r in history()["page_view"].to_pylist()}
    total: dict[str, int] = {}
    for line in lines:
        total[line["order_id"]] = total.get(line["order_id"], 0) + line["quantity"] * line["price"]
        assert (line["session_id"], line["item_id"]) in carted
    assert carted <= viewed
    assert {o["order_id"]: o["amount"] for o in orders} == total
    views = history()["page_view"]
    share = views["customer_id"].null_count / len(views)
    assert share == pytest.approx(CONFIG.anonymous_share, abs=0.03)


def test_only_what_is_on_the_shelf_is_looked_at() -> None:
    for day in (0, 20, 39):
        looks = shop().looks(day)
        assert shop().items.on_shelf(day)[looks.item].all()
        assert looks.shopper.max() < shop().shoppers.known(day)
    launched = (shop().items.launch > 0).mean()
    assert launched == pytest.approx(CONFIG.launched_share, abs=0.07)


def test_items_rise_and_fade_and_have_their_season() -> None:
    config = ShopConfig(start_ms=START, days=365, items=300, season=2.0, fading_share=1.0)
    items = Shop(config).items
    early, late = items.interest(30), items.interest(90)
    both = np.isfinite(early) & np.isfinite(late) & (items.launch < 20)
    season = early[both] - late[both]
    same = items.category[both]
    means = [season[same == c].mean() for c in np.unique(same)]
    assert np.std(means) > 0.5  # categories move apart
    calm = Shop(ShopConfig(start_ms=START, days=365, items=300, season=0.0, fading_share=1.0))
    lost = calm.items.interest(30)[both] - calm.items.interest(90)[both]
    assert lost == pytest.approx(60 / calm.items.life[both], abs=0.03)


def test_people_look_at_their_own_style_and_without_taste_they_do_not() -> None:
    def share(taste: float) -> float:
        made = Shop(
            ShopConfig(start_ms=START, days=5, shoppers=1_500, items=400, groups=6, taste=taste)
        )
        looks = made.looks(3)
        same = made.shoppers.group[looks.shopper] == made.items.group[looks.item]
        return float(same.mean())

    assert share(0.0) < 0.27  # one in six, and what is popular
    assert share(3.0) > 0.4


def test_clicks_are_as_frequent_as_expected_and_fade_down_the_list() -> None:
    rng = np.random.default_rng(0)
    who = rng.integers(0, CONFIG.shoppers, 20_000)
    shown = rng.integers(0, CONFIG.items, (20_000, 5))
    chance = expected(shop(), 5, who, shown)
    clicked = clicks(shop(), 5, who, shown)
    deviation = np.sqrt((chance * (1 - chance)).sum(0))
    assert (np.abs(clicked.sum(0) - chance.sum(0)) < 4.5 * deviation).all()
    assert chance == pytest.approx(attraction(shop(), 5, who, shown) * examined(5))
    assert (chance[:, 0] >= 0).all()
    assert np.array_equal(clicked, clicks(shop(), 5, who, shown))
    assert not np.array_equal(clicked, clicks(shop(), 5, who, shown, name=1))
    empty = np.full((2, 5), -1)
    assert not clicks(shop(), 5, who[:2], empty).any()
    off = np.flatnonzero(~shop().items.on_shelf(0))[:5]
    assert not expected(shop(), 0, who[:1], off[None, :]).any()


def test_tastes_are_found_by_the_retriever_and_their_uplift_is_measured(tmp_path: Path) -> None:
    """End to end without a server: learn from the log, then show lists to the same people."""
    from raypipe.lake import Place
    from raypipe.runtime.progress import reporter
    from training.recommend import artefact
    from training.recommend.fit import Options, fit

    def log(kind: str) -> ds.Dataset:
        table = history()[kind]
        return ds.dataset(table.append_column("offset", pa.array(np.arange(len(table)))))

    made = fit(log, Place.at(tmp_path), Options(ks=(10,)), reporter(quiet=True))
    assert made.blend.gain(made.popular, "ndcg", 10).low > 0

    loaded = artefact.load(made.version)
    from training.recommend.events import read_interactions

    histories = read_interactions(log).matrix()
    popular = next(p for p in loaded.retriever.parts if p.name == "popular").retriever
    users = [int(u.removeprefix("shopper_")) for u in read_interactions(log).users.to_pylist()]
    number = np.array([int(i.removeprefix("item_")) for i in loaded.items.to_pylist()])
    gained = {}
    for name, retriever in (("blend", loaded.retriever), ("popular", popular)):
        ranked = retriever.retrieve(histories, 10)
        shown = np.full((len(users), 10), -1)
        place = np.arange(len(ranked.columns)) - np.repeat(ranked.starts[:-1], ranked.sizes)
        shown[ranked.row_of, place] = number[ranked.columns]
        gained[name] = expected(shop(), CONFIG.days, np.array(users), shown).sum(1).mean()
    assert gained["blend"] > 1.2 * gained["popular"]


def test_impossible_shops_are_refused() -> None:
    with pytest.raises(ConfigError, match="items is 3"):
        ShopConfig(start_ms=START, items=3)
    with pytest.raises(ConfigError, match=r"seed is 1.5(.|\n)*whole number"):
        ShopConfig(start_ms=START, seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="day -1"):
        shop().looks(-1)
