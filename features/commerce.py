"""A shop with accounts: visits, carts, orders, payments, and what later goes wrong with them.

Declarations only. Amounts are int64 minor units (cents), times int64 milliseconds UTC. A payment
is what a decision is asked for; it may name its session and the dearest item of its order, so that
the visit behind it is known.
"""

from __future__ import annotations

from features.commerce_events import EVENTS
from features.commerce_profiles import PROFILES
from features.commerce_tables import TABLES
from raypipe.clock import DAY_MS
from raypipe.project import Entity, Label, Model, Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    WindowView,
    count,
    distinct,
    maximum,
    mean,
    since_last,
    spans,
    std,
    total,
)

OWNER = "shop-risk"

CUSTOMER = WindowView(
    name="customer",
    entity="customer",
    event="payment",
    key="customer_id",
    aggregates=(
        count(of="payment", over=("1h", "1d", "7d", "30d"), lags=(("30d", "7d"),)),
        count(of="payment", where="approved == 0", name="declined", over=("1h", "1d")),
        count(of="order", over=("1d", "30d")),
        count(of="refund", over=("30d",)),
        total("amount", of="payment", name="spent", over=("1d", "7d")),
        total("amount", of="refund", over=("30d",)),
        mean("amount", of="payment", name="spent", over=("7d", "30d"), lags=(("30d", "7d"),)),
        maximum("amount", of="payment", name="spent", over=("30d",)),
        std("amount", of="payment", name="spent", over=("30d",)),
        distinct("card_id", of="payment", over=("1d", "30d")),
        since_last(of="payment"),
    ),
    spans=spans("1h/1m", "1d/30m", "7d/3h", "30d/12h"),
    also=("order", "refund"),
    description="what a customer orders, pays and is given back",
    owner=OWNER,
)

ACCOUNT = WindowView(
    name="account",
    entity="customer",
    event="login",
    key="customer_id",
    aggregates=(
        count(of="login", over=("1h", "1d", "30d")),
        count(of="login", where="success == 0", name="failed", over=("5m", "1h", "1d")),
        count(of="login", where="success and new_device", name="new_device", over=("1h", "1d")),
        count(of="password_change", over=("1d", "30d")),
        distinct("device_id", of="login", over=("1d", "30d")),
        distinct("country", of="login", over=("1d", "30d")),
        since_last(of="login"),
        since_last(of="password_change"),
    ),
    spans=spans("5m/5s", "1h/1m", "1d/30m", "30d/12h"),
    also=("password_change",),
    description="logins of an account, failed ones, and changes of its password",
    owner=OWNER,
)

SESSION = WindowView(
    name="session",
    entity="session",
    event="page_view",
    key="session_id",
    aggregates=(
        count(of="page_view", over=("1m", "5m", "1h")),
        count(of="search", over=("5m", "1h")),
        count(of="cart", where="action == 'add'", name="added", over=("5m", "1h")),
        count(of="cart", where="action == 'remove'", name="removed", over=("1h",)),
        count(of="order", over=("1h",)),
        distinct("item_id", of="page_view", over=("5m", "1h")),
        since_last(),
    ),
    spans=spans("1m/1s", "5m/5s", "1h/1m"),
    also=("search", "cart", "order"),
    description="what a visitor does in one visit",
    owner=OWNER,
)

ITEM = WindowView(
    name="item",
    entity="item",
    event="page_view",
    key="item_id",
    aggregates=(
        count(of="page_view", name="viewed", over=("1h", "1d", "7d"), lags=(("7d", "1d"),)),
        count(of="cart", where="action == 'add'", name="added", over=("1h", "1d", "7d")),
        total("quantity", of="cart", where="action == 'add'", name="added", over=("1d",)),
        mean("price", of="cart", over=("7d",)),
        distinct("session_id", registers=256, over=("1h", "1d")),
    ),
    spans=spans("1h/1m", "1d/30m", "7d/3h"),
    also=("cart",),
    description="how much an article is looked at and put into carts",
    owner=OWNER,
)

CARD = WindowView(
    name="card",
    entity="card",
    event="payment",
    key="card_id",
    aggregates=(
        count(),
        count(where="approved == 0", name="declined", over=("5m", "1h", "1d")),
        total("amount", over=("1h", "1d")),
        mean("amount", over=("1d", "30d")),
        maximum("amount", over=("1d", "30d")),
        distinct("customer_id", over=("1d", "30d")),
        distinct("merchant_id", over=("1h", "1d")),
        since_last(),
    ),
    spans=DEFAULT_SPANS,
    description="velocity and spending of a card",
    owner=OWNER,
)

