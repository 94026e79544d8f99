"""Cuts, restarts, partitions, merges and growth change no bit of any value or snapshot."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.batch import EntityPass, prepare, run_views
from features.payments import CARD
from raypipe.clock import DAY_MS
from raypipe.errors import IntegrityError
from raypipe.events.schema import EventType, Field, Kind
from raypipe.project import Entity, Label, Project
from raypipe.windows import kernel
from raypipe.windows.engine import WindowEngine
from raypipe.windows.hashing import bucket_of
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    WindowView,
    count,
    distinct,
    mean,
    since_last,
    std,
    total,
)
from raypipe.windows.state import Rows, ViewState
from tests.property.window_streams import (
    ASK,
    DAY,
    PAY,
    SCHEMA,
    SHORT,
    TODAY,
    WINDOWS,
    asked_bits,
    busy,
    chunks_of,
    cut,
    event,
    part_of,
    reading,
    rows_of,
    run,
    streams,
    view,
)

VIEWS = (
    view("card", DEFAULT_SPANS, "card"),
    view("shop", SHORT, "shop"),
    WindowView("asked", "card", ASK, "card", (count(), since_last()), SHORT),
)


def same(a: pa.Table, b: pa.Table) -> bool:
    """Equal in every value and in what the metadata says."""
    return a.equals(b, check_metadata=True)


@given(streams(), st.sampled_from(WINDOWS), st.data())
def test_a_batch_cut_anywhere_and_restored_at_every_cut(
    events: pa.Table, window: tuple, data: st.DataObject
) -> None:
    v = view(window=window)
    rows = rows_of(v, events, PAY)
    whole, last = run(v, rows)
    places = data.draw(st.lists(st.integers(0, events.num_rows), max_size=8))
    state, seen = ViewState(v), []
    for piece in cut(rows, places):
        fresh = ViewState(v)
        fresh.restore(state.snapshot())
        assert same(fresh.snapshot(), state.snapshot())
        state = fresh
        seen.append(asked_bits(state.process(piece), piece))
    joined = [b"".join(parts) for parts in zip(*_padded(seen), strict=True)]
    assert joined == _padded([asked_bits(whole, rows)])[0]
    assert same(state.snapshot(), last.snapshot())


def _padded(seen: list[list[bytes]]) -> list[list[bytes]]:
    """A piece in which nothing asks for values after has none of them."""
    return [s + [b""] * (4 - len(s)) for s in seen]


@pytest.mark.parametrize("decision", [PAY, ASK])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: " ".join(s.label for s in w))
def test_busy_keys_are_the_same_after_restarts(window: tuple, decision: str) -> None:
    """What a state keeps between reads only makes it faster: a restart drops it."""
    v = view(window=window)
    rows = rows_of(v, busy(len(window) + 10), decision)
    whole, last = run(v, rows)
    places = np.random.default_rng(len(window)).choice(len(rows.keys), 25, replace=False)
    state, seen = ViewState(v), []
    for piece in cut(rows, places.tolist()):
        fresh = ViewState(v)
        fresh.restore(state.snapshot())
        state = fresh
        seen.append(asked_bits(state.process(piece), piece))
    assert [b"".join(p) for p in zip(*_padded(seen), strict=True)] == asked_bits(whole, rows)
    assert same(state.snapshot(), last.snapshot())


@given(streams(most=15), st.sampled_from(WINDOWS))
def test_a_restart_before_every_single_event(events: pa.Table, window: tuple) -> None:
    v = view(window=window)
    rows = rows_of(v, events, PAY)
    whole, last = run(v, rows)
    state = ViewState(v)
    for i in range(events.num_rows):
        piece = part_of(rows, slice(i, i + 1))
        values = state.process(piece)
        if piece.modes[0] & kernel.READ:
            assert values.before[0].tobytes() == whole.before[i].tobytes()
        fresh = ViewState(v)
        fresh.restore(state.snapshot())
        state = fresh
    assert same(state.snapshot(), last.snapshot())


@given(streams(), st.sampled_from(WINDOWS), st.integers(2, 5))
def test_keys_in_other_partitions_have_the_same_bits_and_merge_to_the_whole(
    events: pa.Table, window: tuple, partitions: int
) -> None:
    v = view(window=window)
    rows = rows_of(v, events, PAY)
    whole, last = run(v, rows)
    merged = ViewState(v)
    for p in range(partitions):
        mine = np.asarray(bucket_of(rows.keys) % partitions == p)
        values, state = run(v, part_of(rows, mine))
        read = (rows.modes & kernel.READ) != 0
        assert values.before[read[mine]].tobytes() == whole.before[mine & read].tobytes()
        assert values.newest[read[mine]].tobytes() == whole.newest[mine & read].tobytes()
        merged.restore(state.snapshot())
    assert same(merged.snapshot(), last.snapshot())
    assert merged.keys == last.keys


@given(streams(), st.data())
def test_pieces_of_different_offsets_make_one_state(events: pa.Table, data: st.DataObject) -> None:
    """A snapshot taken in pieces while events go on, then a replay from its first offset."""
    live, restored = WindowEngine(VIEWS, ASK), WindowEngine(VIEWS, ASK)
    places = sorted(data.draw(st.lists(st.integers(0, len(events)), min_size=12, max_size=12)))
    offsets = [*events["offset"].to_pylist(), 10**9]
    wanted = [(v.name, range(b, b + 256)) for v in VIEWS for b in range(0, 1_024, 256)]
    pieces, done = [], 0
    for (name, buckets), place in zip(data.draw(st.permutations(wanted)), places, strict=True):
        live.apply(chunks_of(events.slice(done, place - done)))
        pieces.append(live.piece(name, buckets, offsets[place]))
        done = place
    live.apply(chunks_of(events.slice(done)))
    restored.restore(pieces)
    restored.apply(chunks_of(events.slice(places[0])))
    restored.settle()
    for a, b in zip(live.snapshot(), restored.snapshot(), strict=True):
        assert same(a, b)


def test_pieces_cover_the_state_once() -> None:
    engine = WindowEngine(VIEWS, ASK)
    engine.apply(chunks_of(busy(3)))
    for keys in (1, 7, 10**9):
        pieces = engine.pieces(keys)
        for v in VIEWS:
            covered = [b for name, buckets in pieces if name == v.name for b in buckets]
            assert covered == list(range(1_024))
        restored = WindowEngine(VIEWS, ASK)
        restored.restore(engine.piece(name, buckets, 0) for name, buckets in pieces)
        for a, b in zip(engine.snapshot(), restored.snapshot(), strict=True):
            assert same(a, b)


@given(streams(), st.sampled_from([PAY, ASK]))
def test_one_by_one_in_columns_and_as_replay(events: pa.Table, decision: str) -> None:
    """observe, process and apply give the same values before and end in the same state."""
    live = WindowEngine(VIEWS, decision)
    replayed = WindowEngine(VIEWS, decision)
    seen = {}
    for i, e in enumerate(events.to_pylist()):
        seen[e["offset"]] = live.observe(e["kind"], e, e["offset"])
        if i % 3 == 2:
            replayed.apply(chunks_of(events.slice(i - 2, 3)))
    replayed.apply(chunks_of(events.slice(len(events) - len(events) % 3)))
    columns = []
    for v in VIEWS:
        rows = rows_of(v, events, decision)
        values, state = run(v, rows)
        columns.append(values.before[reading(events, decision)])
        assert same(live.states[v.name].snapshot(), state.snapshot())
        assert live.states[v.name].too_old == state.too_old
    expected = np.hstack(columns)
    asked = [o for o, w in seen.items() if w]
    assert asked == events["offset"].to_numpy()[reading(events, decision)].tolist()
    assert b"".join(seen.values()) == np.ascontiguousarray(expected).tobytes()
    for a, b in zip(live.snapshot(), replayed.snapshot(), strict=True):
        assert same(a, b)
    restored = WindowEngine(VIEWS, decision)
    restored.restore(live.snapshot())
    assert restored.keys == live.keys
    assert all(same(a, b) for a, b in zip(restored.snapshot(), live.snapshot(), strict=True))


@given(streams(), st.randoms(use_true_random=False))
def test_the_order_between_keys_does_not_matter(events: pa.Table, rng: object) -> None:
    """Rows may be shuffled as long as each key keeps its own order; offsets stay theirs."""
    v = view()
    rows = rows_of(v, events, PAY)
    whole, last = run(v, rows)
    keys = rows.keys.tolist()
    queues = {k: [i for i, other in enumerate(keys) if other == k] for k in set(keys)}
    order = sorted(keys)
    rng.shuffle(order)  # type: ignore[attr-defined]
    taken = np.array([queues[k].pop(0) for k in order], np.int64)
    values, state = run(v, part_of(rows, taken) if len(taken) else rows)
    read = (rows.modes[taken] & kernel.READ) != 0
    assert values.before[read].tobytes() == whole.before[taken[read]].tobytes()
    assert same(state.snapshot(), last.snapshot())


@pytest.mark.parametrize("keys", [1, 2, 3, 63, 64, 65, 5_000])
def test_many_keys_from_the_smallest_sizes(keys: int) -> None:
    v = view(window=SHORT)
    rng = np.random.default_rng(keys)
    n = 20_000
    rows = Rows(
        rng.integers(1, 2**62, keys)[rng.integers(0, keys, n)],
        TODAY + np.sort(rng.integers(0, 600_000, n)),
        np.arange(n),
        np.full(n, kernel.READ | kernel.UPDATE, np.uint8),
        rng.integers(-9, 9, (n, 2)),
        rng.integers(1, 2**62, (n, 2)),
        np.zeros(n, np.int64),
    )
    large, small = ViewState(v, slots=2**14, words=2**22), ViewState(v, slots=1, words=1)
    expected = large.process(rows).before
    assert small.process(rows).before.tobytes() == expected.tobytes()
    assert small.keys == large.keys == len(np.unique(rows.keys))
    assert same(small.snapshot(), large.snapshot())
    assert small.nbytes < large.nbytes
    again = ViewState(v, slots=1, words=1)
    again.restore(small.snapshot())
    assert same(again.snapshot(), small.snapshot())


def test_tiles_of_a_busy_key_stay_few_and_old_blocks_are_used_again() -> None:
    v = view()
    rows = [event(i, TODAY + i * 30_000) for i in range(60 * 2_880)]
    table = pa.Table.from_pylist(rows[:1], SCHEMA)
    template = rows_of(v, table, PAY)
    n = len(rows)
    state = ViewState(v)
    state.process(
        Rows(
            np.repeat(template.keys, n),
            np.array([r["event_time"] for r in rows]),
            np.arange(n),
            np.full(n, kernel.UPDATE, np.uint8),
            np.ones((n, 2), np.int64),
            np.repeat(template.hashes, n, axis=0),
            np.zeros(n, np.int64),
        )
    )
    # At most a tile for each hop of a span that no finer one covers: 60 + 48 + 58 + 48 + 46 + 60.
    assert len(state.snapshot()["words"][0].as_py()) / state.layout[kernel.TILE_WORDS] <= 320
    assert state.nbytes < 400_000


def test_closed_gaps_and_shrunk_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an arena that counts as large from the start, gaps are closed all the time."""
    v = view(window=SHORT)
    rng = np.random.default_rng(4)
    n = 30_000
    keys = rng.integers(1, 2**62, 300)
    # Some keys are busy first and quiet later, so that their blocks become too large.
    turn = np.arange(n) // 3_000 * 30
    rows = Rows(
        keys[(turn + rng.zipf(1.5, n)) % 300],
        TODAY + np.sort(rng.integers(0, 900_000, n)),
        np.arange(n),
        np.full(n, kernel.READ | kernel.UPDATE | kernel.READ_AFTER, np.uint8),
        rng.integers(-9, 9, (n, 2)),
        rng.integers(1, 2**62, (n, 2)),
        np.zeros(n, np.int64),
    )
    expected, roomy = run(v, rows)
    packs = []
    pack = kernel.pack
    monkeypatch.setattr(kernel, "pack", lambda *a: packs.append(1) or pack(*a))
    monkeypatch.setattr("raypipe.windows.state.THRIFTY_WORDS", 1)
    values, state = run(v, rows)
    assert len(packs) > 3, len(packs)
    assert asked_bits(values, rows) == asked_bits(expected, rows)
    assert same(state.snapshot(), roomy.snapshot())
    assert state.nbytes < roomy.nbytes


