"""From what became known of a decision to an event of the project's label type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from raypipe.log.port import Group
from raypipe.project import Project
from raypipe.runtime.worker.intake import Bulk

SOURCE = "/v1/decisions/{id}/outcome"
_KEY = "label:"


class LabelEvents:
    """Makes label events of decided events: what both types have under one name is copied.

    So a decision that was fraud counts in the windows, tables and profiles over label events, in
    training and in backtests, as one that came in bulk does.
    """

    def __init__(self, project: Project) -> None:
        self._label = project.label
        self._event = project.event(project.label.event)
        decided = project.decision_event
        envelope = {"tenant", "event_id", "event_time", "received_at", self._label.reference}
        self._copied = tuple(
            f.name
            for f in self._event.fields
            if f.name in decided and f.name not in envelope and decided.field(f.name).kind is f.kind
        )
        self._lacking = tuple(
            f.name
            for f in self._event.fields
            if f.required and f.name not in self._copied and f.name != self._label.reference
        )

    @property
    def lacking(self) -> tuple[str, ...]:
        """Required fields that a decided event can't give: with one, no label event is made."""
        return self._lacking

    def of(
        self, event: Mapping[str, Any], decision_id: str, occurred_at: int, received_at: int
    ) -> Bulk | None:
        """A request with the label event of a decision, the same for each call about it."""
        if self._lacking:
            return None
        values = {name: event[name] for name in self._copied}
        if any(values[n] is None and self._event.field(n).required for n in self._copied):
            return None
        row = {
            **values,
            "tenant": event["tenant"],
            "event_id": f"{_KEY}{decision_id}",
            "event_time": occurred_at,
            "received_at": received_at,
            self._label.reference: event["event_id"],
        }
        batch = pa.RecordBatch.from_pylist([row], self._event.arrow_schema)
        # One label event a decision, whoever says it first: the others get the first one's receipt.
        same = hashlib.sha256(decision_id.encode()).digest()
        group = Group.of(self._event.name, batch)
        return Bulk(event["tenant"], group, received_at, SOURCE, same, f"{_KEY}{decision_id}")
