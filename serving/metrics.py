"""What one replica of the decisions counts. Each replica has its own registry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from features.parity_report import Report
from raypipe.ledger.record import DecisionRecord
from serving.decide import Ways
from serving.http_metrics import BUCKETS_S, HttpMetrics

_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


class Metrics(HttpMetrics):
    """Counters of one replica."""

    def __init__(self, replica: str) -> None:
        super().__init__(replica)
        self.count = 0
        """Decisions answered."""
        self._actions: dict[tuple[str, bool], Counter] = {}
        self._decisions = Counter(
            "raypipe_decisions_total",
            "Decisions answered, by action; replayed ones were stored before.",
            ("replica", "action", "replayed"),
            registry=self._registry,
        )
        self._hits = Counter(
            "raypipe_rule_hits_total",
            "New decisions in which a rule of the policy fired, thresholds and on_error too.",
            ("replica", "policy", "rule"),
            registry=self._registry,
        )
        self._degraded = Counter(
            "raypipe_decisions_degraded_total",
            "New decisions taken by on_error, without the reasons they should have, or while the "
            "worker was away.",
            ("replica",),
            registry=self._registry,
        ).labels(replica)
        self._seconds = Histogram(
            "raypipe_decision_seconds",
            "Time from the request's arrival to its answer, answered decisions only.",
            ("replica",),
            buckets=BUCKETS_S,
            registry=self._registry,
        ).labels(replica)
        self._ways = Gauge(
            "raypipe_model_ways",
            "1 for each loaded model, by what scores it and what finds its reasons.",
            ("replica", "model", "scores", "reasons"),
            registry=self._registry,
        )
        self._shadows = Counter(
            "raypipe_shadow_decisions_total",
            "Judgements of shadow models, by what became of them: scored, or not kept.",
            ("replica", "result"),
            registry=self._registry,
        )
        self._refused_releases = Counter(
            "raypipe_releases_refused_total",
            "Releases that this replica was told to serve and could not load: the old one serves.",
            ("replica",),
            registry=self._registry,
        ).labels(replica)
        self._arms = Counter(
            "raypipe_experiment_decisions_total",
            "New decisions by arm of the running experiments and of challengers, and action.",
            ("replica", "experiment", "arm", "action"),
            registry=self._registry,
        )
        self._worker = _WorkerFigures(replica)
        self._registry.register(self._worker)
        self._parity = _Parity(replica)
        self._registry.register(self._parity)

    def decided(self, record: DecisionRecord, replayed: bool, seconds: float) -> None:
        """Count an answered decision."""
        self.count += 1
        series = self._actions.get((record.action, replayed))
        if series is None:
            series = self._decisions.labels(self._replica, record.action, str(replayed).lower())
            self._actions[record.action, replayed] = series
        series.inc()
        if not replayed:
            for rule in record.rule_hits:
                self._hits.labels(self._replica, record.policy, rule).inc()
            if record.degraded:
                self._degraded.inc()
            arms = [(e.experiment, e.arm) for e in record.exposed]
            if record.arm is not None:
                arms.append((record.experiment or "", record.arm))
            for experiment, arm in arms:
                self._arms.labels(self._replica, experiment, arm, record.action).inc()
        self._seconds.observe(seconds)

    def loaded(self, models: Mapping[str, Ways]) -> None:
        """Tell of the models that are loaded now, by ``name@version``."""
        self._ways.clear()
        for model, ways in models.items():
            self._ways.labels(self._replica, model, *ways).set(1)

    def shadowed(self, result: str, rows: int) -> None:
        """Count judgements of shadows; from any thread."""
        self._shadows.labels(self._replica, result).inc(rows)

    def release_refused(self) -> None:
        """Count a release that can't be loaded here."""
        self._refused_releases.inc()

    def render(
        self, workers: Sequence[Mapping[str, float] | None], parity: Report | None = None
    ) -> bytes:
        """All samples as text.

        Args:
            workers: each worker's own figures, None for one that is away; those of several have a
                label ``worker``.
            parity: the last run of `raypipe parity`, None before the first.
        """
        self._worker.figures = workers
        self._parity.report = parity
        return self.text()


class _WorkerFigures(Collector):
    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.figures: Sequence[Mapping[str, float] | None] = (None,)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found: dict[str, list[tuple[int, float]]] = {}
        for worker, figures in enumerate(self.figures):
            found.setdefault("up", []).append((worker, float(figures is not None)))
            for name, value in (figures or {}).items():
                found.setdefault(name, []).append((worker, value))
        several = len(self.figures) > 1
        for name in sorted(found, key=lambda n: (n != "up", n)):
            gauge = GaugeMetricFamily(
                f"raypipe_worker_{_NOT_A_NAME.sub('_', name)}",
                "As the worker reports it." if name != "up" else "Whether the worker answered.",
                labels=["replica", "worker"] if several else ["replica"],
            )
            for worker, value in found[name]:
                labels = [self._replica, str(worker)] if several else [self._replica]
                gauge.add_metric(labels, value)
            yield gauge


class _Parity(Collector):
    """The last parity run, as it stands in the lake: every replica says the same."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.report: Report | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        report = self.report
        if report is None:
            return
        run = self._gauge("last_run_timestamp_seconds", "When it was.")
        run.add_metric([self._replica], report.run_at / 1_000)
        yield run
        decisions = self._gauge(
            "decisions", "Decisions of its sample, by what became of them.", "result"
        )
        for result in ("compared", "version", "featureless", "broken"):
            decisions.add_metric([self._replica, result], getattr(report, result))
        yield decisions
        mismatches = self._gauge("mismatches", "Feature values that differed, by cause.", "cause")
        for cause, count in report.mismatches.items():
            mismatches.add_metric([self._replica, cause], count)
        yield mismatches
        features = self._gauge(
            "feature_mismatches", "The same by feature, where there are any.", "feature", "cause"
        )
        for feature in report.features:
            for cause, count in feature.mismatches.items():
                features.add_metric([self._replica, feature.feature, cause], count)
        yield features

    @staticmethod
    def _gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
        about = f"Of the last run of `raypipe parity`. {what}"
        return GaugeMetricFamily(f"raypipe_parity_{name}", about, labels=["replica", *labels])
