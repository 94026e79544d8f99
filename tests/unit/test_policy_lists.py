"""Lists in the lake: what is on them, who sees a change, and what can't be done."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from raypipe.clock import ManualClock
from raypipe.errors import Conflict, IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from raypipe.policy.list_store import ListBook, ListStore
from raypipe.policy.lists import NO_CHANGES, Kind
from serving.lists import WatchedLists

NOW = 1_790_000_000_000


@pytest.fixture
def lake(tmp_path: Path) -> Place:
    return Place.at(tmp_path)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


def store(lake: Place, clock: ManualClock, tenant: str = "default") -> ListStore:
    return ListStore(lake, tenant, clock)


def add(to: ListStore, *keys: str, name: str = "blocked", expires: int | None = None) -> str:
    lists = to.add(name, Kind.DENY, keys, who="ann", why="fraud", expires_ms=expires)
    return lists.version


def test_an_entry_holds_until_it_expires_or_is_removed(lake: Place, clock: ManualClock) -> None:
    mine = store(lake, clock)
    assert mine.refresh().version == NO_CHANGES
    add(mine, "a", "b", expires=NOW + 100)
    add(mine, "c")
    other = store(lake, clock).refresh()
    assert [other.holds("blocked", k, NOW) for k in "abcd"] == [True, True, True, False]
    assert other.holds("blocked", "a", NOW + 99)
    assert not other.holds("blocked", "a", NOW + 100)
    assert other.holds("blocked", "c", NOW + 10**12)
    assert not other.holds("blocked", None, NOW)
    assert not other.holds("other", "a", NOW)
    clock.advance(50)
    mine.remove("blocked", ["c"], who="bob", why="was wrong")
    lists = mine.refresh()
    assert [lists.holds("blocked", "c", t) for t in (NOW, NOW + 49, NOW + 50)] == [
        True,
        True,
        False,
    ]
    assert [(e.key, e.expires_ms, e.who) for e in lists.entries("blocked", NOW + 50)] == [
        ("a", NOW + 100, "ann"),
        ("b", NOW + 100, "ann"),
    ]


def test_history_names_each_version(lake: Place, clock: ManualClock) -> None:
    mine = store(lake, clock)
    first, second = add(mine, "a"), add(mine, "b", name="second")
    assert (first[:2], second[:2]) == ("1-", "2-")
    assert [(v, c.list, c.keys) for v, c in mine.history()] == [
        (first, "blocked", ("a",)),
        (second, "second", ("b",)),
    ]
    assert [v for v, _ in mine.history("second")] == [second]
    assert store(lake, clock).refresh().version == second


def test_tenants_have_their_own_lists(lake: Place, clock: ManualClock) -> None:
    add(store(lake, clock), "a")
    add(store(lake, clock, "other"), "b")
    book = ListBook(lake)
    assert not book.of("default").holds("blocked", "a", NOW)
    book.refresh()
    assert book.of("default").holds("blocked", "a", NOW)
    assert not book.of("other").holds("blocked", "a", NOW)
    assert book.of("nobody").version == NO_CHANGES


def test_changes_at_once_are_all_kept(lake: Place, clock: ManualClock) -> None:
    start = threading.Barrier(8)

    def change(i: int) -> None:
        mine = store(lake, clock)
        start.wait()
        for j in range(5):
            add(mine, f"k-{i}-{j}")

    threads = [threading.Thread(target=change, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lists = store(lake, clock).refresh()
    assert len(lists.entries("blocked", NOW)) == 40
    assert lists.version.startswith("40-")


def test_what_can_not_be_on_a_list_is_refused(lake: Place, clock: ManualClock) -> None:
    mine = store(lake, clock)
    for keys in ((), ("",), ("a\nb",), ("k" * 257,)):
        with pytest.raises(UsageError):
            add(mine, *keys)
    with pytest.raises(UsageError, match="expired"):
        add(mine, "a", expires=NOW)
    with pytest.raises(UsageError, match="list name"):
        add(mine, "a", name="../x")
    with pytest.raises(UsageError, match="by whom"):
        mine.add("blocked", Kind.DENY, ["a"], who=" ", why="x")
    assert mine.refresh().version == NO_CHANGES
    add(mine, "a")
    with pytest.raises(Conflict, match="kind deny"):
        mine.add("blocked", Kind.ALLOW, ["b"], who="ann", why="x")
    with pytest.raises(NotFound, match="no list"):
        mine.remove("blokced", ["a"], who="ann", why="x")
    with pytest.raises(NotFound, match="not on"):
        mine.remove("blocked", ["b"], who="ann", why="x")


def test_a_damaged_change_is_not_skipped(lake: Place, clock: ManualClock) -> None:
    mine = store(lake, clock)
    add(mine, "a")
    [file] = (lake / "lists/default").files()
    file.write(b'{"list": "blocked"}')
    with pytest.raises(IntegrityError, match="no change of a list"):
        store(lake, clock).refresh()


def test_a_replica_sees_changes_and_keeps_the_last_good_ones(
    lake: Place, clock: ManualClock
) -> None:
    mine = store(lake, clock)
    add(mine, "a")
    watched = WatchedLists(lake, every_s=0.01)
    assert not watched.of("default").holds("blocked", "a", NOW)
    watched.start()
    watched.start()
    try:
        assert watched.of("default").holds("blocked", "a", NOW)
        add(mine, "b")
        assert _soon(lambda: watched.of("default").holds("blocked", "b", NOW))
        (lake / "lists/default/9999999999-00000000.json").write(b"?")
        add(store(lake, clock, "other"), "c")
        assert _soon(lambda: watched.failures > 0)
        assert watched.of("default").holds("blocked", "b", NOW)
    finally:
        watched.stop()


def _soon(holds: object) -> bool:
    turn = threading.Event()
    return any(holds() or turn.wait(0.01) for _ in range(3_000))  # type: ignore[operator]