MERCHANT = WindowView(
    name="merchant",
    entity="merchant",
    event="payment",
    key="merchant_id",
    aggregates=(
        count(over=("1h", "1d", "7d", "35d"), lags=(("35d", "7d"),)),
        count(where="approved == 0", name="declined", over=("1h", "1d")),
        mean("amount", over=("1d", "35d")),
        std("amount", over=("35d",)),
        distinct("card_id", over=("1h", "1d"), registers=256),
    ),
    spans=spans("1h/1m", "1d/30m", "7d/3h", "35d/12h"),
    description="traffic of a seller",
    owner=OWNER,
)

DEVICE = WindowView(
    name="device",
    entity="device",
    event="payment",
    key="device_id",
    aggregates=(
        count(of="payment", over=("1h", "1d", "30d")),
        count(of="login", where="success == 0", name="failed_login", over=("1h", "1d")),
        distinct("card_id", of="payment", over=("1h", "1d", "30d")),
        distinct("customer_id", over=("1h", "1d", "30d")),
        since_last(),
    ),
    spans=spans("1h/1m", "1d/30m", "30d/12h"),
    also=("login",),
    description="use of a device, how many cards and accounts it carries",
    owner=OWNER,
)

RISK_SPANS = spans("7d/3h", "28d/12h", "60d/12h")

MERCHANT_RISK = WindowView(
    name="merchant_risk",
    entity="merchant",
    event="chargeback",
    key="merchant_id",
    aggregates=(count(), since_last()),
    spans=RISK_SPANS,
    description="disputed payments of a seller, by the time at which they became known",
    owner=OWNER,
)

CUSTOMER_RISK = WindowView(
    name="customer_risk",
    entity="customer",
    event="chargeback",
    key="customer_id",
    aggregates=(count(),),
    spans=RISK_SPANS,
    description="disputed payments of a customer, by the time at which they became known",
    owner=OWNER,
)

VIEWS = (
    *(CUSTOMER, ACCOUNT, SESSION, ITEM, CARD, MERCHANT, DEVICE),
    *(MERCHANT_RISK, CUSTOMER_RISK),
)

DERIVED = (
    Derived("hour", "hour_of_day(event_time)"),
    Derived("weekday", "day_of_week(event_time)"),
    Derived("card_is_new", "is_missing(card_since_last)"),
    Derived("device_is_new", "is_missing(device_since_last)"),
    Derived("customer_is_new", "is_missing(customer_payment_since_last)"),
    Derived("amount_to_habit", "amount / customer_spent_amount_mean_30d"),
    Derived(
        "amount_z",
        "(amount - customer_spent_amount_mean_30d) / customer_spent_amount_std_30d",
    ),
    Derived("amount_to_max", "amount / customer_spent_amount_max_30d"),
    Derived("amount_to_merchant", "amount / merchant_amount_mean_35d"),
    Derived("pace_1d", "customer_payment_count_1d / customer_payment_count_30d"),
    Derived("refunded_share", "customer_refund_count_30d / customer_order_count_30d"),
    Derived("failed_share", "account_failed_count_1d / account_login_count_1d"),
    Derived(
        "pay_after_password_change",
        "account_password_change_since_last < 86400",
        "a taken-over account pays soon after its password was changed",
    ),
    Derived("merchant_dispute_rate", "merchant_risk_count_28d / merchant_count_35d_before_7d"),
)

project = Project(
    name="commerce",
    events=EVENTS,
    entities=(
        Entity("customer", "the account of a person or company", OWNER),
        Entity("session", "one visit to the shop", OWNER),
        Entity("item", "an article that is sold", OWNER),
        Entity("card", "a payment card", OWNER),
        Entity("merchant", "a seller that is paid", OWNER),
        Entity("device", "the phone or browser that is used", OWNER),
    ),
    views=VIEWS,
    derived=DERIVED,
    decision="payment",
    label=Label("chargeback", "payment_id", 7 * DAY_MS),
    models=(
        Model(
            "fraud",
            (
                "amount",
                "method",
                *(name for view in VIEWS for name in view.column_names),
                *(name for profile in PROFILES for name in profile.column_names),
                *(d.name for d in DERIVED),
            ),
            "probability that a payment will be charged back",
            OWNER,
        ),
    ),
    profiles=PROFILES,
    tables=TABLES,
)
