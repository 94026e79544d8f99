"""A policy over recorded decisions: what it would have changed. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.log_files import LogFiles, open_partitions
from features.moments import iso, point
from raypipe.errors import DeclarationError, IntegrityError, NotFound
from raypipe.events.schema import Kind
from raypipe.ledger.record import LOG_KIND, DecisionRecord, decode
from raypipe.log.port import OFFSET
from raypipe.policy.columns import ACTIONS, decide_columns
from raypipe.policy.list_store import ListStore
from raypipe.policy.lists import Lists
from raypipe.policy.registry import POLICIES
from raypipe.policy.rules import BoundPolicy, RuleSet
from raypipe.project import Project, load_project
from raypipe.vector.assemble import FEATURE_VALUE
from training import artefact, registry
from training.backtest_report import Decided, Report, Truth, joined, summarise
from training.labels import labels

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

DECIDED = "decided_at"
BATCH_ROWS = 16_384

_PLACES = {action.value: place for place, action in enumerate(ACTIONS)}


def run(
    settings: Settings,
    progress: Progress,
    policy: str,
    *,
    since: str | None,
    until: str | None,
) -> Report:
    """Decide again about the settings tenant's decisions, by a policy file or a published policy.

    Decisions of several workers lie in as many logs, each beside its event. ``since`` and ``until``
    are dates, times or durations before the newest decision. Lists and overrides are as they were
    when each decision was made.

    Raises NotFound where nothing was decided, and what loading the policy raises.
    """
    project = load_project(settings.project)
    rules = RuleSet(POLICIES.find(settings.lake, policy), project)
    lists = ListStore(settings.lake, settings.tenant).refresh()
    with (
        open_partitions(settings, project) as logs,
        progress.stage("backtest", unit="decisions") as stage,
    ):
        oldest, newest = _span(logs)
        start = oldest if since is None else point("--since", since, newest)
        end = newest + 1 if until is None else point("--until", until, newest)
        again = _Again(settings, project, rules, lists)
        parts: list[Decided] = []
        for files in logs:
            events = files.table(project.decision)
            for records in _records(files.table(LOG_KIND), start, end):
                parts += again.decide(records, events)
                stage.advance(len(records))
        truth = _truth(settings, project, logs, parts)
        report = summarise(rules, parts, truth, again.left_out)
        stage.say(f"{report.changed:,} of {report.decisions:,} would change")
    return msgspec.structs.replace(report, since=iso(start), until=iso(end))


class _Again:
    """Makes recorded decisions again."""

    def __init__(self, settings: Settings, project: Project, rules: RuleSet, lists: Lists) -> None:
        self._models = settings.lake / "models"
        self._event = project.decision_event
        self._rules = rules
        self._lists = lists
        self._bound: dict[str, BoundPolicy | str] = {}
        self.left_out: Counter[str] = Counter()
        self._amount = next((f.name for f in self._event.fields if f.kind is Kind.AMOUNT), None)
        self._code = next((f.name for f in self._event.fields if f.kind is Kind.CURRENCY), None)
        self._currency = settings.currency

    def decide(
        self, records: list[DecisionRecord], events: pa.dataset.Dataset
    ) -> Iterator[Decided]:
        """Decide about some, model by model; what can't be decided is counted.

        Args:
            events: the decision events of the partition that has the records.
        """
        by_model: dict[str, list[DecisionRecord]] = {}
        for record in records:
            by_model.setdefault(record.model, []).append(record)
        for model, mine in by_model.items():
            policy = self._policy(model)
            if isinstance(policy, str):
                self.left_out[policy] += len(mine)
                continue
            theirs = _events_of(mine, events)
            known = set(theirs.column(OFFSET).to_pylist())
            found = sorted(
                (r for r in mine if r.event_offset in known), key=lambda r: r.event_offset
            )
            self.left_out["whose event is not in the log any more"] += len(mine) - len(found)
            if found:
                yield self._decided(policy, found, theirs)

    def _decided(
        self, policy: BoundPolicy, records: list[DecisionRecord], events: pa.Table
    ) -> Decided:
        width = len(policy.program.model_features)
        rows = np.full((len(records), width), np.nan, np.float32)
        for i, record in enumerate(records):
            if record.features:
                rows[i] = np.frombuffer(record.features, FEATURE_VALUE)
        score = np.array([np.nan if r.score is None else r.score for r in records], np.float64)
        at = np.array([r.decided_at for r in records], np.int64)
        away = np.array([r.worker_away for r in records], np.bool_)
        verdicts = decide_columns(policy, score, events, rows, self._lists, at, away)
        size = len(records)
        return Decided(
            event_ids=pa.array([r.event_id for r in records], pa.string()),
            event_time=np.array([r.event_time for r in records], np.int64),
            before=np.array([_PLACES[r.action] for r in records], np.int64),
            after=verdicts.action.astype(np.int64),
            segment=verdicts.segment.astype(np.int64),
            amount=np.zeros(size, np.int64)
            if self._amount is None
            else pc.fill_null(events.column(self._amount), 0).to_numpy(),
            currency=np.full(size, self._currency, object)
            if self._code is None
            else np.array(events.column(self._code).to_pylist(), object),
            hits=verdicts.hits,
        )

    def _policy(self, model: str) -> BoundPolicy | str:
        """The policy for a model, or why it can't decide about what that one scored."""
        if model not in self._bound:
            self._bound[model] = self._bind(model)
        return self._bound[model]

    def _bind(self, model: str) -> BoundPolicy | str:
        name, _, version = model.partition("@")
        try:
            manifest = artefact.read_manifest(registry.locate(self._models, name, version))
        except (NotFound, IntegrityError):
            return f"of {model}, which is not in the lake"
        try:
            return self._rules.bind(manifest.features)
        except DeclarationError:
            return f"of {model}, which lacks features that the policy reads"


