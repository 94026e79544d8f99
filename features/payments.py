"""Card payments: what a transaction is, what is known about its card, customer, merchant, device.

Declarations only. Amounts are int64 minor units (cents), times int64 milliseconds UTC.
"""

from __future__ import annotations

from raypipe.clock import DAY_MS
from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.profiles import Profile, Value, facts
from raypipe.project import Entity, Label, Model, Project
from raypipe.tables.spec import Table
from raypipe.tables.spec import count as count_of
from raypipe.tables.spec import total as total_of
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

OWNER = "payments-risk"

SUBJECT_KEY = frozenset({Tag.KEY, Tag.SUBJECT})
KEY = frozenset({Tag.KEY})

_KEYS = (
    Field("card_id", Kind.STRING, tags=SUBJECT_KEY, description="the card that pays"),
    Field("customer_id", Kind.STRING, tags=SUBJECT_KEY, description="the card's holder"),
    Field("merchant_id", Kind.STRING, tags=KEY, description="the shop or terminal that is paid"),
    Field("device_id", Kind.STRING, required=False, tags=SUBJECT_KEY | {Tag.PERSONAL}),
)

TRANSACTION = EventType(
    "transaction",
    (
        *_KEYS,
        Field("amount", Kind.AMOUNT, minimum=0, description="minor units of the currency"),
        Field("currency", Kind.CURRENCY, description="ISO 4217 code"),
        Field("channel", Kind.CHOICE, required=False, choices=("pos", "online", "recurring")),
        Field("category", Kind.STRING, required=False, description="merchant category"),
        Field("country", Kind.STRING, required=False, max_length=2, description="ISO 3166"),
    ),
    "a payment that asks for a decision; its event_id is the transaction's id",
)

CHARGEBACK = EventType(
    "chargeback",
    (
        Field("transaction_id", Kind.STRING, description="event_id of the disputed transaction"),
        *_KEYS,
        Field("amount", Kind.AMOUNT, minimum=0),
        Field("currency", Kind.CURRENCY),
    ),
    "a transaction turned out to be fraud; event_time is when that became known",
)

CARD = WindowView(
    name="card",
    entity="card",
    event="transaction",
    key="card_id",
    aggregates=(
        count(),
        total("amount", over=("1m", "1h", "1d")),
        mean("amount", over=("1h", "1d", "7d", "30d")),
        maximum("amount", over=("1d", "7d", "30d")),
        std("amount", over=("7d", "30d")),
        distinct("merchant_id", over=("1h", "1d", "7d")),
        distinct("device_id", over=("1d", "30d")),
        since_last(),
    ),
    spans=DEFAULT_SPANS,
    description="velocity and spending of a card",
    owner=OWNER,
)

CUSTOMER = WindowView(
    name="customer",
    entity="customer",
    event="transaction",
    key="customer_id",
    aggregates=(
        count(over=("1d", "3d", "7d", "14d", "30d", "90d"), lags=(("90d", "14d"), ("7d", "1d"))),
        mean(
            "amount",
            over=("1d", "3d", "7d", "14d", "30d", "90d"),
            lags=(("90d", "14d"), ("30d", "7d")),
        ),
        maximum("amount", over=("30d", "90d")),
        std("amount", over=("30d", "90d")),
        distinct("merchant_id", over=("7d", "30d"), bits=128),
        since_last(),
    ),
    spans=spans("1d/30m", "3d/3h", "7d/3h", "14d/6h", "30d/12h", "90d/36h"),
    description="spending habit of a customer over all cards, today against the weeks before",
    owner=OWNER,
)

MERCHANT = WindowView(
    name="merchant",
    entity="merchant",
    event="transaction",
    key="merchant_id",
    aggregates=(
        count(
            over=("1h", "1d", "3d", "7d", "14d", "35d"),
            lags=(
                ("8d", "7d"),
                ("10d", "7d"),
                ("14d", "7d"),
                ("21d", "7d"),
                ("35d", "7d"),
                ("67d", "7d"),
            ),
        ),
        mean("amount", over=("1d", "7d", "35d")),
        std("amount", over=("35d",)),
        distinct("card_id", over=("1h", "1d"), bits=256),
    ),
    spans=spans(
        "1h/1m",
        "1d/30m",
        "3d/3h",
        "7d/3h",
        "8d/6h",
        "10d/6h",
        "14d/6h",
        "21d/12h",
        "35d/12h",
        "67d/12h",
    ),
    description="traffic of a merchant; long spans less the label horizon count matured payments",
    owner=OWNER,
)

