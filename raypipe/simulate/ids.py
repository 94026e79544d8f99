"""Ids as text, formatted by columns: decimal numbers for things, opaque hex for the rest."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.simulate.draws import Ints

OPAQUE_BITS = 48
_MASK = np.uint64(2**OPAQUE_BITS - 1)

Words = npt.NDArray[np.uint32]
"""Four characters each, as the bytes of one number."""


@cache
def _words(form: str, count: int) -> Words:
    return np.array([format(i, form) for i in range(count)], "S4").view(np.uint32)


def scramble(numbers: Ints, key: int) -> Ints:
    """A bijection on 48 bits: unique numbers stay unique and no longer tell their order."""
    x = numbers.astype(np.uint64) ^ np.uint64(key & int(_MASK))
    for odd, shift in ((0x9E3779B97F4B, 23), (0xBF58476D1CE5, 25), (0x94D049BB1331, 24)):
        x *= np.uint64(odd)
        x &= _MASK
        x ^= x >> np.uint64(shift)
    return x.astype(np.int64)


def decimal(prefix: str, numbers: npt.NDArray[np.integer], words: int = 2) -> pa.Array:
    """``prefix`` and four digits a word, for numbers below 10**(4 * words).

    >>> decimal("merchant_", np.array([123]))[0].as_py()
    'merchant_00000123'
    """
    digits, table = [], _words("04d", 10_000)
    for _ in range(words):
        numbers, low = np.divmod(numbers, 10_000)
        digits.append(table[low])
    return _text(prefix, digits[::-1])


def opaque(prefix: str, numbers: Ints) -> pa.Array:
    """``prefix`` and twelve hex digits, for numbers below 2**48; negative numbers are null.

    >>> opaque("device_", np.array([255, -1])).to_pylist()
    ['device_0000000000ff', None]
    """
    there = numbers >= 0
    present = numbers if there.all() else numbers[there]
    table = _words("04x", 65_536)
    text = _text(prefix, [table[(present >> s) & 0xFFFF] for s in (32, 16, 0)])
    if len(present) == len(numbers):
        return text
    ends = np.concatenate([[0], np.cumsum(there)]) * (len(prefix) + 12)
    return pa.StringArray.from_buffers(
        len(numbers),
        pa.py_buffer(ends.astype(np.int32)),
        text.buffers()[2],
        pa.py_buffer(np.packbits(there, bitorder="little")),
    )


def constant(text: str, count: int) -> pa.Array:
    """The same text ``count`` times."""
    return _strings(np.full(count, text.encode(), f"S{len(text)}"), len(text))


def _text(prefix: str, words: list[Words]) -> pa.Array:
    layout: list[tuple[str, str]] = [("prefix", f"S{len(prefix)}")]
    layout += [(f"word{i}", "u4") for i in range(len(words))]
    out = np.empty(len(words[0]), layout)
    out["prefix"] = prefix.encode()
    for i, word in enumerate(words):
        out[f"word{i}"] = word
    return _strings(out, out.itemsize)


def _strings(rows: npt.NDArray[np.void] | npt.NDArray[np.bytes_], width: int) -> pa.Array:
    ends = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(width)
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(ends), pa.py_buffer(rows))
