"""Off-policy estimates of payments of which the world knows what each action would have earned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.trials.world import Floats, People
from raypipe.experiments.offpolicy import Value, doubly_robust, ips, snips

MARGIN = 0.02
"""What a genuine payment earns; a fraudulent one loses all of it; a blocked one is zero."""

FLOOR = 0.1
_MODEL_BUCKETS = 20


class Payments:
    """Payments, two policies (their chances to approve each) and the truth about the other one."""

    def __init__(self, people: People, largest: float = 500.0) -> None:
        some = people.amount <= largest
        self.amount, fraud = people.amount[some], people.fraud[some]
        self.reward = np.where(fraud, -self.amount, MARGIN * self.amount)
        rank = np.argsort(np.argsort(self.amount)) / len(self.amount)
        self.logging = np.clip(1.0 - rank, FLOOR, 1.0 - FLOOR)
        self.other = np.where(self.amount < 100.0, 0.95, 0.3)
        self.truth = float((self.other * self.reward).mean())
        self.model = self._learned(rank)

    def _learned(self, rank: Floats) -> Floats:
        """What approving earns, by size, from every tenth payment: good enough, and not right."""
        bucket = (rank * _MODEL_BUCKETS).astype(np.int64)
        tenth = bucket[::10]
        sums = np.bincount(tenth, self.reward[::10], _MODEL_BUCKETS)
        found: Floats = (sums / np.maximum(np.bincount(tenth, minlength=_MODEL_BUCKETS), 1))[bucket]
        return found

    def estimates(self, rows: int, trials: int, rng: np.random.Generator) -> Iterator[list[Value]]:
        """IPS, SNIPS and DR of so many payments, each trial with its own actions."""
        for _ in range(trials):
            some = rng.integers(0, len(self.amount), rows)
            approve = rng.random(rows) < self.logging[some]
            reward = np.where(approve, self.reward[some], 0.0)
            chance = np.where(approve, self.logging[some], 1.0 - self.logging[some])
            target = np.where(approve, self.other[some], 1.0 - self.other[some])
            guess = self.model[some]
            yield [
                ips(reward, chance, target),
                snips(reward, chance, target),
                doubly_robust(
                    reward, chance, target, np.where(approve, guess, 0.0), self.other[some] * guess
                ),
            ]

    def coverage(self, rows: int, trials: int, rng: np.random.Generator) -> dict[str, int]:
        """How many of the intervals hold the truth, by method."""
        hits = {"ips": 0, "snips": 0, "dr": 0}
        for values in self.estimates(rows, trials, rng):
            for v in values:
                hits[v.method] += self.truth in v.interval
        return hits