def test_thirty_events_of_a_card_cost_less_than_a_kilobyte() -> None:
    rng = np.random.default_rng(6)
    cards, n = 20_000, 30
    keys = rng.integers(1, 2**62, cards)
    state = ViewState(CARD)
    for day in range(n):
        state.process(
            Rows(
                keys[rng.integers(0, cards, cards)],
                TODAY + day * DAY + np.sort(rng.integers(0, DAY, cards)),
                np.arange(cards),
                np.full(cards, kernel.UPDATE, np.uint8),
                rng.integers(1, 10**6, (cards, len(CARD.value_columns))),
                rng.integers(1, 2**62, (cards, len(CARD.sketches))),
                np.zeros(cards, np.int64),
            )
        )
    assert state.keys == cards
    assert state.nbytes / cards < 1_000


def test_an_older_snapshot_is_recognised() -> None:
    events = pa.Table.from_pylist([event(0, TODAY)], SCHEMA)
    _, state = run(view(), rows_of(view(), events, PAY))
    old = state.snapshot()
    old = old.rename_columns(["key", "clock", "newest", "tiles"]).replace_schema_metadata(
        {**old.schema.metadata, b"format": b"raypipe.windows/1"}
    )
    with pytest.raises(IntegrityError, match="windows/1"):
        ViewState(view()).restore(old)


