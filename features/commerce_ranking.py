"""Windows that order recommendations in a shop. Declarations only.

Not in ``features.commerce``'s project: its model decides about payments and would carry them along.
"""

from __future__ import annotations

from raypipe.windows.spec import WindowView, count, distinct, mean, since_last, spans, std, total

OWNER = "shop-discovery"

DEMAND = WindowView(
    name="demand",
    entity="item",
    event="page_view",
    key="item_id",
    aggregates=(
        count(of="page_view", name="viewed", over=("1h", "1d", "7d", "30d"), lags=(("7d", "1d"),)),
        count(of="cart", where="action == 'add'", name="added", over=("1d", "7d", "30d")),
        count(of="order_line", name="ordered", over=("1d", "7d", "30d"), lags=(("30d", "7d"),)),
        total("quantity", of="order_line", name="ordered", over=("7d", "30d")),
        distinct("session_id", of="page_view", registers=256, over=("1d",)),
        since_last(of="order_line"),
    ),
    spans=spans("1h/1m", "1d/30m", "7d/3h", "30d/12h"),
    also=("cart", "order_line"),
    description="how much an article is wanted, and whether more or less than before",
    owner=OWNER,
)

SHOPPER = WindowView(
    name="shopper",
    entity="customer",
    event="page_view",
    key="customer_id",
    aggregates=(
        count(of="page_view", name="viewed", over=("1h", "1d", "30d")),
        count(of="cart", where="action == 'add'", name="added", over=("1d", "30d")),
        count(of="order_line", name="bought", over=("7d", "30d")),
        mean("price", of="order_line", name="bought", over=("30d",)),
        std("price", of="order_line", name="bought", over=("30d",)),
        since_last(of="order_line"),
    ),
    spans=spans("1h/1m", "1d/30m", "7d/3h", "30d/12h"),
    also=("cart", "order_line"),
    description="how busy a customer is, and what he pays for an article",
    owner=OWNER,
)

VIEWS = (DEMAND, SHOPPER)
