"""The ids of rows about to be appended, and how a table ``ids(hash, place)`` is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.log.identity import Hashes, Keys, id_column
from raypipe.log.port import DuplicateId

SAME_HASH = """
select j.key, i.place from json_each(?) j
cross join ids i on i.hash = j.value and i.place between ? and ?
order by j.key, i.place
"""
"""(index, place) of known ids for a JSON list of hashes, between two places."""


@dataclass(frozen=True, eq=False)
class NewIds:
    """The ids of one batch."""

    kind: str
    keys: Keys
    hashes: Hashes

    def __len__(self) -> int:
        return len(self.hashes)

    def key(self, row: int) -> tuple[str, str]:
        """Tenant and id of one row."""
        return self.keys[0][row], self.keys[1][row]

    def duplicate(self, row: int, where: str) -> DuplicateId:
        """The error for a row whose id is taken."""
        tenant, id = self.key(row)
        return DuplicateId(
            f"{id_column(self.kind)} {id!r} of tenant {tenant!r} is {where}",
            hint="Look ids up with find() first; nothing of this append was written.",
        )


def check_once(batches: Sequence[NewIds]) -> None:
    """Raise DuplicateId when an id comes twice in one append."""
    hashes = [h for new in batches for h in signed(new.hashes)]
    if len(set(hashes)) == len(hashes):
        return
    seen = set()
    for new in batches:
        for row in range(len(new)):
            name = (new.kind, *new.key(row))
            if name in seen:
                raise new.duplicate(row, "twice in this append")
            seen.add(name)


def signed(hashes: Hashes) -> list[int]:
    """The hashes as SQLite's integers."""
    found: list[int] = hashes.view(np.int64).tolist()
    return found
