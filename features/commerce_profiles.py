"""Slow features of a shop's customers, made once a day. Declarations only."""

from __future__ import annotations

from raypipe.profiles import Profile, Value, facts

SHOPPER_PROFILE = Profile(
    name="shopper_profile",
    entity="customer",
    key="customer_id",
    facts=(
        facts("page_view", visits="count(DISTINCT session_id)"),
        facts("order", orders="count(*)", spent="sum(amount)", pieces="sum(items)"),
        facts("order_line", prices="list(price ORDER BY price)"),
    ),
    values=(
        Value("orders", "coalesce(sum(orders), 0)", "orders of the last year"),
        Value("order_value", "sum(spent) / sum(orders)", "mean order, minor units"),
        Value("order_pieces", "sum(pieces) / sum(orders)", "mean number of pieces of an order"),
        Value(
            "price_median",
            "list_aggregate(flatten(list(prices) FILTER (prices IS NOT NULL)), 'median')",
            "median price of what was ordered, minor units of a piece",
        ),
        Value("tenure_days", "max(age)", "days since the customer was first seen"),
        Value("first_order_days", "max(age) FILTER (orders > 0)", "days since the first order"),
        Value("last_order_days", "min(age) FILTER (orders > 0)", "days since the last order"),
        Value(
            "order_rate",
            "(coalesce(sum(orders), 0) + 1) / (coalesce(sum(visits), 0) + 20)",
            "orders a visit; few visits draw it towards 5 %",
        ),
    ),
    description="how long a customer is known, how often and for how much he orders",
    owner="shop-discovery",
)

PROFILES = (SHOPPER_PROFILE,)