DEVICE = WindowView(
    name="device",
    entity="device",
    event="transaction",
    key="device_id",
    aggregates=(
        count(),
        mean("amount", over=("1d", "30d")),
        distinct("card_id", over=("1h", "1d", "30d")),
        since_last(),
    ),
    spans=DEFAULT_SPANS,
    description="use of a device and how many cards it carries",
    owner=OWNER,
)

RISK_SPANS = spans("1d/1h", "3d/3h", "7d/3h", "14d/6h", "28d/12h", "60d/12h")

MERCHANT_RISK = WindowView(
    name="merchant_risk",
    entity="merchant",
    event="chargeback",
    key="merchant_id",
    aggregates=(count(), since_last()),
    spans=RISK_SPANS,
    description="disputed payments of a merchant, by the time at which they became known",
    owner=OWNER,
)

CARD_RISK = WindowView(
    name="card_risk",
    entity="card",
    event="chargeback",
    key="card_id",
    aggregates=(count(over=("7d", "14d", "28d", "60d")), since_last()),
    spans=RISK_SPANS,
    description="disputed payments of a card, by the time at which they became known",
    owner=OWNER,
)

MERCHANT_PROFILE = Profile(
    name="merchant_profile",
    entity="merchant",
    key="merchant_id",
    facts=(
        facts(
            "transaction",
            payments="count(*)",
            turnover="sum(amount)",
            night="count(*) FILTER (event_time // 3600000 % 24 < 7)",
        ),
        facts("chargeback", disputes="count(*)", disputed="sum(amount)"),
    ),
    values=(
        Value(
            "chargeback_rate",
            "(coalesce(sum(disputes) FILTER (age < 90), 0) + 1)"
            " / (coalesce(sum(payments) FILTER (age BETWEEN 7 AND 96), 0) + 200)",
            "disputes of 90 days over the payments of the 90 days that ended a week before; few "
            "payments draw it towards 0.5 %",
        ),
        Value(
            "disputed_share",
            "coalesce(sum(disputed) FILTER (age < 90), 0)"
            " / nullif(sum(turnover) FILTER (age BETWEEN 7 AND 96), 0)",
            "disputed money of 90 days over the turnover of the 90 days that ended a week before",
        ),
        Value(
            "tenure_days",
            "max(age) FILTER (payments > 0)",
            "days since the first payment of the last year",
        ),
        Value(
            "active_share",
            "count(DISTINCT age) FILTER (payments > 0 AND age < 30) / 30",
            "share of the last 30 days that had a payment",
        ),
        Value(
            "night_share",
            "sum(night) FILTER (age < 30) / nullif(sum(payments) FILTER (age < 30), 0)",
            "share of 30 days' payments before 7 o'clock UTC",
        ),
    ),
    description="how long a merchant is known, how it trades, how often it is disputed",
    owner=OWNER,
)

CUSTOMER_PROFILE = Profile(
    name="customer_profile",
    entity="customer",
    key="customer_id",
    facts=(
        facts(
            "transaction",
            payments="count(*)",
            online="count(*) FILTER (channel = 'online')",
            night="count(*) FILTER (event_time // 3600000 % 24 < 7)",
            amounts="list(amount ORDER BY amount)",
            categories="list(DISTINCT category) FILTER (category IS NOT NULL)",
        ),
    ),
    values=(
        Value(
            "tenure_days",
            "max(age) FILTER (payments > 0)",
            "days since the first payment of the last half year",
        ),
        Value(
            "active_share",
            "count(DISTINCT age) FILTER (age < 60) / least(60, max(age) + 1)",
            "share of the last 60 days, or of those since the first payment, that had one",
        ),
        Value(
            "amount_median",
            "list_aggregate(flatten(list(amounts) FILTER (age < 90)), 'median')",
            "median amount of 90 days, minor units",
        ),
        Value(
            "amount_p90",
            "list_aggregate(flatten(list(amounts) FILTER (age < 90)), 'quantile_cont', 0.9)",
            "90th percentile of the amounts of 90 days, minor units",
        ),
        Value(
            "categories",
            "len(list_distinct(flatten(list(categories) FILTER (age < 60))))",
            "different merchant categories of 60 days",
        ),
        Value(
            "online_share",
            "sum(online) FILTER (age < 60) / nullif(sum(payments) FILTER (age < 60), 0)",
            "share of 60 days' payments made online",
        ),
        Value(
            "night_share",
            "sum(night) FILTER (age < 60) / nullif(sum(payments) FILTER (age < 60), 0)",
            "share of 60 days' payments before 7 o'clock UTC",
        ),
    ),
    lookback="180d",
    description="how, when and for how much a customer usually pays",
    owner=OWNER,
)

