"""Visits: all that arrive; and of those without an account what is to be guessed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import StageError
from training.recommend.first_looks import first_looks
from training.recommend.interactions import Interactions
from training.recommend.ranking.moments import arrivals


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


@pytest.mark.parametrize("first", [1, 2, 4])
def test_first_items_are_known_and_the_others_to_be_guessed(first: int) -> None:
    all_ = sessions()
    catalogue = pa.array(["i1", "i2", "i3", "i5", "i7", "i8"])
    names = catalogue.to_pylist()
    expected = []
    for visit in range(len(all_.users)):
        mine = [n for n in np.argsort(all_.offset) if all_.user[n] == visit]
        if not 50 <= min(all_.time[n] for n in mine) < 900:
            continue
        met = list(dict.fromkeys(all_.items[int(all_.item[n])].as_py() for n in mine))
        met = [i for i in met if i in names]
        if len(met) > first:
            expected.append((set(met[:first]), set(met[first:])))
    known, truth = first_looks(all_, catalogue, 50, 900, first=first)
    got = [
        tuple({names[c] for c in rows.row(n)[0]} for rows in (known, truth))
        for n in range(len(known))
    ]
    assert got == expected
    assert len(got) > 0
    assert known.width == truth.width == 6


def test_no_long_session_is_an_error() -> None:
    with pytest.raises(StageError, match="no session from 0 to 1 has more than 2 items"):
        first_looks(sessions(), pa.array(["i1"]), 0, 1)


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
