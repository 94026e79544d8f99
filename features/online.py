"""The newest known state of keys, from the online store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from features.store.names import state_view
from features.store.packed.here import open_here
from features.store.packed.keys import key_prefix, one
from features.store.packed.reading import ViewReader
from raypipe.errors import NotFound
from raypipe.project import Project
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    import feast

_KEYS_PER_CALL = 1_000
_DOUBLE = "d"


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """A key's state after its newest event, as last written online.

    A span shorter than ``now - event_time`` says nothing about now: its window has moved on.
    """

    key: str
    event_time: int | None
    """Milliseconds; None when nothing within the view's horizon is known."""
    values: dict[str, float]
    """Every column, NaN where it has no value; empty when event_time is None."""


class StateReader:
    """Reads states as they were written online, without Feast and its registry.

    Calls are safe from all threads.
    """

    def __init__(self, project: Project, home: Path, online_url: str | None) -> None:
        """Open the online store of a home. Raises NotFound when it isn't on this node.

        Args:
            online_url: setting `online_url`; the embedded store of the home when None.
        """
        self._backend, feast_project = open_here(home, online_url)
        self._views = {
            v.name: (
                key_prefix(feast_project, state_view(v.name), [v.key]),
                ViewReader(
                    tuple((c, _DOUBLE) for c in v.column_names),
                    v.horizon * 1_000_000,
                    self._backend.described,
                ),
            )
            for v in project.views
        }

    def read(self, view: WindowView, key: str, now: int) -> OnlineRow:
        """What is known of one key.

        Args:
            now: milliseconds UTC, by which the row's age is judged.

        Raises:
            Unavailable, IntegrityError: see Backend.
        """
        prefix, reader = self._views[view.name]
        (known,) = reader.read(self._backend.get([one(prefix, key)]), now * 1_000)
        if known is None:
            return OnlineRow(key, None, {})
        values = (math.nan if v is None else float(v) for v in known[1])
        return OnlineRow(key, known[0] // 1_000, dict(zip(view.column_names, values, strict=True)))


def read(
    store: feast.FeatureStore, view: WindowView, keys: Sequence[str], now: int
) -> list[OnlineRow]:
    """One row per key, in the order of the keys; a row older than the view's longest span is none.

    Args:
        now: milliseconds UTC, by which a row's age is judged.

    Raises:
        NotFound: the view isn't registered.
    """
    from feast.errors import FeatureViewNotFoundException

    from features.store.packed.reader import OnlineReader

    name = state_view(view.name)
    try:
        reader = OnlineReader(store, [f"{name}:{c}" for c in view.column_names])
    except FeatureViewNotFoundException as e:
        raise NotFound(
            f"view {view.name!r} is not registered", hint="Apply the project first."
        ) from e
    rows: list[OnlineRow] = []
    for i in range(0, len(keys), _KEYS_PER_CALL):
        some = list(keys[i : i + _KEYS_PER_CALL])
        known = reader.read({view.key: some}, now)
        for key, (moment,), values in zip(
            some, known.event_times.tolist(), known.values.tolist(), strict=True
        ):
            if moment == -1:
                rows.append(OnlineRow(key, None, {}))
            else:
                rows.append(OnlineRow(key, moment, dict(zip(reader.names, values, strict=True))))
    return rows
