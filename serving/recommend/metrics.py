"""What a replica of the recommender counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import Counter, Histogram

from serving.http_metrics import BUCKETS_S, HttpMetrics

ABOUT = {
    "recommend_offset": "The log is known up to this offset.",
    "recommend_recent_visitors": "Visitors of whom something came since the version.",
    "recommend_forgotten_visitors": "How often what came since was dropped for want of room.",
    "recommend_window_bytes": "Memory of the window states.",
}


class RecommendMetrics(HttpMetrics):
    """Counters of one replica.

    Args:
        replica: the id.
        figures: values of ABOUT by name, asked for at each rendering.
    """

    def __init__(self, replica: str, figures: Callable[[], Mapping[str, float]]) -> None:
        super().__init__(replica)
        self.watch(ABOUT, figures)
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

    def listed(self, seconds: float, explored: bool, missing: list[str]) -> None:
        """Count a list that was answered."""
        self._seconds.observe(seconds)
        if explored:
            self._explored.inc()
        for what in missing:
            self._degraded.labels(self._replica, what).inc()