def test_hashes_that_meet_in_one_slot_stay_apart() -> None:
    """Keys whose mixed hashes share their high bits probe past each other, through growth too."""
    v = WindowView("v", "card", PAY, "card", (count(["1m"]), total("amount", ["1m"])))
    mixed = np.array([kernel._mix(k) for k in range(1, 200_000)], np.uint64)
    together = (np.flatnonzero(mixed >> np.uint64(54) == 5) + 1).astype(np.int64)
    assert len(together) > 100
    n = len(together) * 3
    rows = Rows(
        np.tile(together, 3),
        TODAY + np.arange(n),
        np.arange(n),
        np.full(n, kernel.READ | kernel.UPDATE, np.uint8),
        np.tile(together, 3).reshape(-1, 1),
        np.zeros((n, 0), np.int64),
        np.zeros(n, np.int64),
    )
    state = ViewState(v, slots=2, words=2)
    before = state.process(rows).before.reshape(3, -1, 2)
    for i in range(3):
        assert (before[i, :, 0] == i).all()
        assert (before[i, :, 1] == together * i).all()


@pytest.mark.parametrize("time", [-1, -999, -1_000, -1_001, -(10**12), -62_135_596_800_000])
def test_times_before_1970_are_seconds_like_others(time: int) -> None:
    """They are refused where events come in; here they must only not be special."""
    v = WindowView("v", "card", PAY, "card", (count(["1m"]), since_last()))
    rows = [event(0, time), event(1, time + 59_000), event(2, time + 200_000)]
    values, state = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), PAY))
    inside = time // 1000 > (time + 59_000) // 1000 - 60
    assert np.isnan(values.before[0, 1])
    assert values.before[:, 0].tolist() == [0, int(inside), 0]
    assert values.before[1:, 1].tolist() == [59, 141]
    fresh = ViewState(v)
    fresh.restore(state.snapshot())
    assert same(fresh.snapshot(), state.snapshot())


