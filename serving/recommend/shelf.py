"""The catalogue as the newest listings have it: the version's, changed in place as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.recommend.rules import Items
from training.recommend.catalogue import AVAILABLE, PRICE, Catalogue
from training.recommend.ranking.features import ATTRIBUTES, Attributes

TITLE = "title"


class Shelf:
    """Attributes of items by code, in the forms of the ranker and of the rules.

    Args:
        catalogue: as of the version.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        known = Attributes.of(catalogue)
        # Copies: the version's arrays may be mapped, and these change.
        self.attributes = Attributes(
            {name: codes.copy() for name, codes in known.codes.items()},
            known.log_price.copy(),
            known.listed.copy(),
        )
        self._words = {name: self._coded(name) for name in ATTRIBUTES}
        listed = catalogue.has(AVAILABLE)
        nothing = np.full(len(catalogue), -1, np.int64)
        self.items = Items(
            category=self.attributes.codes.get("category", nothing.copy()),
            brand=self.attributes.codes.get("brand", nothing.copy()),
            price=catalogue.numbers(PRICE).copy(),
            # Without a single listing nobody says what can be ordered.
            in_stock=catalogue.available.copy() if listed else np.ones(len(catalogue), np.bool_),
        )
        self._newest = np.full(len(catalogue), -1, np.int64)
        table = catalogue.table
        # In one piece: to find the right one of many takes longer than to read it.
        self._called = table.column(TITLE).combine_chunks() if TITLE in table.column_names else None
        self._titles: dict[int, str | None] = {}

    def __len__(self) -> int:
        return len(self._catalogue)

    def __repr__(self) -> str:
        return f"Shelf({self.items})"

    def listed(self, item: int, row: Mapping[str, Any], time: int) -> None:
        """Take a listing in, unless a newer one of the item came before."""
        if time < self._newest[item]:
            return
        self._newest[item] = time
        for name in ATTRIBUTES:
            codes = self.items.category if name == "category" else self.items.brand
            codes[item] = self._code(name, row.get(name))
            if name in self.attributes.codes:
                self.attributes.codes[name][item] = codes[item]
        price = row.get(PRICE)
        self.items.price[item] = np.nan if price is None else price
        self.attributes.log_price[item] = np.nan if price is None else np.log(max(price, 1.0))
        self.items.in_stock[item] = bool(row.get(AVAILABLE))
        if np.isnan(self.attributes.listed[item]):
            self.attributes.listed[item] = time
        self._titles[item] = row.get(TITLE)

    def codes(self, name: str, words: list[str]) -> np.ndarray:
        """Codes of words of an attribute, int64 [n]; -2 for one that no item has."""
        return np.array([self._words[name].get(word, -2) for word in words], np.int64)

    def title(self, item: int) -> str | None:
        """What an item is called, if its listing says so."""
        if item in self._titles:
            return self._titles[item]
        return None if self._called is None else self._called[item].as_py()

    def _code(self, name: str, word: str | None) -> int:
        if word is None:
            return -1
        return self._words[name].setdefault(word, len(self._words[name]))

    def _coded(self, name: str) -> dict[str, int]:
        codes = self.attributes.codes.get(name)
        if codes is None:
            return {}
        found, first = np.unique(codes, return_index=True)
        column = self._catalogue.table.column(name)
        at = zip(found.tolist(), first.tolist(), strict=True)
        return {column[place].as_py(): code for code, place in at if code >= 0}
