"""Visits: all that arrive; and the first looks of those who name nobody."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import StageError
from training.recommend.events import guest_id, guests_of
from training.recommend.interactions import Interactions
from training.recommend.ranking.moments import arrivals, moments, with_first_looks


def sessions(seed: int = 0, count: int = 200) -> Interactions:
    rng = np.random.default_rng(seed)
    ids = [f"v{n}" for n in rng.integers(0, 20, count)]
    items = [f"i{n}" for n in rng.integers(0, 9, count)]
    time = np.sort(rng.integers(1, 1_000, count))
    return Interactions.of(
        pa.array(ids),
        pa.array(items),
        np.zeros(count, np.uint8),
        ("view",),
        time,
        offset=np.arange(count),
    )


def looks(seed: int = 0, count: int = 400) -> Interactions:
    """Of customers c0..c9 and of sessions that name nobody, s0..s29."""
    rng = np.random.default_rng(seed)
    names = [f"c{n}" for n in range(10)] + [guest_id(f"s{n}") for n in range(30)]
    return Interactions.of(
        pa.array([names[n] for n in rng.integers(0, 40, count)]),
        pa.array([f"i{n}" for n in rng.integers(0, 15, count)]),
        np.zeros(count, np.uint8),
        ("view",),
        np.sort(rng.integers(1, 1_000, count)),
        offset=np.arange(count),
    )


def test_what_is_learned_from_has_the_first_looks_of_those_who_name_nobody() -> None:
    all_, gap = looks(), 100
    found = with_first_looks(all_, 200, 800, gap_ms=gap)
    seen = dict.fromkeys(zip(found.user.tolist(), found.offset.tolist(), strict=True))
    expected: set[tuple[int, int]] = set()
    for who in range(len(all_.users)):
        mine = [n for n in np.argsort(all_.offset) if all_.user[n] == who]
        cuts = [
            place
            for place, n in enumerate(mine)
            if not place or all_.time[n] - all_.time[mine[place - 1]] > gap
        ]
        for start, stop in zip(cuts, [*cuts[1:], len(mine)], strict=True):
            met = {int(all_.item[n]) for n in mine[:start]}
            visit = mine[start:stop]
            if not 200 <= all_.time[visit[0]] < 800:
                continue
            order = list(dict.fromkeys(int(all_.item[n]) for n in visit))
            guest = all_.users[who].as_py().startswith("\x1f")
            for after in (0, 1, 2) if guest else (0,):
                later = [n for n in visit if all_.item[n] not in order[:after]]
                if any(all_.item[n] not in met and all_.time[n] < 800 for n in later):
                    expected.add((who, int(all_.offset[later[0]])))
    assert set(seen) == expected
    assert len(found) == len(expected) > 40
    assert found.offset.tolist() == sorted(found.offset.tolist())
    assert guests_of(all_).sum() == 30


def test_without_guests_only_beginnings_of_visits_teach() -> None:
    all_ = sessions()
    found, plain = with_first_looks(all_, 50, 900), moments(all_, 50, 900)
    assert found.offset.tolist() == plain.offset.tolist()
    assert found.truth.dense().tolist() == plain.truth.dense().tolist()


def test_every_visit_that_begins_in_the_span_arrives() -> None:
    all_, gap = sessions(1), 40
    expected = []
    newest: dict[int, int] = {}
    for n in np.argsort(all_.offset):
        user, time = int(all_.user[n]), int(all_.time[n])
        begins = user not in newest or time - newest[user] > gap
        newest[user] = time
        if begins and 200 <= time < 700:
            expected.append((user, time, int(all_.offset[n])))
    found = arrivals(all_, 200, 700, gap_ms=gap)
    columns = (found.user.tolist(), found.time.tolist(), found.offset.tolist())
    assert list(zip(*columns, strict=True)) == expected
    assert len(found.truth) == len(found) > 50
    with pytest.raises(StageError, match="no visit begins from 2000 to 3000"):
        arrivals(all_, 2_000, 3_000)
