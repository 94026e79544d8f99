"""Values of columns as numbers: what a program's stack holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.windows.hashing import hash_column, hash_text
from raypipe.windows.inputs import VALUE_SEED

Floats = npt.NDArray[np.float64]

_UNUSED_BITS = 11
_MASK = (1 << 53) - 1


def text_number(text: str) -> float:
    """A text as a number: 53 bits of its hash, which float64 holds exactly."""
    return float((hash_text(text, VALUE_SEED) >> _UNUSED_BITS) & _MASK)


def column_numbers(column: pa.Array, *, textual: bool) -> Floats:
    """A column as numbers [n]; NaN where it is null."""
    if not textual:
        if column.null_count and pa.types.is_boolean(column.type):
            column = column.cast(pa.float64())
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    hashes = hash_column(column, VALUE_SEED)
    numbers: Floats = ((hashes >> _UNUSED_BITS) & _MASK).astype(np.float64)
    numbers[hashes == 0] = np.nan
    return numbers
