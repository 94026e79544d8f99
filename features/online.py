"""The newest known state of keys, from the online store, through Feast."""

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
    """Milliseconds, to the second; None when nothing within the view's horizon is known."""
    values: dict[str, float]
    """Every column, NaN where it has no value; empty when event_time is None."""


def read(
    store: feast.FeatureStore, view: WindowView, keys: Sequence[str], now: int
) -> list[OnlineRow]:
    """One row per key, in the order of the keys.

    Feast serves a row however old it is; here a row older than the view's longest span is none.

    Args:
        now: milliseconds UTC, by which a row's age is judged.

    Raises:
        NotFound: the view isn't registered.
    """
    from feast.errors import FeatureViewNotFoundException

    name = state_view(view.name)
    wanted = [f"{name}:{c}" for c in view.column_names]
    rows: list[OnlineRow] = []
    for i in range(0, len(keys), _KEYS_PER_CALL):
        some = keys[i : i + _KEYS_PER_CALL]
        try:
            answer = store.get_online_features(wanted, [{view.key: k} for k in some])
        except FeatureViewNotFoundException as e:
            raise NotFound(
                f"view {view.name!r} is not registered", hint="Apply the project first."
            ) from e
        found = answer.to_dict(include_event_timestamps=True)
        times = found[f"{view.column_names[0]}__ts"]
        for j, key in enumerate(some):
            event_time = times[j] * 1_000
            if times[j] and now - event_time <= view.horizon * 1_000:
                values = {c: _number(found[c][j]) for c in view.column_names}
                rows.append(OnlineRow(key, event_time, values))
            else:
                rows.append(OnlineRow(key, None, {}))
    return rows


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
