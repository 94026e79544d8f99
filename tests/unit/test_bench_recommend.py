"""The parts of the suite `recommend` that need no running system."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks.peers.implicit_service import application
from benchmarks.recommendations.home import World, config, load_history, read_world
from benchmarks.recommendations.visitors import Judge, K, Visits, bodies, peer_bodies
from raypipe.config import Settings
from raypipe.log.opening import open_log


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "home"


@pytest.fixture(scope="module")
def world(home: Path) -> World:
    home.mkdir()
    settings = Settings(home=home, project="features.commerce:project")
    load_history(settings, config(items=200, users=300, days=20, seed=3))
    return read_world(settings)


def test_the_log_holds_what_the_world_knows(home: Path, world: World) -> None:
    rows: dict[str, list[pa.RecordBatch]] = {}
    with closing(open_log(f"sqlite:///{home}/log", home / "cache", create=False)) as log:
        assert log.end(0) == world.rows
        for chunk in log.read(0, 0, world.rows):
            rows.setdefault(chunk.kind, []).append(chunk.batch)
    tables = {kind: pa.Table.from_batches(batches) for kind, batches in rows.items()}
    orders = set(
        zip(
            tables["order_line"]["customer_id"].to_pylist(),
            tables["order_line"]["item_id"].to_pylist(),
            strict=True,
        )
    )
    assert orders
    assert orders == {(user, item) for user, items in world.bought.items() for item in items}
    listing = tables["listing"].sort_by("event_time").to_pylist()
    assert world.in_stock == {
        item
        for item in world.known
        if [r for r in listing if r["item_id"] == item][-1]["available"]
    }
    assert 0 < len(world.in_stock) < len(world.known)
    views = tables["page_view"].filter(pc.is_valid(tables["page_view"]["customer_id"]))
    weight = len(views) + 3 * pc.sum(pc.is_valid(tables["cart"]["customer_id"])).as_py()
    assert pc.sum(world.pairs["weight"]).as_py() == weight + 5 * len(tables["order_line"])


def answer(items: list[str], **more: object) -> bytes:
    plain = {"items": [{"item_id": i, "propensity": 0.5} for i in items], "history": 4}
    return json.dumps(plain | more).encode()


def test_a_wrong_list_is_told_by_what_is_wrong(world: World) -> None:
    user = next(iter(world.bought))
    bought = next(i for i in world.bought[user] if i in world.in_stock)
    good = sorted(world.in_stock - world.bought[user])[:K]
    gone = next(iter(world.known - world.in_stock - world.bought[user]))
    judge = Judge(world, [user, None], strict=True)
    assert judge(0, 200, answer(good, explored=True)) == ""
    assert judge(1, 200, answer([bought, *good[1:]], history=0)) == ""
    assert (judge.explored, judge.histories) == (1, 1)
    wrong = {
        "status 503": judge(0, 503, b"{}"),
        "9 items": judge(0, 200, answer(good[1:])),
        "an item twice": judge(0, 200, answer([*good[:-1], good[0]])),
        "an unknown item": judge(0, 200, answer(["nothing", *good[1:]])),
        "an item out of stock": judge(0, 200, answer([gone, *good[1:]])),
        "an item that was bought": judge(0, 200, answer([bought, *good[1:]])),
        "degraded": judge(0, 200, answer(good, degraded=True)),
        "a known visitor without a history": judge(0, 200, answer(good, history=0)),
    }
    assert {said: said for said in wrong} == wrong
    zero = json.loads(answer(good))
    zero["items"][3]["propensity"] = 0.0
    assert judge(0, 200, json.dumps(zero).encode()) == "a propensity that is none"
    assert judge(0, 200, b"[]").startswith("no answer")


def test_visitors_are_the_same_for_a_seed_and_both_servers_get_them(world: World) -> None:
    visitors = Visits(world, 5).take(400)
    assert visitors == Visits(world, 5).take(400)
    new = visitors.count(None)
    assert 15 < new < 75
    ours = [json.loads(b) for b in bodies(visitors, first=7)]
    theirs = [json.loads(b) for b in peer_bodies(visitors)]
    assert [b.get("user") for b in ours] == [b["user"] for b in theirs] == visitors
    assert len({b["session"] for b in ours if "session" in b}) == new


def test_the_peer_answers_its_own_judge(world: World, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(world.pairs, tmp_path / "pairs.parquet")
    app = application(str(tmp_path / "pairs.parquet"))
    visitors = Visits(world, 5).take(30)
    asked = [*peer_bodies(visitors), b'{"k": 1}']

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://peer") as client:
            return [
                await client.post("/recommendations", content=b, headers=headers) for b in asked
            ]

    *answers, popular = asyncio.run(ask())
    judge = Judge(world, visitors, strict=False)
    assert [judge(n, a.status_code, a.content) for n, a in enumerate(answers)] == [""] * 30
    assert len({a.text for a in answers}) > 10
    counts = world.pairs.group_by("item").aggregate([("user", "count")])
    most = int(np.max(counts["user_count"].to_numpy()))
    taken = counts.filter(pc.equal(counts["item"], popular.json()["items"][0]["item_id"]))
    assert taken["user_count"].to_pylist() == [most]
