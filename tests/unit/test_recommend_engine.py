"""The engine beside training: the same columns for the same moments, and what changes an answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec import structs

from features.commerce import project
from features.commerce_profiles import SHOPPER_PROFILE
from features.log_files import open_log
from features.profiles.lookup import ProfileReader
from raypipe.clock import DAY_MS
from raypipe.errors import IntegrityError, NotFound
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import reporter
from serving.recommend import engine as module
from serving.recommend.engine import Wish
from serving.recommend.exploration import Exploration
from serving.recommend.rules import Filters
from serving.recommend.selection import Selection
from serving.recommend.stage import Stage
from tests.unit import recommend_home as home_kit
from training import registry
from training.recommend.catalogue import read_catalogue
from training.recommend.events import read_interactions
from training.recommend.ranking import artefact
from training.recommend.ranking.choosing import Chosen, least_known, plainly
from training.recommend.ranking.features import Attributes, Columns, Table
from training.recommend.ranking.fit import fit
from training.recommend.ranking.lambdarank import LightGBM
from training.recommend.ranking.lessons import by_moment
from training.recommend.ranking.moments import Moments, histories
from training.recommend.ranking.port import Growth, Order
from training.recommend.ranking.profiles import LoggedProfile
from training.recommend.ranking.spans import Span, scored
from training.recommend.ranking.windows import LoggedWindows
from training.recommend.rows import empty

pytest_plugins = ["tests.unit.recommend_fixtures"]

NOW = home_kit.NOW


@pytest.fixture
def home(shop_home: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(shop_home, tmp_path / "home"))


@pytest.fixture
def stage(home: Path) -> Iterator[Stage]:
    with closing(opened(home)) as stage:
        yield stage


def opened(home: Path, selection: Selection | None = None) -> Stage:
    settings = home_kit.settings(home)
    version = registry.locate(settings.lake / artefact.FOLDER, "shop")
    return Stage.open(settings, project, version, home_kit.PLAN, selection or Selection())


def ids(stage: Stage, found: Any) -> list[str]:
    return [stage.engine.loaded.retriever.items[int(c)].as_py() for c in found.shown.codes]


def put(home: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    schema = project.event(kind).arrow_schema
    with closing(SqliteLog(home / "log")) as log:
        end = log.end(0)
        whole = [
            {"tenant": "default", "event_id": f"x{end + n}", "received_at": NOW} | r
            for n, r in enumerate(rows)
        ]
        batch = pa.RecordBatch.from_pylist(whole, schema)
        log.append(0, [(kind, batch)], producer="test", seq=log.end(0))


def view(item: str, user: str | None, session: str, at: int = NOW) -> dict[str, Any]:
    return {"customer_id": user, "session_id": session, "item_id": item, "event_time": at}


def test_columns_of_a_request_have_the_bits_of_training(home: Path) -> None:
    """Days that came after the version, followed live; then training reads the whole log."""
    home_kit.append(home, range(home_kit.DAYS, home_kit.CONFIG.days))
    with closing(opened(home)) as stage:
        stage.catch_up()
        loaded, end = stage.engine.loaded, stage.offset
        settings = home_kit.settings(home)
        with open_log(settings, project) as files:
            assert files.end == end
            interactions = read_interactions(files.table, joined=True)
            assert interactions.items == loaded.retriever.items
            catalogue = read_catalogue(files.table, interactions.items, as_of_ms=NOW + 1)
            windows = LoggedWindows(
                files.table,
                "default",
                interactions.items,
                interactions.users,
                home_kit.PLAN.item_views,
                home_kit.PLAN.user_views,
            )
            logged = LoggedProfile(SHOPPER_PROFILE, settings.lake, interactions.users)
            columns = Columns(interactions, Attributes.of(catalogue), windows, logged)
            online = ProfileReader((SHOPPER_PROFILE,), home, None)
            user = np.arange(0, len(interactions.users), 7, dtype=np.int32)
            count = len(user)
            at = Moments(
                user,
                np.full(count, NOW),
                np.full(count, end + 1),
                empty(count, len(interactions.items)),
            )
            known = histories(interactions, at, loaded.weights)
            retriever = loaded.retriever.retriever
            single = {p.name: p.retriever for p in retriever.parts} | loaded.beside
            barred = ~catalogue.available
            known_of: dict[str, int] = {}
            for row in range(count):
                one = known.take(np.array([row]))
                name = interactions.users[int(user[row])].as_py()
                stored = online.read({"customer_id": name}, NOW)
                profile = dict(zip(SHOPPER_PROFILE.column_names, stored.values, strict=True))
                wish = Wish(k=10, seed=0, user=name, profile=profile)
                known_of |= {name: stored.times[0]}
                served = stage.engine.table(wish, NOW, end)
                assert not barred[served.candidates.columns].any()
                seen = stage.engine._moment(wish, NOW, end).seen
                lists = scored(single, one, home_kit.PLAN.candidates, seen=seen)
                alone = Moments(user[row : row + 1], at.time[:1], at.offset[:1], at.truth.take([0]))
                expected = columns.table(alone, served.candidates, lists=lists)
                assert expected.names == served.names == loaded.manifest.columns
                assert np.array_equal(expected.x, served.x, equal_nan=True)
            online.close()
    assert count > 30
    newest = {key: (day + 1) * DAY_MS for key, day in home_kit.PROFILE}
    assert known_of == {name: newest.get(name, -1) for name in known_of}
    assert set(SHOPPER_PROFILE.column_names) < set(loaded.manifest.columns)


def test_a_click_of_a_session_changes_the_next_answer(home: Path, stage: Stage) -> None:
    wish = Wish(k=10, seed=0, session="fresh")
    before = stage.recommend(wish, NOW)
    assert before.length == 0
    assert {r.kind for r in before.reasons} == {"popular"}
    seen = ids(stage, before)
    put(home, "page_view", [view(seen[0], None, "fresh"), view(seen[1], None, "fresh", NOW + 1)])
    after = stage.recommend(wish, NOW + 2)
    assert after.length == 2
    assert not set(seen[:2]) & set(ids(stage, after))
    assert "because" in {r.kind for r in after.reasons}
    because = next(r for r in after.reasons if r.kind == "because")
    assert stage.engine.loaded.retriever.items[because.item].as_py() in seen[:2]
    assert because.did == "view"


def test_a_session_that_logs_in_joins_its_customer(home: Path, stage: Stage) -> None:
    user = stage.engine.loaded.known.users.ids[3].as_py()
    mine = stage.recommend(Wish(k=5, seed=0, user=user), NOW).length
    item = ids(stage, stage.recommend(Wish(k=1, seed=0, user=user), NOW))[0]
    put(home, "page_view", [view(item, None, "later")])
    assert stage.recommend(Wish(k=5, seed=0, user=user), NOW).length == mine
    # The request itself says whose session it is.
    assert stage.recommend(Wish(k=5, seed=0, user=user, session="later"), NOW).length == mine + 1
    put(home, "page_view", [view(item, user, "later", NOW + 1)])
    assert stage.recommend(Wish(k=5, seed=0, user=user), NOW + 2).length == mine + 2
    assert stage.recommend(Wish(k=5, seed=0, session="later"), NOW + 2).length == mine + 2


def test_a_replica_that_starts_again_knows_as_much(home: Path, stage: Stage) -> None:
    """Also of windows, which the older one has read at the same second before events came."""
    stage.recommend(Wish(k=9, seed=1), NOW)
    put(
        home, "page_view", [view("item_00000003", None, "s"), view("item_00000004", "someone", "t")]
    )
    item = stage.engine.loaded.retriever.items[2].as_py()
    put(home, "page_view", [view(item, None, "s"), view(item, "someone", "t")])
    with closing(opened(home)) as again:
        for wish in (Wish(k=9, seed=1, session="s"), Wish(k=9, seed=1, user="someone")):
            one, other = (s.recommend(wish, NOW) for s in (stage, again))
            assert one.length == other.length >= 1
            assert ids(stage, one) == ids(again, other)
            assert one.scores.tolist() == other.scores.tolist()
            tables = (s.engine.table(wish, NOW, s.offset).x for s in (stage, again))
            assert np.array_equal(*tables, equal_nan=True)


def test_what_is_asked_for_is_kept_to(home: Path, stage: Stage) -> None:
    shelf, items = stage.shelf, stage.engine.loaded.retriever.items
    assert len(stage.recommend(Wish(k=10, seed=0), NOW).shown) == 10
    top = stage.recommend(Wish(k=1, seed=0), NOW).shown.codes[0]
    name = stage.engine.loaded.known.catalogue.table.column("category")[int(top)].as_py()
    wanted = shelf.codes("category", [name])
    found = stage.recommend(Wish(k=10, seed=0, filters=Filters(categories=wanted)), NOW)
    assert len(found.shown)
    assert set(shelf.items.category[found.shown.codes]) == set(wanted.tolist())
    none = shelf.codes("category", ["no such category"])
    assert not len(stage.recommend(Wish(k=10, seed=0, filters=Filters(categories=none)), NOW).shown)
    cheap = stage.recommend(Wish(k=10, seed=0, filters=Filters(price_to=2_000.0)), NOW)
    assert (shelf.items.price[cheap.shown.codes] <= 2_000).all()
    first = stage.recommend(Wish(k=10, seed=0), NOW).shown.codes[0]
    hidden = stage.recommend(Wish(k=10, seed=0, hidden=np.array([first])), NOW)
    assert first not in hidden.shown.codes
    item = items[int(first)].as_py()
    put(home, "listing", [{"item_id": item, "available": False, "event_time": NOW}])
    assert first not in stage.recommend(Wish(k=10, seed=0), NOW + 1).shown.codes
    on_page = stage.recommend(Wish(k=10, seed=0, viewing=int(hidden.shown.codes[0])), NOW + 1)
    assert on_page.length == 1
    assert hidden.shown.codes[0] not in on_page.shown.codes


def test_similar_and_trending_items(home: Path, stage: Stage) -> None:
    engine = stage.engine
    main = engine.loaded.retriever.retriever.parts[0].retriever
    item = int(np.argmax(main.table.sizes))
    found = engine.similar(item, Wish(k=5, seed=0), NOW)
    expected = [c for c in main.table.row(item)[0] if stage.shelf.items.in_stock[c]]
    assert found.shown.codes.tolist() == expected[:5]
    assert {(r.kind, r.item) for r in found.reasons} == {("because", item)}
    quiet = int(np.flatnonzero(stage.shelf.items.in_stock)[-1])
    name = engine.loaded.retriever.items[quiet].as_py()
    put(home, "page_view", [view(name, None, f"crowd{n}") for n in range(60)])
    rising = stage.trending(Wish(k=3, seed=0), NOW)
    assert rising.shown.codes[0] == quiet
    with pytest.raises(NotFound, match="'nothing' is not known to shop@"):
        engine.code("nothing")


def test_errors_leave_the_retrievers_order_and_then_what_is_popular(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wish = Wish(k=8, seed=0, user=stage.engine.loaded.known.users.ids[0].as_py())
    whole = stage.recommend(wish, NOW)
    assert whole.degraded == ()

    def fails(*_: object) -> None:
        raise RuntimeError("no columns")

    monkeypatch.setattr(module.Engine, "score", fails)
    found = stage.recommend(wish, NOW)
    assert found.degraded == ("ranker",)
    moment = stage.engine._moment(wish, NOW, stage.offset)
    order = stage.engine._candidates(moment).rows
    assert found.shown.codes.tolist() == order.columns[:8].tolist()
    monkeypatch.setattr(module.Engine, "_candidates", fails)
    found = stage.recommend(wish, NOW)
    assert found.degraded == ("retriever", "ranker")
    assert len(found.shown) == 8
    assert "no columns" in caplog.text


def test_without_the_fast_way_scores_are_the_same(
    home: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise ImportError("cannot import name '_LIB'")

    monkeypatch.setattr(module, "DenseRows", gone)
    wish = Wish(k=20, seed=0, user=stage.engine.loaded.known.users.ids[0].as_py())
    with closing(opened(home)) as other:
        assert (
            other.recommend(wish, NOW).scores.tolist() == stage.recommend(wish, NOW).scores.tolist()
        )


@dataclass
class Leafwise:
    """LightGBM, as a sweep may choose it."""

    order: Order

    def again(self, table: Table) -> Order:
        return LightGBM().learn(by_moment(table), table.names, {}, Growth(self.order.trees))

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_version_may_be_ordered_by_lightgbm(home: Path) -> None:
    settings = home_kit.settings(home)

    def chosen(learn: Span, choose: Span) -> Leafwise:
        lesson = by_moment(learn.table)
        return Leafwise(LightGBM().learn(lesson, learn.table.names, {}, Growth(12)))

    with open_log(settings, project) as files:
        made = fit(
            files, settings.lake, home_kit.PLAN, reporter(quiet=True), choose_order=chosen
        ).manifest
    assert (made.learner, "model.txt" in made.files) == ("lightgbm", True)
    registry.promote(settings.lake / artefact.FOLDER, "shop", made.version)
    with closing(opened(home)) as stage:
        wish = Wish(k=10, seed=0, user=stage.engine.loaded.known.users.ids[0].as_py())
        found = stage.recommend(wish, NOW)
        assert found.degraded == ()
        table = stage.engine.table(wish, NOW, stage.offset)
        wanted = stage.engine.loaded.ranker.ordered(table, len(table)).values.max()
        assert found.scores.max() == np.float32(wanted)


def test_a_fit_draws_moments_and_says_from_where_on_its_order_is_used(home: Path) -> None:
    settings = home_kit.settings(home)
    seen: list[Span] = []

    def chosen(learn: Span, choose: Span) -> Chosen:
        seen.extend((learn, choose))
        return plainly(12)(learn, choose)

    plan = replace(home_kit.PLAN, visits=25)
    with open_log(settings, project) as files:
        made = fit(files, settings.lake, plan, reporter(quiet=True), choose_order=chosen).manifest
    learn, choose = seen
    assert (len(learn.at), len(choose.at)) == (25, 25)
    assert made.training["visits"] == 50
    assert made.least_known == least_known(plainly(12)(learn, choose).order, choose, plan.k)


@pytest.mark.parametrize("least", [0, 3])
def test_a_short_history_keeps_the_order_of_the_retriever(home: Path, least: int) -> None:
    with closing(opened(home)) as stage:
        engine = stage.engine
        manifest = structs.replace(engine.loaded.manifest, least_known=least)
        engine.loaded = replace(engine.loaded, manifest=manifest)
        users = [str(u) for u in engine.loaded.known.users.ids.to_pylist()]
        known = {u: engine._moment(Wish(5, 0, user=u), NOW, stage.offset).known for u in users}
        much = next(u for u in users if len(known[u].columns) >= 3)
        for wish, ranks in ((Wish(5, 0, user=much), True), (Wish(5, 0), least == 0)):
            found = stage.recommend(wish, NOW)
            moment = engine._moment(wish, NOW, stage.offset)
            candidates = engine._candidates(moment)
            scores = engine.score(moment, candidates) if ranks else candidates.rows.values
            assert found.degraded == ()
            assert found.scores.tolist() == sorted(scores.tolist(), reverse=True)[:5]


def test_a_version_without_profiles_asks_for_none(home: Path) -> None:
    settings = home_kit.settings(home)
    (settings.lake / "profiles").remove_tree()
    made = home_kit.fitted_again(settings).manifest
    assert made.profiles == {}
    assert not set(SHOPPER_PROFILE.column_names) & set(made.columns)
    registry.promote(settings.lake / artefact.FOLDER, "shop", made.version)
    with closing(opened(home)) as stage:
        assert stage.profile is None
        assert stage.recommend(Wish(k=5, seed=0), NOW).degraded == ()


def test_chance_is_drawn_with_known_propensities(home: Path) -> None:
    selection = Selection(exploration=Exploration(share=1.0, temperature=0.5))
    with closing(opened(home, selection)) as stage:
        lists = [stage.recommend(Wish(k=5, seed=n), NOW) for n in range(20)]
        assert len({tuple(f.shown.codes.tolist()) for f in lists}) > 10
        assert all(0 < p < 1 for f in lists for p in f.shown.propensity)
        plain = stage.recommend(Wish(k=5, seed=1), NOW, explore=False)
        assert plain.shown.propensity.tolist() == [1.0] * 5


def test_a_version_of_another_log_or_of_other_bytes_is_refused(home: Path, tmp_path: Path) -> None:
    settings = home_kit.settings(home)
    version = registry.locate(settings.lake / artefact.FOLDER, "shop")
    with pytest.raises(IntegrityError, match="other declarations of shopper"):
        artefact.load(settings.lake, version, home_kit.PLAN.item_views)
    shutil.rmtree(home / "log")
    SqliteLog(home / "log").close()
    with pytest.raises(IntegrityError, match="was made from log"):
        opened(home)
    file = (version / "users.item.npy").local
    assert file is not None
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match=r"users\.item\.npy has sha256"):
        artefact.load(settings.lake, version, home_kit.PLAN.views, home_kit.PLAN.profiles)
