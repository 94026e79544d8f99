"""Whose an event is: live, as training joins them, wherever the version's end lies between."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from hypothesis import given
from hypothesis import strategies as st

from features.commerce import project
from raypipe.errors import NotFound
from serving.recommend.visitors import Event, Histories
from training.recommend.events import SHOP_SOURCES, Tables, Visits, read_visits
from training.recommend.ranking.visitors import KEPT, Done, Visitors

NOW = 1_790_000_000_000
KINDS = ("page_view", "cart", "order_line")
Row = tuple[int, str | None, str | None, int]
"""Kind, user, session, item."""

rows = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 2]),
        st.sampled_from([None, None, "a", "b"]),
        st.sampled_from(["s", "t", "u"]),
        st.integers(0, 3),
    ),
    max_size=30,
)


def tables(events: list[Row]) -> Tables:
    def table(kind: str) -> ds.Dataset:
        fields = [f.with_nullable(True) for f in project.event(kind).arrow_schema]
        schema = pa.schema([pa.field("offset", pa.int64()), *fields])
        found = [
            {
                "offset": offset,
                "event_time": NOW + offset,
                "customer_id": user,
                "session_id": session,
                "item_id": f"i{item}",
                "action": "add",
            }
            for offset, (number, user, session, item) in enumerate(events)
            if KINDS[number] == kind
        ]
        return ds.dataset(pa.Table.from_pylist(found, schema))

    return table


def visitors(visits: Visits, column: str) -> Visitors:
    table = visits.table
    ids = pa.compute.unique(table.column(column)).sort()
    who = pa.compute.index_in(table.column(column), ids).to_numpy()
    item = np.array([int(i[1:]) for i in table.column("item").to_pylist()], np.int32)
    times, offsets = table.column("event_time").to_numpy(), table.column("offset").to_numpy()
    return Visitors.of(ids, who, Done(item, visits.kind, times, offsets))


def version(events: list[Row]) -> Histories:
    """As of the end of these events."""
    found = read_visits(tables(events), SHOP_SOURCES)
    try:
        users = visitors(found.joined(), "user")
    except NotFound:
        users = visitors(found.anonymous(NOW * 2), "session")
    owners = {s: user for s, (user, _) in found.owners().items()}
    return Histories(users, visitors(found.anonymous(0), "session"), owners)


def plain(done: Done) -> list[tuple[int, int, int, int]]:
    columns = (done.item, done.kind, done.time, done.offset)
    return sorted(zip(*(c.tolist() for c in columns), strict=True))


@given(rows, st.integers(0, 30))
def test_live_and_trained_histories_are_the_same(events: list[Row], end: int) -> None:
    live, whole = version(events[:end]), version(events)
    for offset, (kind, user, session, item) in enumerate(events[end:], min(end, len(events))):
        live.add(user, session, Event(item, kind, NOW + offset, offset), offset)
    for user in ("a", "b"):
        assert plain(live.of(user, None)) == plain(whole.of(user, None))
    for session in ("s", "t", "u"):
        assert live.owner(session) == whole.owner(session)
        assert plain(live.of(None, session)) == plain(whole.of(None, session))


def test_an_obvious_story() -> None:
    live = version([])
    live.add(None, "s", Event(1, 0, NOW, 0), 0)
    live.add(None, "t", Event(2, 0, NOW, 1), 1)
    assert plain(live.of("a", None)) == []
    assert plain(live.of("a", "s")) == [(1, 0, NOW, 0)]  # the request says whose it is
    live.add("a", "s", None, 2)  # of an item that is not of the version
    assert plain(live.of("a", None)) == [(1, 0, NOW, 2)]
    live.add(None, "s", Event(3, 1, NOW, 3), 3)
    live.add("b", "s", Event(0, 2, NOW, 4), 4)
    assert plain(live.of("a", None)) == [(1, 0, NOW, 2), (3, 1, NOW, 3)]
    assert plain(live.of("b", None)) == [(0, 2, NOW, 4)]
    assert plain(live.of(None, "s")) == plain(live.of("a", None))
    assert plain(live.of(None, "t")) == [(2, 0, NOW, 1)]
    assert plain(live.of(None, None)) == plain(live.of("nobody", "nowhere")) == []


def test_memory_is_bounded_and_the_newest_stay() -> None:
    nobody = visitors(read_visits(tables([])).anonymous(0), "session")
    live = Histories(nobody, nobody, {}, most=2)
    for offset in range(KEPT + 5):
        live.add("busy", None, Event(offset % 7, 0, NOW, offset), offset)
    assert live.of("busy", None).offset.tolist() == list(range(5, KEPT + 5))
    live.add("a", None, Event(0, 0, NOW, KEPT + 5), KEPT + 5)
    live.add("busy", None, Event(0, 0, NOW, KEPT + 6), KEPT + 6)
    live.add("b", None, Event(0, 0, NOW, KEPT + 7), KEPT + 7)
    assert (live.recent, live.forgotten) == (2, 1)
    assert len(live.of("a", None)) == 0
    assert len(live.of("busy", None)) == KEPT
