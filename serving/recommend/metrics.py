"""What a replica of the recommender counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from serving.metrics import BUCKETS_S

ABOUT = {
    "recommend_offset": "The log is known up to this offset.",
    "recommend_recent_visitors": "Visitors of whom something came since the version.",
    "recommend_forgotten_visitors": "How often what came since was dropped for want of room.",
    "recommend_window_bytes": "Memory of the window states.",
}


class RecommendMetrics:
    """Counters of one replica; every sample carries its id in the label ``replica``.

    Args:
        replica: the id.
        figures: values of ABOUT by name, asked for at each rendering.
    """

    def __init__(self, replica: str, figures: Callable[[], Mapping[str, float]]) -> None:
        self._replica = replica
        self._figures = figures
        self._registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._requests = Counter(
            "raypipe_http_requests_total",
            "Requests by route and status.",
            ("replica", "route", "status"),
            registry=self._registry,
        )
        self._refused = Counter(
            "raypipe_http_refused_total",
            "Requests answered with a problem, by its code.",
            ("replica", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "raypipe_recommendation_seconds",
            "Time from the request's arrival to its list, answered requests only.",
            ("replica",),
            buckets=BUCKETS_S,
            registry=self._registry,
        ).labels(replica)
        self._degraded = Counter(
            "raypipe_recommendations_degraded_total",
            "Lists that something was missing for, by what.",
            ("replica", "missing"),
            registry=self._registry,
        )
        self._explored = Counter(
            "raypipe_recommendations_explored_total",
            "Lists in which chance had a say.",
            ("replica",),
            registry=self._registry,
        ).labels(replica)
        self._gauges = {
            name: Gauge(f"raypipe_{name}", about, ("replica",), registry=self._registry)
            for name, about in ABOUT.items()
        }

    def answered(self, route: str, status: int) -> None:
        """See serving.face.Counted."""
        self._requests.labels(self._replica, route, str(status)).inc()

    def refused(self, code: str) -> None:
        """See serving.face.Counted."""
        self._refused.labels(self._replica, code).inc()

    def listed(self, seconds: float, explored: bool, missing: list[str]) -> None:
        """Count a list that was answered."""
        self._seconds.observe(seconds)
        if explored:
            self._explored.inc()
        for what in missing:
            self._degraded.labels(self._replica, what).inc()

    def render(self) -> bytes:
        """All samples as text."""
        for name, value in self._figures().items():
            self._gauges[name].labels(self._replica).set(value)
        return generate_latest(self._registry)
