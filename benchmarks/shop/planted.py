"""Bodies of the shop's traffic with mistakes planted in them, and what must become of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.shop.traffic import Row, Shop, Template
from raypipe.clock import DAY_MS

LATE_MS = 40 * DAY_MS

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Planted:
    """A template, and by row number what is to be answered; rows not named are accepted."""

    template: Template
    outcomes: dict[int, str]
    twins: dict[int, int]
    """Duplicates: a row that has the id of another."""
    late: Ints
    """Rows that happened before every window."""

    def fill(self, first_id: int, times: Ints) -> bytes:
        """The body for ids from ``first_id`` on."""
        ids = np.arange(first_id, first_id + self.template.rows)
        for row, twin in self.twins.items():
            ids[row] = first_id + twin
        times = times.copy()
        times[self.late] -= LATE_MS
        return self.template.fill_ids(ids, times)

    def accepted_ids(self, first_id: int) -> Ints:
        """The ids that must be in the log afterwards."""
        numbers = np.arange(first_id, first_id + self.template.rows)
        return np.delete(numbers, list(self.outcomes))

    def right(self, answer: dict[str, Any]) -> int:
        """Rows whose outcome is the expected one."""
        said = {e["row"]: e["outcome"] for e in answer["exceptions"]}
        wrong = {
            row for row in said.keys() | self.outcomes if said.get(row) != self.outcomes.get(row)
        }
        return self.template.rows - len(wrong)


def plant(shop: Shop, rows: int, share: float, seed: int) -> Planted:
    """A body of ``rows`` with mistakes in ``share`` of them."""
    rng = np.random.default_rng(seed)
    made = shop.rows(rows)
    places = rng.choice(rows, round(rows * share), replace=False)
    outcomes: dict[int, str] = {}
    twins: dict[int, int] = {}
    late: list[int] = []
    for place in map(int, places):
        match int(rng.integers(5)):
            case 0:
                made[place] = _changed(made[place], _wrong_type(made[place]))
                outcomes[place] = "refused"
            case 1:
                made[place] = Row(made[place].kind, _without_one(made[place].fields))
                outcomes[place] = "refused"
            case 2:
                made[place] = _changed(made[place], {"tenant": "another"})
                outcomes[place] = "refused"
            case 3:
                twin = place - 1 if place else place + 1
                if twin in outcomes or made[twin].kind != made[place].kind or twin > place:
                    late.append(place)
                else:
                    twins[place] = twin
                    outcomes[place] = "duplicate"
            case _:
                late.append(place)
    # A twin that was spoilt afterwards takes no id, so its copy is no duplicate.
    for row in [row for row, twin in twins.items() if twin in outcomes]:
        del twins[row], outcomes[row]
    return Planted(Template(made, shop.customers), outcomes, twins, np.array(late, np.int64))


def _changed(row: Row, changes: dict[str, Any]) -> Row:
    return Row(row.kind, row.fields | changes)


def _wrong_type(row: Row) -> dict[str, Any]:
    name = "amount" if "amount" in row.fields else "customer_id"
    return {name: ["no", "number"] if name == "customer_id" else "12.50"}


def _without_one(fields: dict[str, Any]) -> dict[str, Any]:
    required = ("session_id", "amount", "customer_id")
    name = next(n for n in required if n in fields)
    return {n: v for n, v in fields.items() if n != name}


def planted(shop: Shop, bodies: int, rows: int, share: float, seed: int) -> list[Planted]:
    """So many bodies."""
    return [plant(shop, rows, share, seed + i) for i in range(bodies)]