def test_a_snapshot_of_another_definition_is_refused() -> None:
    events = pa.Table.from_pylist([event(0, TODAY)], SCHEMA)
    _, state = run(view(), rows_of(view(), events, PAY))
    for other in (view(window=SHORT), view("shop"), view(name="other")):
        with pytest.raises(IntegrityError, match="seen") as e:
            ViewState(other).restore(state.snapshot())
        assert "compute the features again" in e.value.hint
    bare = state.snapshot().replace_schema_metadata(None)
    with pytest.raises(IntegrityError):
        ViewState(view()).restore(bare)


def test_a_snapshot_restored_twice_is_refused() -> None:
    events = pa.Table.from_pylist([event(0, TODAY)], SCHEMA)
    _, state = run(view(), rows_of(view(), events, PAY))
    fresh = ViewState(view())
    fresh.restore(state.snapshot())
    with pytest.raises(IntegrityError, match="share a key"):
        fresh.restore(state.snapshot())


def test_words_that_change_no_value_keep_the_definition() -> None:
    a = view()
    b = WindowView(
        a.name, a.entity, a.event, a.key, a.aggregates, a.spans, "words", "owner", (("x", "y"),)
    )
    _, state = run(a, rows_of(a, pa.Table.from_pylist([event(0, TODAY)], SCHEMA), PAY))
    ViewState(b).restore(state.snapshot())


def test_a_taken_snapshot_does_not_change_with_the_state() -> None:
    v = view()
    events = pa.Table.from_pylist([event(i, TODAY + 1_000 * i, amount=i) for i in range(9)], SCHEMA)
    rows = rows_of(v, events, PAY)
    state = ViewState(v)
    state.process(part_of(rows, slice(0, 4)))
    taken = state.snapshot()
    copy = pa.Table.from_pydict(taken.to_pydict(), taken.schema)
    state.process(part_of(rows, slice(4, 9)))
    assert same(taken, copy)


def test_restoring_is_the_same_from_slices_and_chunks() -> None:
    v = view()
    rows = [event(i, TODAY + i * 700, card=f"c{i % 17}", amount=i) for i in range(300)]
    _, state = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), PAY))
    whole = state.snapshot()
    sliced, chunked = ViewState(v), ViewState(v)
    for start in range(0, 17, 5):
        sliced.restore(whole.slice(start, 5))
    chunked.restore(pa.concat_tables([whole.slice(9), whole.slice(0, 9)]))
    assert same(sliced.snapshot(), whole)
    assert same(chunked.snapshot(), whole)


