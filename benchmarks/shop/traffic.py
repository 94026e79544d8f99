"""What happens in the shop: rows of mixed types by seed, as columns or as JSON lines.

The mix is 70 % page views, 25 % orders and payments, 5 % of the rest. Customers are drawn evenly,
articles and sellers by a power law, and each customer has a card, a device and a visit at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MIX = {
    "page_view": 0.70,
    "order": 0.12,
    "payment": 0.13,
    "search": 0.01,
    "cart": 0.02,
    "login": 0.013,
    "refund": 0.004,
    "password_change": 0.001,
    "chargeback": 0.002,
}
ITEMS = 40_000
MERCHANTS = 5_000

ID_DIGITS = 12
TIME_DIGITS = 13
CUSTOMER_DIGITS = 7
_ID = "e" + "0" * ID_DIGITS
_TIME = 10 ** (TIME_DIGITS - 1)


@dataclass(frozen=True)
class Row:
    """One event: its type and its fields, without id and time."""

    kind: str
    fields: dict[str, Any]


class Shop:
    """Draws rows; the same seed gives the same rows."""

    def __init__(self, customers: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.customers = customers

    def rows(self, count: int, kinds: Sequence[str] | None = None) -> list[Row]:
        """So many rows, of ``kinds`` or of the whole mix."""
        names = list(MIX) if kinds is None else list(kinds)
        shares = np.array([MIX[name] for name in names])
        which = self._rng.choice(len(names), count, p=shares / shares.sum())
        customers = self._rng.integers(0, self.customers, count)
        items, sellers = self._popular(ITEMS, count), self._popular(MERCHANTS, count)
        amounts = self._rng.integers(100, 50_000, count)
        luck = self._rng.random(count)
        return [
            Row(names[k], _FIELDS[names[k]](_Draw(int(c), int(i), int(m), int(a), float(u))))
            for k, c, i, m, a, u in zip(
                which, customers, items, sellers, amounts, luck, strict=True
            )
        ]

    def _popular(self, size: int, count: int) -> npt.NDArray[np.int64]:
        return (size * self._rng.random(count) ** 3).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Draw:
    customer: int
    item: int
    seller: int
    amount: int
    luck: float

    @property
    def who(self) -> str:
        return f"c{self.customer:07d}"

    @property
    def visit(self) -> str:
        return f"s{self.customer:07d}{int(self.luck * 4)}"

    @property
    def article(self) -> str:
        return f"i{self.item:05d}"

    @property
    def card(self) -> str:
        return f"k{self.customer:07d}"

    @property
    def device(self) -> str:
        return f"d{self.customer:07d}"

    @property
    def money(self) -> dict[str, Any]:
        return {"amount": self.amount, "currency": "EUR"}

    @property
    def order(self) -> str:
        return f"o{self.customer:07d}{int(self.luck * 1e4):04d}"


_FIELDS: dict[str, Callable[[_Draw], dict[str, Any]]] = {
    "page_view": lambda d: {
        "customer_id": d.who,
        "session_id": d.visit,
        "item_id": d.article,
        "category": f"cat{d.item % 40}",
    },
    "search": lambda d: {"customer_id": d.who, "session_id": d.visit, "query": f"word {d.item}"},
    "cart": lambda d: {
        "customer_id": d.who,
        "session_id": d.visit,
        "item_id": d.article,
        "action": "add" if d.luck < 0.8 else "remove",
        "quantity": 1 + d.item % 3,
        "price": d.amount,
    },
    "order": lambda d: {
        "order_id": d.order,
        "session_id": d.visit,
        "customer_id": d.who,
        **d.money,
        "items": 1 + d.item % 4,
        "country": "DE",
    },
    "payment": lambda d: {
        "order_id": d.order,
        "customer_id": d.who,
        "card_id": d.card,
        "merchant_id": f"m{d.seller:04d}",
        "device_id": d.device,
        **d.money,
        "method": "card",
        "approved": d.luck < 0.95,
        "country": "DE",
    },
    "refund": lambda d: {
        "order_id": d.order,
        "customer_id": d.who,
        **d.money,
        "reason": "returned",
    },
    "login": lambda d: {
        "customer_id": d.who,
        "device_id": d.device,
        "country": "DE",
        "success": d.luck < 0.9,
        "new_device": d.luck < 0.02,
    },
    "password_change": lambda d: {"customer_id": d.who, "device_id": d.device},
    "chargeback": lambda d: {
        "payment_id": f"p{d.customer:07d}",
        "card_id": d.card,
        "customer_id": d.who,
        "merchant_id": f"m{d.seller:04d}",
        **d.money,
    },
}


class Template:
    """A body of JSON lines whose ids, times and customers are filled in when it is sent.

    Args:
        customers: how many there are; None: the rows keep theirs.
    """

    def __init__(self, rows: Sequence[Row], customers: int | None = None) -> None:
        lines = [
            json.dumps(
                {"type": r.kind, "event_id": _ID, "event_time": _TIME, **r.fields},
                separators=(",", ":"),
            )
            for r in rows
        ]
        text = "\n".join(lines).encode()
        self.rows = len(rows)
        self._bytes = np.frombuffer(text, np.uint8).copy()
        starts = np.cumsum([0, *(len(line.encode()) + 1 for line in lines[:-1])])
        self._ids = _places(lines, starts, f'"event_id":"{_ID}', 1 + ID_DIGITS)
        self._times = _places(lines, starts, f'"event_time":{_TIME}', TIME_DIGITS)
        self._customers = customers
        found = [m.start(1) for m in _OF_CUSTOMER.finditer(text)]
        self._named = np.array(found, np.int64)[:, None] + np.arange(CUSTOMER_DIGITS)
        digits = self._bytes[self._named].astype(np.int64) - ord("0")
        self._numbers = digits @ 10 ** np.arange(CUSTOMER_DIGITS - 1, -1, -1)

    def fill(self, first_id: int, times: npt.NDArray[np.int64]) -> bytes:
        """The body with ids ``first_id``, ``first_id + 1``, ... and these times (ms)."""
        return self.fill_ids(np.arange(first_id, first_id + self.rows), times)

    def fill_ids(self, ids: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> bytes:
        """The body with these numbers in its ids and these times (ms).

        Its customers are others each time, with all that is theirs; they fall evenly.
        """
        if self._customers is not None:
            shifted = (self._numbers + mixed(int(ids[0])) % self._customers) % self._customers
            self._bytes[self._named] = _digits(shifted, CUSTOMER_DIGITS)
        self._bytes[self._ids[:, 1:]] = _digits(ids, ID_DIGITS)
        self._bytes[self._times] = _digits(times, TIME_DIGITS)
        return self._bytes.tobytes()


def mixed(number: int) -> int:
    """64 bits that look random (splitmix64: Steele et al., Fast splittable pseudorandom number
    generators, 2014). Customers that a multiple moved would meet in the same rows again and again.
    """
    word = (number * 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


_WORD = 2**64 - 1

_OF_CUSTOMER = re.compile(rb'"[cskdop](\d{7})\d*"')
"""What bears a customer's number: customer, session, card, device, order, payment."""


def event_id(number: int) -> str:
    """The id that ``Template.fill`` writes for a number."""
    return f"e{number:0{ID_DIGITS}d}"


def _places(
    lines: Sequence[str], starts: npt.NDArray[np.int64], text: str, width: int
) -> npt.NDArray[np.int64]:
    """Where in the body the last ``width`` characters of ``text`` stand in each line."""
    ends = np.array([line.index(text) + len(text) for line in lines], np.int64)
    return (starts + ends - width)[:, None] + np.arange(width, dtype=np.int64)


def _digits(numbers: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    powers = 10 ** np.arange(width - 1, -1, -1, dtype=np.int64)
    return (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8)
