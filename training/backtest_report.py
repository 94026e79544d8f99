"""What a backtest found: moves between actions, money, and agreement with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.policy.columns import ACTIONS
from raypipe.policy.rules import RuleSet
from raypipe.policy.spec import DEFAULT

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Amount = dict[str, int]
"""Minor units by currency."""


class Move(msgspec.Struct, frozen=True):
    """Decisions that went, or would go, from one action to another; same actions included."""

    before: str
    after: str
    count: int
    amount: Amount
    labelled: int
    positives: int
    """Of the labelled ones."""


class Outcome(msgspec.Struct, frozen=True):
    """How actions and the truth agree. Flagged is whatever was not approved."""

    false_positives: int
    """Flagged, and known to be negative."""
    false_positive_amount: Amount
    false_negatives: int
    """Approved, and known to be positive."""
    false_negative_amount: Amount


class SegmentReport(msgspec.Struct, frozen=True):
    """The same for one segment of the policy."""

    segment: str
    decisions: int
    changed: int
    before: Outcome
    after: Outcome


class Report(msgspec.Struct, frozen=True):
    """A backtest over the decisions made from ``since`` until before ``until`` (ISO 8601)."""

    policy: str
    sha256: str
    since: str
    until: str
    decisions: int
    changed: int
    labelled: int
    moves: list[Move]
    before: Outcome
    after: Outcome
    segments: list[SegmentReport]
    rules: dict[str, int]
    """Hits by rule, in order of evaluation."""
    left_out: dict[str, int]
    """Decisions that could not be made again, by why."""


@dataclass(frozen=True)
class Decided:
    """Decisions made again, by columns [n]."""

    event_ids: pa.Array
    event_time: Ints
    before: Ints
    after: Ints
    segment: Ints
    amount: Ints
    currency: npt.NDArray[np.object_]
    hits: Flags


@dataclass(frozen=True)
class Truth:
    """What is known by now of n decided events."""

    positive: Flags
    labelled: Flags


class _Tally:
    """Decisions made again and the truth about them, as one set of columns."""

    def __init__(self, parts: Sequence[Decided], truth: Truth) -> None:
        self.before = joined([p.before for p in parts])
        self.after = joined([p.after for p in parts])
        self.segment = joined([p.segment for p in parts])
        self.truth = truth
        self._amount = joined([p.amount for p in parts])
        self._currency = np.concatenate([np.array([], object), *(p.currency for p in parts)])

    @cached_property
    def everything(self) -> Flags:
        """All of them."""
        return np.ones(len(self.before), np.bool_)

    def amount(self, mine: Flags) -> Amount:
        """The money of some."""
        return {
            str(code): int(self._amount[mine & (self._currency == code)].sum())
            for code in sorted(set(self._currency[mine].tolist()))
        }

    def moves(self) -> list[Move]:
        """By old and new action, from mild to severe."""
        found = []
        for before, was in enumerate(ACTIONS):
            for after, now in enumerate(ACTIONS):
                mine = (self.before == before) & (self.after == after)
                if mine.any():
                    known = mine & self.truth.labelled
                    found.append(
                        Move(
                            was.value,
                            now.value,
                            int(mine.sum()),
                            self.amount(mine),
                            int(known.sum()),
                            int((known & self.truth.positive).sum()),
                        )
                    )
        return found

    def outcome(self, actions: Ints, mine: Flags) -> Outcome:
        """How some actions agree with the truth."""
        flagged = actions != 0
        known = mine & self.truth.labelled
        wrong = known & flagged & ~self.truth.positive
        missed = known & ~flagged & self.truth.positive
        return Outcome(int(wrong.sum()), self.amount(wrong), int(missed.sum()), self.amount(missed))


def summarise(
    rules: RuleSet, parts: Sequence[Decided], truth: Truth, left_out: dict[str, int]
) -> Report:
    """The report without the times that it is about."""
    tally = _Tally(parts, truth)
    names = [*(s.name for s in rules.spec.segments), DEFAULT]
    segments = []
    for place, name in enumerate(names):
        mine = tally.segment == place
        segments.append(
            SegmentReport(
                name,
                int(mine.sum()),
                int((mine & (tally.before != tally.after)).sum()),
                tally.outcome(tally.before, mine),
                tally.outcome(tally.after, mine),
            )
        )
    hits = sum((p.hits.sum(axis=0) for p in parts), np.zeros(len(rules.spec.ordered), np.int64))
    return Report(
        policy=rules.id,
        sha256=rules.sha256,
        since="",
        until="",
        decisions=len(tally.before),
        changed=int((tally.before != tally.after).sum()),
        labelled=int(truth.labelled.sum()),
        moves=tally.moves(),
        before=tally.outcome(tally.before, tally.everything),
        after=tally.outcome(tally.after, tally.everything),
        segments=segments,
        rules={r.name: int(n) for r, n in zip(rules.spec.ordered, hits, strict=True)},
        left_out={why: n for why, n in left_out.items() if n},
    )


def joined(parts: Sequence[Ints]) -> Ints:
    """Parts of a column as one."""
    return np.concatenate([np.array([], np.int64), *parts])