PROJECT = Project(
    name="small",
    events=(
        EventType(
            PAY,
            (
                Field("card", Kind.STRING, required=False),
                Field("shop", Kind.STRING, required=False),
                Field("amount", Kind.AMOUNT),
                Field("points", Kind.INTEGER, minimum=-5, maximum=5),
            ),
        ),
        EventType(
            ASK,
            (
                Field("card", Kind.STRING, required=False),
                Field("shop", Kind.STRING, required=False),
                Field("about", Kind.STRING),
            ),
        ),
    ),
    entities=(Entity("card"), Entity("shop")),
    views=VIEWS,
    derived=(),
    decision=ASK,
    label=Label(ASK, "about", DAY_MS),
    models=(),
)


@given(streams(), st.integers(1, 4))
def test_the_batch_pass_gives_the_bits_of_the_live_engine(
    events: pa.Table, partitions: int
) -> None:
    """prepare and run_views, as Ray Data runs them, without Ray."""
    live = WindowEngine(VIEWS, ASK)
    seen = {e["offset"]: live.observe(e["kind"], e, e["offset"]) for e in events.to_pylist()}
    asking = {o: np.frombuffer(w) for o, w in seen.items() if w}
    at = 0
    found: dict[str, pa.Table] = {}
    for entity in ("card", "shop"):
        plan = EntityPass.of(PROJECT, entity, partitions)
        assert plan.kinds[0] == ASK
        kinds = np.array(events["kind"].to_pylist(), object)
        table = pa.concat_tables(
            [prepare(events.filter(pa.array(kinds == k, pa.bool_())), plan, k) for k in plan.kinds]
        ).sort_by("offset")
        parts = table["part"].to_numpy()
        assert ((parts >= 0) & (parts < partitions)).all()
        merged = {v.name: ViewState(v) for v in plan.views}
        before: dict[str, dict[int, bytes]] = {v.name: {} for v in plan.views}
        for p in range(partitions):
            block = table.filter(pa.array(parts == p, pa.bool_())).combine_chunks()
            asks = block["kind"].to_numpy() == 0
            for name, (values, state) in run_views(block, plan, after=False).items():
                offsets = block["offset"].to_numpy()[asks].tolist()
                before[name] |= dict(zip(offsets, values.before[asks], strict=True))
                merged[name].restore(state.snapshot())
        for v in plan.views:
            found[v.name] = merged[v.name].snapshot()
            assert before[v.name].keys() == asking.keys()
    at = 0
    for v in VIEWS:
        assert same(found[v.name], live.states[v.name].snapshot())
        at += len(v.columns)
    assert all(len(w) == at for w in asking.values())


def test_views_whose_names_run_together_stay_apart() -> None:
    """`card` over `risk_amount` and `card_risk` over `amount` are different inputs."""
    pay = EventType(PAY, (Field("card", Kind.STRING), Field("risk_amount", Kind.AMOUNT)))
    back = EventType(
        "back",
        (Field("card", Kind.STRING), Field("amount", Kind.AMOUNT), Field("about", Kind.STRING)),
    )
    views = (
        WindowView("card", "card", PAY, "card", (mean("risk_amount", ["1h"]),)),
        WindowView("card_risk", "card", "back", "card", (total("amount", ["1h"]),)),
    )
    label = Label("back", "about", DAY_MS)
    project = Project("p", (pay, back), (Entity("card"),), views, (), PAY, label, ())
    plan = EntityPass.of(project, "card", 1)
    common = {"tenant": "t", "card": "a", "event_id": "e", "event_time": TODAY}
    pays = [common | {"offset": i, "risk_amount": 100 + i} for i in (0, 2)]
    backs = [common | {"offset": 1, "amount": 7}]
    table = pa.concat_tables(
        [
            prepare(pa.Table.from_pylist(pays), plan, PAY),
            prepare(pa.Table.from_pylist(backs), plan, "back"),
        ]
    ).sort_by("offset")
    found = run_views(table, plan)
    assert found["card"][0].before[2].tolist() == [100.0]
    assert found["card_risk"][0].before[2].tolist() == [7.0]


def test_an_event_alone_costs_its_values_and_a_word() -> None:
    v = WindowView("v", "card", PAY, "card", (count(), std("amount"), distinct("shop")))
    rows = [event(i, TODAY - i * DAY) for i in range(40)]
    _, state = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), PAY))
    assert state.too_old == 40 - 30
    assert len(state.snapshot()["words"][0].as_py()) == 30 * 2
