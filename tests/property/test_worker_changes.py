"""Every key that changed is written online in the end, whatever fails in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.log.port import Chunk
from raypipe.runtime.worker.changes import Changes
from tests.domains.greenhouse import project

valves = st.sampled_from(["v1", "v2", "v3", "v4", "v5"])
gardeners = st.sampled_from(["g1", "g2", None])
rows = st.lists(st.tuples(st.sampled_from(["default", "other"]), valves, gardeners), max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), rows),
        st.tuples(st.just("one"), rows),
        st.tuples(st.just("write"), st.integers(1, 3)),
        st.tuples(st.just("fail"), st.integers(1, 3)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=25,
)


def chunk(found: list[tuple[str, str, str | None]]) -> Chunk:
    batch = pa.record_batch(
        {
            "tenant": pa.array([t for t, _, _ in found], pa.string()),
            "valve": pa.array([v for _, v, _ in found], pa.string()),
            "gardener": pa.array([g for _, _, g in found], pa.string()),
        }
    )
    return Chunk("opening", np.arange(len(found)), batch)


@given(steps, st.sampled_from([1, 2, 4, 1_000]))
def test_nothing_that_changed_is_forgotten(todo: list[tuple[str, Any]], sweep: int) -> None:
    views = [v for v in project.views if "opening" in v.events]
    changes, dirty = Changes(views, "default", sweep_keys=sweep), set()
    written = True
    taken: set[tuple[str, str]] = set()
    for what, given_to in todo:
        if what in ("add", "one"):
            for tenant, valve, gardener in given_to:
                event = {"tenant": tenant, "valve": valve, "gardener": gardener}
                if tenant == "default":
                    dirty |= {(v.name, event[v.key]) for v in views if event[v.key] is not None}
                if what == "one":
                    changes.add_one("opening", event)
            if what == "add" and given_to:
                changes.add([chunk(given_to)])
        elif what == "restart":
            kept = changes.snapshot()()[0]
            changes = Changes(views, "default", sweep_keys=sweep)
            assert changes.restore(kept)
            written, taken = True, set()
        else:
            if not written:
                changes.undo()
            else:
                dirty -= taken
            view, keys = changes.take(given_to)
            assert len(keys) <= given_to
            assert len(set(keys.to_pylist())) == len(keys)
            taken = {(view, key) for key in keys.to_pylist()}
            # A key that changes again after it was taken waits once more.
            written = what == "write"
        waiting = changes.snapshot()()[0].to_pylist()
        assert dirty - taken <= {(row["view"], row["key"]) for row in waiting} | taken
    if not written:
        changes.undo()
    left = {(row["view"], row["key"]) for row in changes.snapshot()()[0].to_pylist()}
    assert dirty <= left | taken
    for _ in range(len(changes) + 1):
        changes.take(1)
    assert not len(changes)


def test_waiting_keys_are_held_once() -> None:
    changes = Changes(project.views, "default")
    for _ in range(100):
        changes.add([chunk([("default", "v1", "g1"), ("default", "v2", None)])])
    keys = [(row["view"], row["key"]) for row in changes.snapshot()()[0].to_pylist()]
    assert len(changes) == len(keys) == len(set(keys)) == 3


def test_long_sweeps_are_in_the_order_of_the_keys_and_end() -> None:
    changes = Changes(project.views, "default", sweep_keys=100)
    mixed = np.random.default_rng(5).permutation(1_000)
    changes.add([chunk([("default", f"v{i:03}", None) for i in mixed])])
    first, second = changes.take(100)[1], changes.take(900)[1]
    assert first.to_pylist() == sorted(f"v{i:03}" for i in mixed[:100])
    assert second.to_pylist() == sorted(f"v{i:03}" for i in mixed[100:])
    assert len(changes.take(1)[1]) == 0
