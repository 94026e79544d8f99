"""The newest known state of keys, from the online store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from features.store.names import state_view
from raypipe.errors import NotFound
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    import feast

_KEYS_PER_CALL = 1_000


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
