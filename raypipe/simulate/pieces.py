"""Transactions and chargebacks that travel together in arrival order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.simulate.rows import Rows, together
from raypipe.simulate.tables import reported_at


@dataclass(frozen=True, slots=True)
class Piece:
    """Transactions and chargebacks, each sorted by arrival."""

    transactions: Rows
    chargebacks: Rows

    def __len__(self) -> int:
        return len(self.transactions) + len(self.chargebacks)

    def until(self, end_ms: int) -> Piece:
        """What arrives before a time."""
        bought = int(np.searchsorted(self.transactions.received, end_ms))
        told = int(np.searchsorted(reported_at(self.chargebacks), end_ms))
        return self._split(bought, told)[0]

    def split(self, count: int) -> tuple[Piece, Piece]:
        """The first ``count`` rows by arrival, transactions first among equals, and the rest."""
        before = np.searchsorted(self.transactions.received, reported_at(self.chargebacks), "right")
        told = int(np.searchsorted(before + np.arange(len(before)), count))
        return self._split(count - told, told)

    def _split(self, bought: int, told: int) -> tuple[Piece, Piece]:
        return (
            Piece(
                self.transactions.take(slice(None, bought)),
                self.chargebacks.take(slice(None, told)),
            ),
            Piece(
                self.transactions.take(slice(bought, None)),
                self.chargebacks.take(slice(told, None)),
            ),
        )


def join(pieces: Sequence[Piece]) -> Piece:
    """Pieces one after the other; at least one."""
    return Piece(
        together([p.transactions for p in pieces]), together([p.chargebacks for p in pieces])
    )
