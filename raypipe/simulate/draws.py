"""Randomness by name: every draw is a function of the seed and of what it is for."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_WORD = 2**64 - 1


class Purpose(IntEnum):
    """First part of a draw's name. Numbers are part of the world's format: only append."""

    CUSTOMER = 1
    MERCHANT = 2
    ROUTINE = 3
    TRIP = 4
    SUBSCRIPTION = 5
    DEVICE = 6
    TRANSACTION_ID = 7
    GENUINE_DAY = 8
    ARRIVAL_DAY = 9
    STOLEN_CARD_DAY = 10
    CARD_TESTING_DAY = 11
    COMPROMISE_DAY = 12
    EXPLOIT_DAY = 13
    SHOP_STYLE = 14
    SHOP_ITEM = 15
    SHOPPER = 16
    SHOP_DAY = 17
    SHOP_CLICK = 18
    SHOP_VISIT_ID = 19


def generator(seed: int, *name: int) -> np.random.Generator:
    """A generator of its own for each (seed, name)."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *name])))


def key_of(seed: int, *name: int) -> int:
    """A 64-bit key for `mix` for each (seed, name)."""
    return int(np.random.SeedSequence([seed, *name]).generate_state(1, np.uint64)[0])


def mix(
    key: int, numbers: npt.NDArray[np.integer], salt: npt.NDArray[np.integer] | int = 0
) -> Bits:
    """Well mixed 64 bits for each (number, salt): what never changes needs no storage.

    The finaliser is splitmix64's (Steele et al. 2014).
    """
    h = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    if isinstance(salt, int):
        h += np.uint64((salt * 0xD1B54A32D192ED03 + key) & _WORD)
    else:
        h += salt.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        h += np.uint64(key)
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h


def uniform(bits: Bits) -> Floats:
    """Bits as numbers in (0, 1), never an end point."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal(key: int, numbers: npt.NDArray[np.integer], salt: int = 0) -> Floats:
    """Standard normal numbers for each (number, salt), by Box and Muller."""
    u = uniform(mix(key, numbers, 2 * salt))
    v = uniform(mix(key, numbers, 2 * salt + 1))
    out: Floats = np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)
    return out
