"""The queue of hashes against a dict, while it moves from table to table."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.runtime.worker import hash_queue
from raypipe.runtime.worker.hash_queue import HashQueue


@pytest.mark.parametrize(("at_once", "pace"), [(0, 1), (64, 2), (1 << 16, 4)])
def test_it_forgets_and_doubles_nothing_while_it_moves(
    monkeypatch: pytest.MonkeyPatch, at_once: int, pace: int
) -> None:
    monkeypatch.setattr(hash_queue, "_AT_ONCE", at_once)
    monkeypatch.setattr(hash_queue, "_PACE", pace)
    rng = np.random.default_rng(at_once)
    queue, naive = HashQueue(), dict[int, None]()
    moving = 0
    for _ in range(400):
        # Few different homes, so that long runs form in both tables.
        hashes = rng.integers(1, 1 << 16, rng.integers(0, 400)) << rng.integers(0, 3)
        new = []
        for h in hashes.tolist():
            new.append(h not in naive)
            naive[h] = None
        assert queue.add(hashes).tolist() == new
        dropped = int(rng.integers(0, 1 + min(len(naive), 120)))
        queue.drop(dropped)
        for h in list(naive)[:dropped]:
            del naive[h]
        assert queue.hashes().tolist() == list(naive)
        some = rng.integers(1, 1 << 16, 50).tolist()
        assert [h in queue for h in some] == [h in naive for h in some]
        moving += queue._unmoved > 0
    assert (moving > 10) == (at_once < 1 << 16)
    assert queue.nbytes <= 24 * 2 * len(naive) + 24 * 4_096


def test_a_queue_that_is_emptied_while_it_moves_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_queue, "_AT_ONCE", 10)
    queue = HashQueue()
    queue.add(np.arange(1, 4_097))
    queue.add(np.arange(4_097, 4_100))
    assert queue._unmoved
    queue.drop(len(queue) - 1)
    assert queue.hashes().tolist() == [4_099]
    assert queue.add(np.array([4_099, 1, 4_098])).tolist() == [False, True, True]
