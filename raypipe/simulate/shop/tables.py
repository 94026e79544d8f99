"""A day of the shop as tables of events: what a client would send, by event type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.clock import DAY_MS
from raypipe.simulate.draws import Ints, Purpose, key_of
from raypipe.simulate.ids import constant, decimal, opaque, scramble
from raypipe.simulate.shop.world import Looks, Shop

CURRENCY = "EUR"
_ORDER_MS = 60_000
_DAY_BITS = 28


def shoppers(numbers: Ints) -> pa.Array:
    """Ids of shoppers."""
    return decimal("shopper_", numbers)


def items(numbers: Ints) -> pa.Array:
    """Ids of items."""
    return decimal("item_", numbers)


def events(shop: Shop, day: int) -> dict[str, pa.Table]:
    """``page_view``, ``cart``, ``order``, ``order_line`` and ``listing`` of a day, by time.

    Day 0 lists all that is on the shelf when the shop opens; later a day lists what appears on it,
    and what is taken off.
    """
    looks = shop.looks(day)
    visits = opaque("visit_", _numbers(shop, day, looks.visit))
    known = pa.array(looks.anonymous)
    who = shoppers(looks.shopper)
    common = {
        "customer_id": pa.compute.if_else(known, pa.scalar(None, pa.string()), who),
        "session_id": visits,
        "item_id": items(looks.item),
    }
    views = _table("view", shop, day, looks.time, common)
    carts = {
        **common,
        "action": constant("add", len(looks)),
        "quantity": pa.array(looks.quantity),
        "price": pa.array(shop.items.price[looks.item]),
    }
    added = np.flatnonzero(looks.added)
    return {
        "page_view": views,
        "cart": _table("cart", shop, day, looks.time + 1_000, carts, added),
        **_orders(shop, day, looks, visits),
        "listing": _listings(shop, day),
    }


def _orders(shop: Shop, day: int, looks: Looks, visits: pa.Array) -> dict[str, pa.Table]:
    lines = np.flatnonzero(looks.ordered)
    visit, first, order = np.unique(looks.visit[lines], return_index=True, return_inverse=True)
    last = np.zeros(int(looks.visit.max(initial=-1)) + 1, np.int64)
    np.maximum.at(last, looks.visit, looks.time)
    at = last[visit] + _ORDER_MS
    money = shop.items.price[looks.item[lines]] * looks.quantity[lines]
    number = opaque("order_", _numbers(shop, day, visit + (1 << (_DAY_BITS - 1))))
    who = shoppers(looks.shopper[lines])
    orders = {
        "order_id": number,
        "session_id": visits.take(pa.array(lines[first])),
        "customer_id": who.take(pa.array(first)),
        "amount": pa.array(np.bincount(order, money, len(visit)).astype(np.int64)),
        "currency": constant(CURRENCY, len(visit)),
        "items": pa.array(np.bincount(order, looks.quantity[lines], len(visit)).astype(np.int64)),
    }
    rows = {
        "order_id": number.take(pa.array(order)),
        "session_id": visits.take(pa.array(lines)),
        "customer_id": who,
        "item_id": items(looks.item[lines]),
        "quantity": pa.array(looks.quantity[lines]),
        "price": pa.array(shop.items.price[looks.item[lines]]),
    }
    return {
        "order": _table("order", shop, day, at, orders),
        "order_line": _table("line", shop, day, at[order], rows),
    }


def _listings(shop: Shop, day: int) -> pa.Table:
    new = shop.items.launch <= 0 if day == 0 else shop.items.launch == day
    new &= shop.items.gone > day
    gone = (shop.items.gone == day) if day else np.zeros(len(new), np.bool_)
    which = np.flatnonzero(new | gone)
    columns = {
        "item_id": items(which),
        "category": decimal("category_", shop.items.category[which], 1),
        "brand": decimal("brand_", shop.items.brand[which], 1),
        "price": pa.array(shop.items.price[which]),
        "available": pa.array(new[which]),
    }
    return _table(
        "item", shop, day, np.full(len(which), shop.config.start_ms + day * DAY_MS), columns
    )


def _table(
    kind: str,
    shop: Shop,
    day: int,
    time: Ints,
    columns: dict[str, Any],
    rows: Ints | None = None,
) -> pa.Table:
    ids = opaque(f"{kind}_", _numbers(shop, day, np.arange(len(time))))
    envelope = {"event_id": ids, "event_time": pa.array(time), "received_at": pa.array(time)}
    whole = pa.table({**envelope, **columns})
    order = np.arange(len(time)) if rows is None else rows
    return whole.take(pa.array(order[np.argsort(time[order], kind="stable")]))


def _numbers(shop: Shop, day: int, numbers: Ints) -> Ints:
    key = key_of(shop.config.seed, Purpose.SHOP_VISIT_ID)
    return scramble((day << _DAY_BITS) + numbers, key)
