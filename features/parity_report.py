"""What a parity run found; the last one is kept in the lake, where every replica exports it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from raypipe.lake import Place


class Cause(StrEnum):
    """Why a served value may differ from the recomputed one."""

    LATE = "late"
    """The decided event was older than one of its key that came before it."""
    WORKER_AWAY = "worker_away"
    """The decision says that it was degraded, or spilled: made from state that may be stale."""
    UNEXPLAINED = "unexplained"
    """Nothing excuses it: the paths disagree, or stored bytes were changed."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One value that differs. Values are float32, None for NaN; times are ms UTC."""

    decision_id: str
    event_id: str
    event_time: int
    cause: Cause
    served: float | None
    recomputed: float | None


class FeatureParity(msgspec.Struct, frozen=True, kw_only=True):
    """One feature over all compared decisions that have it."""

    feature: str
    compared: int
    mismatches: dict[Cause, int]
    """By cause; a cause without any is left out."""
    first_time: int | None = None
    last_time: int | None = None
    """Event times of the first and the last decision that differs."""
    examples: tuple[Example, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``decisions`` is the sum of the four numbers after it."""

    run_at: int
    seconds: float
    tenant: str
    entity: str
    keys: int
    since: int
    end_offset: int
    decisions: int
    compared: int
    version: int
    """Made by another definition, or by a model version that is gone: not comparable."""
    featureless: int
    """Recorded without features: building them failed, and the policy's on_error was taken."""
    broken: int
    """Their event is not at its offset, or their features have another length than the model's."""
    features: tuple[FeatureParity, ...]

    @property
    def mismatches(self) -> dict[Cause, int]:
        """Values that differ, by cause."""
        return {c: sum(f.mismatches.get(c, 0) for f in self.features) for c in Cause}

    @property
    def failed(self) -> bool:
        """Whether anything is there that nothing explains."""
        return bool(self.broken or self.mismatches[Cause.UNEXPLAINED])


def _place(lake: Place) -> Place:
    return lake / "reports" / "parity.json"


def store(lake: Place, report: Report) -> None:
    """Keep the report as the last one."""
    _place(lake).write(msgspec.json.encode(report))


def last(lake: Place) -> Report | None:
    """The last report, None before the first and when it is of an earlier version of raypipe."""
    try:
        return msgspec.json.decode(_place(lake).read(), type=Report)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