PROFILES = (MERCHANT_PROFILE, CUSTOMER_PROFILE)

DERIVED = (
    Derived("hour", "hour_of_day(event_time)"),
    Derived("weekday", "day_of_week(event_time)"),
    Derived("is_weekend", "day_of_week(event_time) >= 5"),
    Derived("is_night", "hour_of_day(event_time) < 7"),
    Derived("card_is_new", "is_missing(card_since_last)"),
    Derived("device_is_new", "is_missing(device_since_last)"),
    Derived(
        "habit",
        "where(customer_count_90d_before_14d >= 5,"
        " customer_amount_mean_90d_before_14d, customer_amount_mean_90d)",
        "mean amount before the last two weeks, so that a running fraud is not its own norm",
    ),
    Derived("amount_to_habit", "amount / habit"),
    Derived("amount_z", "(amount - customer_amount_mean_90d) / customer_amount_std_90d"),
    Derived("amount_to_max", "amount / customer_amount_max_90d"),
    Derived("amount_to_card_30d", "amount / card_amount_mean_30d"),
    Derived("mean_1d_to_habit", "customer_amount_mean_1d / habit"),
    Derived("mean_3d_to_habit", "customer_amount_mean_3d / habit"),
    Derived("mean_7d_to_habit", "customer_amount_mean_7d / habit"),
    Derived("mean_14d_to_habit", "customer_amount_mean_14d / habit"),
    Derived("max_1d_to_habit", "card_amount_max_1d / habit"),
    Derived("max_7d_to_habit", "card_amount_max_7d / habit"),
    Derived("pace_1d", "customer_count_1d / customer_count_30d"),
    Derived("pace_7d", "customer_count_7d / customer_count_30d"),
    Derived("amount_to_merchant", "amount / merchant_amount_mean_35d"),
    Derived("amount_z_merchant", "(amount - merchant_amount_mean_35d) / merchant_amount_std_35d"),
    Derived("merchant_pace_1d", "merchant_count_1d / merchant_count_35d"),
    Derived("amount_to_median", "amount / customer_profile_amount_median"),
    Derived("amount_to_p90", "amount / customer_profile_amount_p90"),
    Derived("merchant_risk_rate_1d", "merchant_risk_count_1d / merchant_count_8d_before_7d"),
    Derived("merchant_risk_rate_3d", "merchant_risk_count_3d / merchant_count_10d_before_7d"),
    Derived("merchant_risk_rate_7d", "merchant_risk_count_7d / merchant_count_14d_before_7d"),
    Derived("merchant_risk_rate_14d", "merchant_risk_count_14d / merchant_count_21d_before_7d"),
    Derived("merchant_risk_rate_28d", "merchant_risk_count_28d / merchant_count_35d_before_7d"),
    Derived("merchant_risk_rate_60d", "merchant_risk_count_60d / merchant_count_67d_before_7d"),
)

TRADE = Table(
    "trade",
    events=("transaction", "chargeback"),
    measures=(
        count_of("transactions", of="transaction"),
        total_of("turnover", "amount", of="transaction"),
        count_of("online", of="transaction", where="channel == 'online'"),
        count_of("chargebacks", of="chargeback"),
        total_of("disputed", "amount", of="chargeback"),
    ),
    description="payments and disputes by minute of the event",
)

VIEWS = (CARD, CUSTOMER, MERCHANT, DEVICE, MERCHANT_RISK, CARD_RISK)

project = Project(
    name="payments",
    events=(TRANSACTION, CHARGEBACK),
    entities=(
        Entity("card", "a payment card", OWNER),
        Entity("customer", "the person or company that holds cards", OWNER),
        Entity("merchant", "a shop or terminal that is paid", OWNER),
        Entity("device", "the phone or browser that a payment came from", OWNER),
    ),
    views=VIEWS,
    derived=DERIVED,
    decision="transaction",
    label=Label("chargeback", "transaction_id", 7 * DAY_MS),
    models=(
        Model(
            "fraud",
            (
                "amount",
                "channel",
                *(name for view in VIEWS for name in view.column_names),
                *(name for profile in PROFILES for name in profile.column_names),
                *(d.name for d in DERIVED),
            ),
            "probability that a transaction will be charged back",
            OWNER,
        ),
    ),
    profiles=PROFILES,
    tables=(TRADE,),
)
