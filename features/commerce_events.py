"""What happens in a shop: visits, carts, orders, payments, logins. Declarations only."""

from __future__ import annotations

from raypipe.events.schema import EventType, Field, Kind, Tag

SUBJECT_KEY = frozenset({Tag.KEY, Tag.SUBJECT})
KEY = frozenset({Tag.KEY})

CUSTOMER_ID = Field("customer_id", Kind.STRING, tags=SUBJECT_KEY, description="the account")
VISITOR_ID = Field(
    "customer_id",
    Kind.STRING,
    required=False,
    tags=SUBJECT_KEY,
    description="the account; absent before the visitor logs in",
)
SESSION_ID = Field("session_id", Kind.STRING, tags=SUBJECT_KEY, description="one visit")
DEVICE_ID = Field("device_id", Kind.STRING, required=False, tags=SUBJECT_KEY | {Tag.PERSONAL})
ITEM_ID = Field("item_id", Kind.STRING, tags=KEY, description="the article")
ITEM_ID_IF_ANY = Field("item_id", Kind.STRING, required=False, tags=KEY, description="the article")
CARD_ID = Field("card_id", Kind.STRING, tags=SUBJECT_KEY, description="the card that pays")
MERCHANT_ID = Field("merchant_id", Kind.STRING, tags=KEY, description="the seller that is paid")
AMOUNT = Field("amount", Kind.AMOUNT, minimum=0, description="minor units of the currency")
CURRENCY = Field("currency", Kind.CURRENCY, description="ISO 4217 code")
METHODS = ("card", "wallet", "transfer", "invoice", "voucher")
REASONS = ("returned", "damaged", "not_received", "cancelled", "goodwill", "other")
COUNTRY = Field("country", Kind.STRING, required=False, max_length=2, description="ISO 3166")

PAGE_VIEW = EventType(
    "page_view",
    (
        VISITOR_ID,
        SESSION_ID,
        ITEM_ID_IF_ANY,
        Field("page", Kind.STRING, required=False, max_length=512, description="path of the page"),
        Field("category", Kind.STRING, required=False),
        DEVICE_ID,
        Field("referrer", Kind.STRING, required=False, max_length=512),
    ),
    "a page was shown; item_id is set on an article's page",
)

SEARCH = EventType(
    "search",
    (
        VISITOR_ID,
        SESSION_ID,
        Field("query", Kind.STRING, max_length=256, tags=frozenset({Tag.PERSONAL})),
        Field("results", Kind.INTEGER, required=False, minimum=0, maximum=1_000_000_000),
    ),
    "a visitor searched; results is how many articles were found",
)

CART = EventType(
    "cart",
    (
        VISITOR_ID,
        SESSION_ID,
        ITEM_ID,
        Field("action", Kind.CHOICE, choices=("add", "remove")),
        Field("quantity", Kind.INTEGER, minimum=1, maximum=100_000),
        Field("price", Kind.AMOUNT, minimum=0, description="of one piece, minor units"),
    ),
    "an article went into a cart or out of it",
)

ORDER = EventType(
    "order",
    (
        Field("order_id", Kind.STRING, tags=KEY),
        SESSION_ID,
        CUSTOMER_ID,
        AMOUNT,
        CURRENCY,
        Field("items", Kind.INTEGER, minimum=1, maximum=100_000, description="pieces"),
        COUNTRY,
    ),
    "a customer ordered",
)

ORDER_LINE = EventType(
    "order_line",
    (
        Field("order_id", Kind.STRING, tags=KEY),
        Field("session_id", Kind.STRING, required=False, tags=SUBJECT_KEY),
        CUSTOMER_ID,
        ITEM_ID,
        Field("quantity", Kind.INTEGER, minimum=1, maximum=100_000),
        Field("price", Kind.AMOUNT, minimum=0, description="of one piece, minor units"),
    ),
    "one article of an order",
)

