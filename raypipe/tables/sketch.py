"""HyperLogLog registers of many rows at once: one byte a register, a row a sketch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.windows.kernel import RANKS, cardinality

Registers = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True)
def raise_registers(registers, rows, hashes):  # type: ignore[no-untyped-def]
    """Take hashed values in: hashes[i] into the sketch of rows[i]; hash 0 is no value.

    ``registers`` is uint8 [sketches, 2**bits]. The lowest bits of a hash choose the register, the
    place of the lowest one among the rest is its rank.
    """
    most = registers.shape[1] - 1
    bits = 0
    while most >> bits:
        bits += 1
    for i in range(hashes.shape[0]):
        if hashes[i] == 0:
            continue
        h = np.uint64(hashes[i])
        rest = h >> np.uint64(bits)
        rank = 1
        if rest == 0:
            rank = 65 - bits
        else:
            while rest & np.uint64(1) == 0:
                rest >>= np.uint64(1)
                rank += 1
        at = np.int64(h & np.uint64(most))
        registers[rows[i], at] = max(registers[rows[i], at], rank)


def estimate(registers: Registers) -> int:
    """The number of different values that one sketch has seen, uint8 [2**bits]."""
    words = np.ascontiguousarray(registers).view("<i8").astype(np.int64)
    bits = len(registers).bit_length() - 1
    return round(float(cardinality(words, 0, bits, np.empty(RANKS, np.int64))))


def compile_sketches() -> None:
    """Have the kernels ready before the first event."""
    registers, places = np.zeros((1, 16), np.uint8), np.zeros(1, np.int64)
    raise_registers(registers, places, np.ones(1, np.int64))
    estimate(registers[0])
