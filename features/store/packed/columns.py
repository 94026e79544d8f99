"""Arrow columns as columns to be packed, without an object per number.

What Arrow can't convert without a loss goes through Feast's own conversion, so that it is taken or
refused exactly as any other Feast store takes or refuses it. As there, NaN in a column is null.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from features.store.packed import protos
from features.store.packed.codec import Column
from features.store.packed.layout import FIXED, ITEMS

_ARROW = {
    "d": pa.float64(),
    "f": pa.float32(),
    "q": pa.int64(),
    "i": pa.int32(),
    "?": pa.bool_(),
    "D": pa.float64(),
    "F": pa.float32(),
    "Q": pa.int64(),
    "I": pa.int32(),
    "B": pa.bool_(),
}


def from_arrow(name: str, value_type: ValueType, values: pa.ChunkedArray) -> Column:
    """One feature's values as a column.

    Raises:
        what Feast raises for values that are not of the type.
    """
    kind = protos.kind_of(value_type)
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):  # too long for one array
        array = pa.concat_arrays(array.chunks)
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        fast = _fast(kind, array)
    except pa.ArrowInvalid:  # would lose something
        fast = None
    if fast is not None:
        return fast
    found = python_values_to_proto_values(array.to_numpy(zero_copy_only=False), value_type)
    return protos.column(name, kind, found)


def microseconds(
    name: str, values: pa.ChunkedArray, missing: int | None = None
) -> npt.NDArray[np.int64]:
    """A column of times as microseconds since 1970 UTC; a time without a zone is UTC.

    Args:
        missing: what stands for a time that is missing; None if each must be there.

    Raises:
        ValueError: a time is missing, or it isn't a column of times.
    """
    if values.null_count and missing is None:
        raise ValueError(f"{values.null_count} rows have no {name}")
    if pt.is_string(values.type) or pt.is_large_string(values.type):
        values = pa.chunked_array([pd.to_datetime(values.to_pandas(), utc=True)])
    if pt.is_null(values.type):
        values = values.cast(pa.timestamp("us"))
    if not (pt.is_timestamp(values.type) or pt.is_date(values.type)):
        raise ValueError(f"column {name} holds {values.type}, no times")
    found = values.to_numpy().astype("datetime64[us]").astype(np.int64)
    if values.null_count and missing is not None:
        found[values.is_null().to_numpy()] = missing
    return np.ascontiguousarray(found)


def _fast(kind: str, array: pa.Array) -> Column | None:
    kept = array.type
    if pt.is_null(kept):
        nulls = np.ones(len(array), bool)
        if kind in FIXED:
            return Column(nulls, np.zeros(len(array), FIXED[kind]))
        return Column(nulls, [b""] * len(array))
    number = pt.is_integer(kept) or pt.is_floating(kept)
    if kind in "dfqi" and number:
        return _numbers(kind, array)
    if kind == "?" and pt.is_boolean(kept):
        return Column(_nulls(array), array.fill_null(False).to_numpy(zero_copy_only=False))
    if kind == "t" and (pt.is_timestamp(kept) or pt.is_date(kept)):
        seconds = array.to_numpy(zero_copy_only=False).astype("datetime64[s]")
        return Column(_nulls(array), seconds.astype(np.int64))
    if (kind == "s" and (pt.is_string(kept) or pt.is_large_string(kept))) or (
        kind == "b" and (pt.is_binary(kept) or pt.is_large_binary(kept))
    ):
        whole = array.cast(pa.large_binary() if pt.is_large_string(kept) else pa.binary())
        return Column(_nulls(array), whole.fill_null(b"").to_pylist())
    if kind in ITEMS and (pt.is_list(kept) or pt.is_large_list(kept)):
        return _lists(kind, array)
    return None


def _numbers(kind: str, array: pa.Array) -> Column:
    nulls = _nulls(array)
    if pt.is_floating(array.type):
        nulls = nulls | np.isnan(array.fill_null(0).to_numpy(zero_copy_only=False))
        array = pc.if_else(pa.array(nulls), pa.scalar(None, array.type), array)
    whole = array.cast(_ARROW[kind]).fill_null(0)
    return Column(nulls, whole.to_numpy(zero_copy_only=False))


def _lists(kind: str, array: pa.Array) -> Column | None:
    items, wanted = array.values, _ARROW[kind]
    alike = (pt.is_floating, pt.is_integer, pt.is_boolean)
    if items.null_count or not any(same(items.type) and same(wanted) for same in alike):
        return None
    numbers = items.cast(wanted).to_numpy(zero_copy_only=False)
    content = memoryview(numbers.astype(ITEMS[kind]).tobytes())
    width = np.dtype(ITEMS[kind]).itemsize
    ends = (array.offsets.to_numpy() * width).tolist()
    nulls = _nulls(array)
    rows: list[Any] = [bytes(content[a:b]) for a, b in pairwise(ends)]
    for i in np.flatnonzero(nulls):
        rows[i] = b""  # Arrow allows items under a null
    return Column(nulls, rows)


def _nulls(array: pa.Array) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return found