LISTING = EventType(
    "listing",
    (
        ITEM_ID,
        Field("title", Kind.STRING, required=False, max_length=256),
        Field("category", Kind.STRING, required=False),
        Field("brand", Kind.STRING, required=False),
        Field("price", Kind.AMOUNT, required=False, minimum=0, description="minor units"),
        Field("available", Kind.BOOLEAN, description="whether it can be ordered"),
    ),
    "what the catalogue says of an article from then on",
)

RECOMMENDATION = EventType(
    "recommendation",
    (
        Field("recommendation_id", Kind.STRING, tags=KEY, description="one list"),
        VISITOR_ID,
        Field("session_id", Kind.STRING, required=False, tags=SUBJECT_KEY),
        ITEM_ID,
        Field("place", Kind.INTEGER, minimum=1, maximum=1_000, description="from 1"),
        Field("score", Kind.NUMBER, required=False, description="the ranker's"),
        Field(
            "propensity",
            Kind.NUMBER,
            minimum=0,
            maximum=1,
            description="probability of the article at this place, given those above it",
        ),
        Field("explored", Kind.BOOLEAN, description="whether chance had a say in the list"),
        Field("sponsored", Kind.BOOLEAN),
        Field("reason", Kind.STRING, max_length=32),
        Field("policy", Kind.STRING, description="rules, diversity and exploration, NAME@VERSION"),
        Field("ranker", Kind.STRING, description="NAME@VERSION"),
        Field(
            "profile_time",
            Kind.INTEGER,
            required=False,
            minimum=-1,
            description="midnight (ms UTC) that the visitor's profile is of, -1 for none known; "
            "absent where it was not read",
        ),
    ),
    "an article that a list showed; all of a list share its recommendation_id",
)

PAYMENT = EventType(
    "payment",
    (
        Field("order_id", Kind.STRING, tags=KEY),
        CUSTOMER_ID,
        CARD_ID,
        MERCHANT_ID,
        DEVICE_ID,
        AMOUNT,
        CURRENCY,
        Field("method", Kind.CHOICE, required=False, choices=METHODS),
        Field("approved", Kind.BOOLEAN, required=False, description="what the issuer answered"),
        COUNTRY,
        Field("session_id", Kind.STRING, required=False, tags=SUBJECT_KEY),
        Field("item_id", Kind.STRING, required=False, tags=KEY, description="the dearest one"),
    ),
    "a payment that asks for a decision; its event_id is the payment's id",
)

REFUND = EventType(
    "refund",
    (
        Field("order_id", Kind.STRING, tags=KEY),
        CUSTOMER_ID,
        AMOUNT,
        CURRENCY,
        Field("reason", Kind.CHOICE, choices=REASONS),
    ),
    "money of an order was given back",
)

LOGIN = EventType(
    "login",
    (
        CUSTOMER_ID,
        DEVICE_ID,
        COUNTRY,
        Field("lat", Kind.NUMBER, required=False, minimum=-90, maximum=90, description="degrees"),
        Field("lon", Kind.NUMBER, required=False, minimum=-180, maximum=180, description="degrees"),
        Field("success", Kind.BOOLEAN),
        Field("new_device", Kind.BOOLEAN, required=False),
    ),
    "someone tried to log in to an account",
)

PASSWORD_CHANGE = EventType(
    "password_change", (CUSTOMER_ID, DEVICE_ID), "the password of an account was changed"
)

CHARGEBACK = EventType(
    "chargeback",
    (
        Field("payment_id", Kind.STRING, description="event_id of the disputed payment"),
        CARD_ID,
        CUSTOMER_ID,
        MERCHANT_ID,
        AMOUNT,
        CURRENCY,
    ),
    "a payment turned out to be fraud; event_time is when that became known",
)

EVENTS = (
    *(PAGE_VIEW, SEARCH, CART, ORDER, ORDER_LINE, LISTING, RECOMMENDATION, PAYMENT),
    *(REFUND, LOGIN, PASSWORD_CHANGE, CHARGEBACK),
)
