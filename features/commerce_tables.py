"""What a shop looks at by the minute. Declarations only; money in minor units."""

from __future__ import annotations

from raypipe.tables.spec import Table, count, distinct, ratio, total

VISITS = ("page_view", "search", "cart", "order")

BUSINESS = Table(
    "business",
    events=(*VISITS, "payment", "refund", "chargeback"),
    measures=(
        count("orders", of="order"),
        total("revenue", "amount", of="order"),
        count("page_views", of="page_view"),
        distinct("sessions", "session_id", of=VISITS),
        ratio("conversion", "orders", "sessions"),
        count("payments", of="payment"),
        count("declined", of="payment", where="approved == 0"),
        count("refunds", of="refund"),
        total("refunded", "amount", of="refund"),
        count("chargebacks", of="chargeback"),
        ratio("fraud_rate", "chargebacks", "payments"),
    ),
    description="orders, visits, payments and what went wrong, by minute of the event",
)

COUNTRIES = Table(
    "countries",
    events=("order", "payment"),
    measures=(
        count("orders", of="order"),
        total("revenue", "amount", of="order"),
        count("payments", of="payment"),
        count("declined", of="payment", where="approved == 0"),
    ),
    span="1h",
    group_by=("country",),
    keep="90d",
    groups=200,
    description="orders and payments by hour and country",
)

TABLES = (BUSINESS, COUNTRIES)
