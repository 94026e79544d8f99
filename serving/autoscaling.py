"""Replicas by the latency that clients see, as a policy for Ray Serve's autoscaler.

Ray's own policy counts requests in flight. This one also looks at the 95th percentile of each
replica's answers: more replicas while the slowest is over its target, fewer only while all are far
below it. Ray applies bounds and delays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from raypipe.errors import ConfigError

P95 = "p95_ms"
"""Name of the figure that a replica reports."""

RELAXED = 0.5
"""Below this part of the target replicas may go; between it and the target none comes or goes."""

STEP = 2.0
"""At most so many times as many replicas at once."""

RECENT = 1_024


class Latencies:
    """The latest answers of a replica, for their 95th percentile.

    >>> times = iter(range(100))
    >>> latencies = Latencies(50, lambda: next(times))
    >>> for ms in range(40):
    ...     latencies.add(ms / 1_000)
    >>> latencies.p95_ms
    38.0
    """

    def __init__(self, horizon_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._horizon_s = horizon_s
        self._monotonic = monotonic
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def add(self, seconds: float) -> None:
        """One more answer."""
        self._recent.append((self._monotonic(), seconds))

    @property
    def p95_ms(self) -> float:
        """Milliseconds; 0 where nothing was answered lately."""
        since = self._monotonic() - self._horizon_s
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        ordered = sorted(seconds for _, seconds in self._recent)
        return 1_000 * ordered[int(0.95 * len(ordered))] if ordered else 0.0


def wanted(running: int, by_load: float, p95_ms: float, target_ms: float) -> float:
    """How many replicas there should be, before bounds and delays.

    Args:
        running: how many there are.
        by_load: how many the requests in flight ask for.
        p95_ms: of the slowest replica.

    >>> wanted(2, 1.0, 90.0, 60.0), wanted(2, 1.0, 40.0, 60.0), wanted(2, 1.0, 20.0, 60.0)
    (3.0, 2.0, 1.0)
    >>> wanted(2, 9.0, 500.0, 60.0)
    9.0
    """
    if p95_ms > target_ms:
        return max(by_load, running * min(STEP, p95_ms / target_ms))
    return max(by_load, 0.0 if p95_ms < RELAXED * target_ms else float(running))


class P95Latency:
    """What Ray Serve's controller calls; it makes one from ``policy_kwargs``."""

    def __init__(self, target_ms: float) -> None:
        if target_ms <= 0:
            raise ConfigError(f"a p95 of {target_ms} ms can't be reached")
        self._target_ms = target_ms

    def __call__(self, context: Any) -> tuple[float, dict[str, object]]:
        """The number of replicas, and no state; ``context`` is Ray's AutoscalingContext."""
        known = (context.aggregated_metrics or {}).get(P95, {})
        slowest = max(known.values(), default=0.0)
        by_load = context.total_num_requests / context.config.get_target_ongoing_requests()
        running = context.current_num_replicas
        return max(1.0, wanted(running, by_load, slowest, self._target_ms)), {}
