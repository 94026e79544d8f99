"""The set of ids that came lately, against a plain list that is searched from end to end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.runtime.worker.ids import IdHasher, IdSet

jumps = st.sampled_from([-90_000_000, -3_600_000, -60_001, 60_001, 3_600_000, 90_000_000])
steps = st.one_of(*[st.integers(-5, 60)] * 4, jumps)
arrivals = st.lists(st.tuples(steps, st.lists(st.integers(1, 40), max_size=12)), max_size=40)
"""Steps of the clock, and small numbers instead of hashes: they collide in every slot."""


class Naive:
    def __init__(self, limit: int, horizon: int) -> None:
        self.limit, self.horizon = limit, horizon
        self.held: list[tuple[int, int]] = []
        self.seen: list[int] = []

    def add(self, ids: list[int], at: int) -> list[bool]:
        self.seen.append(at)
        now = self._now()
        self._drop(now)
        new = []
        for i in ids:
            new.append(i not in [h for _, h in self.held])
            if new[-1]:
                self.held.append((now, i))
        self._drop(now)
        return new

    def _now(self) -> int:
        """Steps ahead, a minute at most each; after a step far back they count from there."""
        passed, top = 0, self.seen[0]
        for at in self.seen:
            passed += min(max(0, at - top), 60_000)
            top = at if at < top - 60_000 else max(at, top)
        return passed

    def _drop(self, now: int) -> None:
        while self.held and self.held[0][0] < now - self.horizon:
            self.held.pop(0)
        self.held = self.held[-self.limit :]


@given(arrivals, st.integers(1, 30), st.integers(0, 100))
def test_it_remembers_what_a_list_remembers(
    came: list[tuple[int, list[int]]], limit: int, horizon: int
) -> None:
    ids, naive, now = IdSet(limit, horizon), Naive(limit, horizon), 1_000
    for step, batch in came:
        now += step
        assert ids.add(np.array(batch, np.int64), now).tolist() == naive.add(batch, now)
        assert len(ids) == len(naive.held)
        assert ids.hashes().tolist() == [h for _, h in naive.held]
        for i in range(1, 41):
            assert (i in ids) == (i in [h for _, h in naive.held])


@given(arrivals, arrivals, st.integers(1, 30), st.integers(0, 100), st.integers(1, 9), st.data())
def test_a_restored_set_goes_on_alike(
    before: list[tuple[int, list[int]]],
    after: list[tuple[int, list[int]]],
    limit: int,
    horizon: int,
    size: int,
    data: st.DataObject,
) -> None:
    """Also when ids came and went while its tables were made."""
    ids, now = IdSet(limit, horizon), 1_000
    for step, batch in before:
        now += step
        ids.add(np.array(batch, np.int64), now)
    tables = []
    for make in ids.pieces(size):
        for step, batch in data.draw(arrivals)[:2]:
            now += step
            ids.add(np.array(batch, np.int64), now)
        tables.append(make())
    other = IdSet(limit, horizon)
    assert all(map(other.restore, tables))
    assert ids.hashes().tolist() == other.hashes().tolist()
    for step, batch in after:
        now += step
        new = [s.add(np.array(batch, np.int64), now).tolist() for s in (ids, other)]
        assert new[0] == new[1]
        assert ids.hashes().tolist() == other.hashes().tolist()


@given(st.lists(steps, max_size=8))
def test_no_jump_of_the_clock_makes_it_forget_what_just_came(jumped: list[int]) -> None:
    ids, now = IdSet(1_000, 600_000), 10**12
    assert ids.add(np.array([7]), now).all()
    for i, step in enumerate(jumped):
        now += step
        ids.add(np.array([100 + i]), now)
    assert 7 in ids


def test_it_forgets_by_time_after_a_clock_was_set_right() -> None:
    ids, now = IdSet(1_000, 600_000), 10**12
    ids.add(np.array([7]), now + 90_000_000)
    for second in range(0, 700, 10):
        ids.add(np.array([100 + second]), now + second * 1_000)
    assert 7 not in ids


def test_it_grows_and_forgets_by_number() -> None:
    ids = IdSet(50_000, 10**9)
    rng = np.random.default_rng(1)
    hashes = rng.integers(1, 2**62, 200_000)
    for at in range(0, len(hashes), 7_000):
        assert ids.add(hashes[at : at + 7_000], at).all()
    assert len(ids) == 50_000
    assert not ids.add(hashes[-50_000:], len(hashes)).any()
    assert ids.add(hashes[:1_000], len(hashes)).all()


def test_hashes_depend_on_log_tenant_and_kind() -> None:
    batch = pa.record_batch({"tenant": ["a", "b", "a"], "event_id": ["1", "1", "2"]})
    hasher = IdHasher("log-1")
    found = hasher.batch("sale", batch).tolist()
    assert found == [
        hasher.one("sale", tenant, name) for tenant, name in [("a", "1"), ("b", "1"), ("a", "2")]
    ]
    others = {
        *found,
        hasher.one("refund", "a", "1"),
        IdHasher("log-2").one("sale", "a", "1"),
    }
    assert len(others) == 5
