"""Latency at a rate that the clients choose, not the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.decisions.rounds import Candidate
from benchmarks.load import Load, open_loop

OF_SATURATION = 0.7
CONNECTIONS = 64


@dataclass(frozen=True)
class OpenRate:
    """Runs at one rate."""

    rate: float
    loads: Sequence[Load]

    def ms(self, percentile: float) -> float:
        """The median of the runs' percentiles."""
        return float(np.median([load.percentile_ms(percentile) for load in self.loads]))

    @property
    def client_lag_ms(self) -> float:
        """How late the client itself was at the 99th percentile: it is part of the latency."""
        return float(np.median([np.percentile(load.lag, 99) * 1e3 for load in self.loads]))

    @property
    def errors(self) -> int:
        """Wrong answers."""
        return sum(sum(load.errors.values()) for load in self.loads)


def at_open_rate(candidate: Candidate, saturated: float, count: int, repeats: int) -> OpenRate:
    """Ask ``count`` times a run at OF_SATURATION of the rate that the closed loop reached."""
    rate = OF_SATURATION * saturated
    loads = []
    for _ in range(repeats):
        bodies = [next(candidate.bodies) for _ in range(count)]
        loads.append(
            open_loop(
                candidate.target,
                bodies,
                rate=rate,
                connections=CONNECTIONS,
                verdict=candidate.verdict,
            )
        )
    return OpenRate(rate, loads)