def _events_of(records: list[DecisionRecord], events: pa.dataset.Dataset) -> pa.Table:
    """The events of some decisions, in log order."""
    import pyarrow.dataset as ds

    offsets = sorted(r.event_offset for r in records)
    place = ds.field(OFFSET)
    wanted = (place >= offsets[0]) & (place <= offsets[-1]) & place.isin(offsets)
    return events.to_table(filter=wanted).sort_by(OFFSET)


def _truth(
    settings: Settings, project: Project, logs: Sequence[LogFiles], parts: list[Decided]
) -> Truth:
    label = project.label
    truths = _columns(logs, label.event, ["event_time", label.reference])
    ids = pa.chunked_array([p.event_ids for p in parts], pa.string())
    times = joined([p.event_time for p in parts])
    as_of = settings.label_as_of
    if as_of is None:
        newest = [_columns(logs, k, ["event_time"]) for k in {label.event, project.decision}]
        found = [pc.max(t.column(0)).as_py() for t in newest if len(t)]
        as_of = max(found, default=0)
    y, labelled = labels(label, ids, times, truths, as_of_ms=as_of)
    return Truth(y == 1, labelled)


def _columns(logs: Sequence[LogFiles], kind: str, names: list[str]) -> pa.Table:
    return pa.concat_tables(files.table(kind).to_table(names) for files in logs)


def _span(logs: Sequence[LogFiles]) -> tuple[int, int]:
    """The first and the last time at which something was decided, ms; raises NotFound."""
    found = []
    for files in logs:
        for batch in files.table(LOG_KIND).to_batches(columns=[DECIDED]):
            if batch.num_rows:
                found.append(pc.min_max(batch.column(0)).as_py())
    if not found:
        raise NotFound("nothing was decided yet", hint="`raypipe serve` decides.")
    return min(f["min"] for f in found), max(f["max"] for f in found)


def _records(log: pa.dataset.Dataset, start: int, end: int) -> Iterator[list[DecisionRecord]]:
    import pyarrow.dataset as ds

    inside = (ds.field(DECIDED) >= start) & (ds.field(DECIDED) < end)
    for batch in log.to_batches(columns=["record"], filter=inside, batch_size=BATCH_ROWS):
        if batch.num_rows:
            yield [decode(data) for data in batch.column(0).to_pylist()]
