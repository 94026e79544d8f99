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


@given(steps)
def test_nothing_that_changed_is_forgotten(todo: list[tuple[str, Any]]) -> None:
    views = [v for v in project.views if "opening" in v.events]
    changes, dirty = Changes(views, "default"), set()
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
            changes = Changes(views, "default")
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


def test_waiting_keys_are_held_once() -> None:
    changes = Changes(project.views, "default")
    for _ in range(100):
        changes.add([chunk([("default", "v1", "g1"), ("default", "v2", None)])])
    keys = [(row["view"], row["key"]) for row in changes.snapshot()()[0].to_pylist()]
    assert len(changes) == len(keys) == len(set(keys)) == 3
