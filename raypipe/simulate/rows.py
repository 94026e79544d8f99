"""Payments as columns of numbers: the form in which the world is computed and sorted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.simulate.draws import Ints

SERIAL_BITS = 24
"""A campaign's number is the day on which it starts and, in these bits, its serial on that day."""


class Campaign(IntEnum):
    """The truth about a payment."""

    GENUINE = 0
    STOLEN_CARD = 1
    COMPROMISED_MERCHANT = 2
    CARD_TESTING = 3


@dataclass(frozen=True, slots=True)
class Rows:
    """Payments, one a row; all columns have one length.

    Times are ms UTC, amounts minor units. ``device`` is -1 for none, ``campaign`` -1 for genuine
    payments; ``number`` is the event id before formatting; ``known`` is when a chargeback tells
    about it, 0 for never.
    """

    time: Ints
    received: Ints
    known: Ints
    number: Ints
    card: Ints
    device: Ints
    amount: Ints
    campaign: Ints
    customer: Ints
    merchant: Ints
    channel: npt.NDArray[np.int8]
    kind: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, where: Any) -> Rows:
        """The rows at an index array, mask or slice."""
        return Rows(*(getattr(self, f.name)[where] for f in dataclasses.fields(self)))

    def replace(self, **columns: npt.NDArray[Any]) -> Rows:
        """The same rows with other values in some columns."""
        return dataclasses.replace(self, **columns)


def payments(
    time: Ints,
    customer: Ints,
    card: Ints,
    device: Ints,
    merchant: Ints,
    amount: Ints,
    channel: npt.NDArray[np.int8],
    kind: Campaign = Campaign.GENUINE,
    campaign: Ints | None = None,
) -> Rows:
    """Payments as they happen: not yet received, numbered or disputed."""
    count = len(time)
    nothing = np.zeros(count, np.int64)
    return Rows(
        time=time,
        received=nothing,
        known=nothing,
        number=nothing,
        card=card,
        device=device,
        amount=amount,
        campaign=np.full(count, -1, np.int64) if campaign is None else campaign,
        customer=customer,
        merchant=merchant,
        channel=channel,
        kind=np.full(count, kind, np.int8),
    )


def serial(number: int) -> int:
    """A campaign's number within its day, below 2**SERIAL_BITS; kinds don't share serials."""
    return number % (1 << SERIAL_BITS)


def together(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Rows))
    )


def no_rows() -> Rows:
    """Zero payments."""
    none = np.zeros(0, np.int64)
    return payments(none, none, none, none, none, none, np.zeros(0, np.int8))
