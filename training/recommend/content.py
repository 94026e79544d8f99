"""Items that nobody has taken yet, found by what the catalogue says of them.

Retrieval by who took what can't propose a new item. Its attributes can: cosine of attribute
vectors, rare values weighing more (``Catalogue.attributes``). The table has neighbours for every
item, and only new ones as neighbours; the blend gives it its place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from training.recommend.neighbours import NeighbourTable, diagonal
from training.recommend.products import Product, Run, gathered, in_process
from training.recommend.rows import Rows


@dataclass(frozen=True, slots=True)
class NewByContent:
    """The ``neighbours`` most alike of the items with fewer than ``few`` users."""

    neighbours: int = 50
    few: int = 5
    name: ClassVar[str] = "new_by_content"

    def fit(self, train: Rows, attributes: Rows, run: Run = in_process) -> NeighbourTable:
        """From [users, items] and [items, attribute values]."""
        users = np.bincount(train.columns, minlength=train.width)
        squares = attributes.values.astype(np.float64) ** 2
        norms = np.sqrt(np.bincount(attributes.row_of, squares, len(attributes)))
        product = Product.of(
            attributes,
            attributes.transposed(),
            self.neighbours,
            skip=diagonal(len(attributes)),
            norms=(norms, norms),
            gain=(users < self.few).astype(np.float64),
        )
        return NeighbourTable(gathered(product, run))

    def describe(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return asdict(self)
