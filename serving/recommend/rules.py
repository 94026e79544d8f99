"""What a shop does not show, whatever a model thinks of it: one verdict for each candidate.

Items are codes into columns of the catalogue; a request's candidates are some of them. Caps and
sponsored places depend on what else is in the list, so they are declared here and applied where the
list is filled (``slots``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from raypipe.errors import DeclarationError, InvalidRequest

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

NO_CAP = 0


def no_codes() -> Integers:
    """Of no item."""
    return np.zeros(0, np.int64)


class Verdict(IntEnum):
    """Why a candidate may not be shown; the first that holds, in this order."""

    ALLOWED = 0
    OUT_OF_STOCK = 1
    BOUGHT = 2
    HIDDEN = 3
    FILTERED = 4


@dataclass(frozen=True, slots=True)
class Items:
    """Columns by item code, all [items]: ``category`` and ``brand`` int64, -1 where unknown;
    ``price`` float64 minor units, NaN where unknown; ``in_stock`` bool.
    """

    category: Integers
    brand: Integers
    price: Doubles
    in_stock: Flags

    def __post_init__(self) -> None:
        # One type each: the kernels behind compile once.
        for name, kind in (("category", "i8"), ("brand", "i8"), ("price", "f8"), ("in_stock", "?")):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), kind))
        if len({len(self.category), len(self.brand), len(self.price), len(self.in_stock)}) != 1:
            raise DeclarationError(
                f"columns of {len(self.category)}, {len(self.brand)}, {len(self.price)} and "
                f"{len(self.in_stock)} items",
                hint="Category, brand, price and stock are of the same items.",
            )

    def __len__(self) -> int:
        return len(self.category)

    def __repr__(self) -> str:
        return f"Items({len(self)}, {int(self.in_stock.sum())} in stock)"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Codes that must not come: ``bought`` int64 [b] with the times of the newest purchases,
    ``bought_ms`` int64 [b]; ``hidden`` int64 [h], what he does not want to see.
    """

    bought: Integers = field(default_factory=no_codes)
    bought_ms: Integers = field(default_factory=no_codes)
    hidden: Integers = field(default_factory=no_codes)


@dataclass(frozen=True, slots=True)
class Filters:
    """What the request asks for. None is anything; codes of categories and brands; both ends of
    the price are allowed. An item that lacks the attribute does not pass its filter.

    Raises InvalidRequest for a range of prices that nothing can be in.
    """

    categories: Integers | None = None
    brands: Integers | None = None
    price_from: float | None = None
    price_to: float | None = None

    def __post_init__(self) -> None:
        low, high = self.price_from, self.price_to
        if low is not None and high is not None and not low <= high:
            raise InvalidRequest(
                f"prices from {low:g} to {high:g} are asked for",
                hint="The lower end comes first.",
            )


@dataclass(frozen=True, slots=True)
class Caps:
    """How many items of one category and of one brand a list has at most; NO_CAP is any number.

    Items without the attribute are not counted. When nothing else is left, the best of what the
    caps held back fills the list, unless ``strict``: then the list is shorter.
    """

    category: int = NO_CAP
    brand: int = NO_CAP
    strict: bool = False

    def __post_init__(self) -> None:
        if min(self.category, self.brand) < 0:
            raise DeclarationError(
                f"caps of {self.category} a category and {self.brand} a brand",
                hint="A cap is 1 or more; leave it out for any number.",
            )


@dataclass(frozen=True, slots=True)
class Rules:
    """A shop's rules for lists.

    ``rebuy_ms``: so long after it was bought an item may come again; None is never. ``sponsored``
    are the places, from 1, at which sponsored items stand; a place for which none is left takes an
    ordinary one.
    """

    rebuy_ms: int | None = None
    show_out_of_stock: bool = False
    caps: Caps = field(default_factory=Caps)
    sponsored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rebuy_ms is not None and self.rebuy_ms < 0:
            raise DeclarationError(
                f"an item may come again {self.rebuy_ms} ms after it was bought",
                hint="Give 0 or more; leave it out for never.",
            )
        check_places("sponsored", self.sponsored)


def check_places(what: str, places: tuple[int, ...]) -> None:
    """Raise DeclarationError unless places of a list ascend from 1 or later."""
    if list(places) != sorted(set(places)) or (places and places[0] < 1):
        raise DeclarationError(
            f"{what} places are {list(places)}",
            hint="Places count from 1; each comes once, in ascending order.",
        )


def judged(
    codes: Integers, items: Items, rules: Rules, visitor: Visitor, filters: Filters, now_ms: int
) -> npt.NDArray[np.int8]:
    """The Verdict on each candidate, int8 [n].

    >>> columns = ([0, 0, 1], [-1, 2, 2], [500, 700, np.nan], [True, True, False])
    >>> shelf = Items(*map(np.array, columns))
    >>> wanted = Filters(categories=np.array([0]), price_to=600.0)
    >>> judged(np.arange(3), shelf, Rules(), Visitor(), wanted, now_ms=0).tolist()
    [0, 4, 1]
    """
    out = np.zeros(len(codes), np.int8)
    out[~_passes(codes, items, filters)] = Verdict.FILTERED
    out[among(codes, visitor.hidden)] = Verdict.HIDDEN
    out[among(codes, _still_bought(rules, visitor, now_ms))] = Verdict.BOUGHT
    if not rules.show_out_of_stock:
        out[~items.in_stock[codes]] = Verdict.OUT_OF_STOCK
    return out


def among(codes: Integers, others: Integers) -> Flags:
    """Whether each is one of some others, bool [n]; for few codes faster than ``numpy.isin``."""
    if not len(others):
        return np.zeros(len(codes), np.bool_)
    ordered = np.sort(others)
    found: Flags = ordered[np.minimum(np.searchsorted(ordered, codes), len(ordered) - 1)] == codes
    return found


def _in(values: Integers, wanted: Integers) -> Flags:
    return among(values, wanted) & (values >= 0)


def _still_bought(rules: Rules, visitor: Visitor, now_ms: int) -> Integers:
    if rules.rebuy_ms is None:
        return visitor.bought
    return visitor.bought[visitor.bought_ms + rules.rebuy_ms > now_ms]


def _passes(codes: Integers, items: Items, filters: Filters) -> Flags:
    passing = np.ones(len(codes), np.bool_)
    if filters.categories is not None:
        passing &= _in(items.category[codes], filters.categories)
    if filters.brands is not None:
        passing &= _in(items.brand[codes], filters.brands)
    # A comparison with NaN is false: an unknown price is in no range.
    if filters.price_from is not None:
        passing &= items.price[codes] >= filters.price_from
    if filters.price_to is not None:
        passing &= items.price[codes] <= filters.price_to
    return passing
