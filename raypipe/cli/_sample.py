"""Made-up orders and refunds for a new project: the same ones each time."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

ORDERS = 3_000
DAYS = 75
_START = datetime(2026, 1, 5, tzinfo=UTC)
_SHOPS = ("north", "south", "east", "west")


def write(folder: Path) -> None:
    """``orders.csv`` and ``refunds.csv``. Orders far above a buyer's habit are often refunded."""
    rng = random.Random(7)  # noqa: S311 - nothing here is secret
    habits = [rng.uniform(15, 90) for _ in range(120)]
    seconds = sorted(rng.randrange(DAYS * 86_400) for _ in range(ORDERS))
    orders, refunds = [], []
    for number, second in enumerate(seconds, 1):
        buyer = rng.randrange(len(habits))
        odd = rng.random() < 0.05
        total = habits[buyer] * (rng.uniform(5, 12) if odd else rng.lognormvariate(0, 0.3))
        at = _START + timedelta(seconds=second)
        orders.append((number, at.isoformat(), buyer, rng.choice(_SHOPS), f"{total:.2f}"))
        if rng.random() < (0.85 if odd else 0.004):
            known = at + timedelta(hours=rng.randrange(6, 12 * 24))
            refunds.append((number, buyer, known.isoformat()))
    _table(folder / "orders.csv", ("order_no", "placed_at", "buyer", "shop", "total"), orders)
    _table(folder / "refunds.csv", ("order_no", "buyer", "known_at"), refunds)


def _table(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
