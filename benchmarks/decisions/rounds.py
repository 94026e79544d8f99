"""Candidates in turns, each at several numbers of connections; latency and CPU of each turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.decisions.processes import Tree
from benchmarks.load import Load, Target, closed_loop

CONCURRENCY = (1, 8, 32)
WEIGHTS = {1: 1, 8: 3, 32: 6}
"""Requests of a turn by connections, as multiples of those with one."""

WARMUP = 50


@dataclass(frozen=True)
class Candidate:
    """What is measured. ``share`` of the requests is enough for one that is slow.

    ``bodies`` gives requests that were not sent before, ``verdict`` says what is wrong with an
    answer.
    """

    name: str
    target: Target
    tree: Tree
    bodies: Iterator[bytes]
    verdict: Callable[[int, int, bytes], str]
    points: Sequence[int] = CONCURRENCY
    share: float = 1.0

    def requests(self, each: int, connections: int) -> int:
        """Requests of one turn."""
        return max(round(each * WEIGHTS[connections] * self.share), connections)


@dataclass(frozen=True)
class Sample:
    """One turn of a candidate at one number of connections."""

    load: Load
    cpu_s: float
    """Of the server's processes."""

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server for a request."""
        return self.cpu_s / len(self.load.latencies) * 1e6


def needs(each: int, repeats: int, points: Sequence[int] = CONCURRENCY) -> int:
    """Bodies of all turns of a candidate that gets them all, the warm-up included."""
    return sum(max(WARMUP, c) + repeats * max(each * WEIGHTS[c], c) for c in points)


Samples = dict[tuple[str, int], list[Sample]]


def measure(candidates: Sequence[Candidate], each: int, repeats: int) -> Samples:
    """All candidates in turns after one warm-up turn; every second turn in reverse order."""
    found: Samples = {}
    for turn in range(repeats + 1):
        order = [(c, n) for n in CONCURRENCY for c in candidates if n in c.points]
        began = time.monotonic()
        for candidate, connections in order if turn % 2 else reversed(order):
            count = candidate.requests(each, connections) if turn else max(WARMUP, connections)
            sample = _once(candidate, connections, count)
            if turn or sample.load.errors:
                found.setdefault((candidate.name, connections), []).append(sample)
        print(
            f"decide: turn {turn} of {repeats} took {time.monotonic() - began:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return found


def _once(candidate: Candidate, connections: int, count: int) -> Sample:
    bodies = [next(candidate.bodies) for _ in range(count)]
    before = candidate.tree.cpu_s()
    load = closed_loop(candidate.target, bodies, connections=connections, verdict=candidate.verdict)
    return Sample(load, candidate.tree.cpu_s() - before)


@dataclass(frozen=True)
class Medians:
    """Medians over the turns, by candidate and connections."""

    samples: Mapping[tuple[str, int], Sequence[Sample]] = field(repr=False)

    def of(self, name: str, connections: int, figure: Callable[[Sample], float]) -> float:
        """The median of a figure of each turn."""
        return float(np.median([figure(s) for s in self.samples[name, connections]]))

    def ms(self, name: str, connections: int, percentile: float) -> float:
        """Latency."""
        return self.of(name, connections, lambda s: s.load.percentile_ms(percentile))

    def qps(self, name: str, connections: int) -> float:
        """Right answers a second."""
        return self.of(name, connections, lambda s: s.load.rate)

    def cpu_us(self, name: str, connections: int) -> float:
        """The server's CPU for a request."""
        return self.of(name, connections, lambda s: s.cpu_us)

    @property
    def errors(self) -> dict[str, int]:
        """Wrong answers, by candidate and what was wrong."""
        total: dict[str, int] = {}
        for (name, _), samples in self.samples.items():
            for sample in samples:
                for what, n in sample.load.errors.items():
                    total[f"{name}: {what}"] = total.get(f"{name}: {what}", 0) + n
        return total
