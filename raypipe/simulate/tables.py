"""Columns of numbers to the tables that the outside sees. Truth has a table of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.clock import SECOND_MS
from raypipe.simulate import catalog
from raypipe.simulate.ids import constant, decimal, opaque
from raypipe.simulate.market import Market
from raypipe.simulate.rows import Campaign, Rows

CURRENCY = "EUR"


TRANSACTIONS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("received_at", pa.int64(), nullable=False),
        pa.field("card_id", pa.string(), nullable=False),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("merchant_id", pa.string(), nullable=False),
        pa.field("device_id", pa.string()),
        pa.field("amount", pa.int64(), nullable=False),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("channel", pa.string()),
        pa.field("category", pa.string()),
        pa.field("country", pa.string()),
    ]
)
"""Columns of a transaction as a client sends it, with the time of receipt."""

CHARGEBACKS = pa.schema(
    [
        *(TRANSACTIONS.field(n) for n in ("event_id", "event_time", "received_at")),
        pa.field("transaction_id", pa.string(), nullable=False),
        *(TRANSACTIONS.field(i) for i in range(3, 9)),
    ]
)
"""Columns of a chargeback; event_time is when it became known."""

LABELS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("is_fraud", pa.bool_(), nullable=False),
        pa.field("campaign_id", pa.string()),
        pa.field("kind", pa.string()),
    ]
)
"""The truth about each transaction; campaign and kind are null for genuine ones."""

KINDS = tuple(k.name.lower() for k in Campaign)

_CATEGORIES = tuple(c.name for c in catalog.CATEGORIES)
_COUNTRIES = tuple(c.code for c in catalog.COUNTRIES)


def transactions(rows: Rows, market: Market) -> pa.Table:
    """`TRANSACTIONS` of the rows, in their order."""
    columns = [
        opaque("tx_", rows.number),
        pa.array(rows.time),
        pa.array(rows.received),
        *_keys(rows),
        _named(catalog.CHANNELS, rows.channel),
        _named(_CATEGORIES, market.category[rows.merchant]),
        _named(_COUNTRIES, market.country[rows.merchant]),
    ]
    return pa.Table.from_arrays(columns, schema=TRANSACTIONS)


def chargebacks(rows: Rows) -> pa.Table:
    """`CHARGEBACKS` of disputed rows, in their order."""
    columns = [
        opaque("cb_", rows.number),
        pa.array(rows.known),
        pa.array(reported_at(rows)),
        opaque("tx_", rows.number),
        *_keys(rows),
    ]
    return pa.Table.from_arrays(columns, schema=CHARGEBACKS)


def labels(rows: Rows) -> pa.Table:
    """`LABELS` of the rows, in their order."""
    columns = [
        opaque("tx_", rows.number),
        pa.array(rows.kind != Campaign.GENUINE),
        opaque("campaign_", rows.campaign),
        _named((None, *KINDS[1:]), rows.kind),
    ]
    return pa.Table.from_arrays(columns, schema=LABELS)


def reported_at(rows: Rows) -> npt.NDArray[np.int64]:
    """When the message about a chargeback arrives, within two seconds."""
    return rows.known + rows.number % (2 * SECOND_MS)


def _keys(rows: Rows) -> list[pa.Array]:
    return [
        decimal("card_", rows.card, words=3),
        decimal("customer_", rows.customer),
        decimal("merchant_", rows.merchant),
        opaque("device_", rows.device),
        pa.array(rows.amount),
        constant(CURRENCY, len(rows)),
    ]


def _named(names: Sequence[str | None], numbers: npt.NDArray[np.int8]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(numbers))
