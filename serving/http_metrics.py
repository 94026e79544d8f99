"""What every application over HTTP counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5)


class HttpMetrics:
    """The registry of one replica; every sample carries its id in the label ``replica``."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series for nothing
        self._requests = Counter(
            "raypipe_http_requests_total",
            "Requests by route and status.",
            ("replica", "route", "status"),
            registry=self._registry,
        )
        # To find a series by its labels takes longer than to count.
        self._answers: dict[tuple[str, int], Counter] = {}
        self._refused = Counter(
            "raypipe_http_refused_total",
            "Requests answered with a problem, by its code.",
            ("replica", "code"),
            registry=self._registry,
        )

    def watch(self, about: Mapping[str, str], figures: Callable[[], Mapping[str, float]]) -> None:
        """Tell of more of this replica's figures whenever it is asked.

        Args:
            about: help by the metric's name, without the prefix; counters end in ``_total``.
            figures: values by the same names; those that it lacks aren't told.
        """
        self._registry.register(_Watched(self._replica, about, figures))

    def answered(self, route: str, status: int) -> None:
        """Count a request; ``route`` is a pattern, never a path, so that series stay few."""
        series = self._answers.get((route, status))
        if series is None:
            series = self._requests.labels(self._replica, route, str(status))
            self._answers[route, status] = series
        series.inc()

    def refused(self, code: str) -> None:
        """Count a problem document."""
        self._refused.labels(self._replica, code).inc()

    def text(self) -> bytes:
        """All samples."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(
        self,
        replica: str,
        about: Mapping[str, str],
        figures: Callable[[], Mapping[str, float]],
    ) -> None:
        self._replica = replica
        self._about = about
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        for name, about in self._about.items():
            if name not in figures:
                continue
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            metric = family(f"raypipe_{name}", about, labels=["replica"])
            metric.add_metric([self._replica], figures[name])
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked when it is registered."""
        return iter(())
