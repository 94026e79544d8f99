"""What a wire value means to Feast: kinds of Feast's types, Protobuf values, Python values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    Value,
)
from feast.type_map import NULL_TIMESTAMP_INT_VALUE, feast_value_type_to_python_type
from feast.value_type import ValueType

from features.store.packed.codec import Column, Wire
from features.store.packed.keys import KeyValue
from features.store.packed.layout import FIXED, ITEMS
from raypipe.errors import UsageError

_INTEGER_KEYS = ("int64_val", "int32_val", "unix_timestamp_val")

_KINDS = {
    ValueType.DOUBLE: "d",
    ValueType.FLOAT: "f",
    ValueType.INT64: "q",
    ValueType.INT32: "i",
    ValueType.BOOL: "?",
    ValueType.UNIX_TIMESTAMP: "t",
    ValueType.STRING: "s",
    ValueType.BYTES: "b",
    ValueType.PDF_BYTES: "b",
    ValueType.IMAGE_BYTES: "b",
    ValueType.DOUBLE_LIST: "D",
    ValueType.FLOAT_LIST: "F",
    ValueType.INT64_LIST: "Q",
    ValueType.INT32_LIST: "I",
    ValueType.BOOL_LIST: "B",
}
_FIELDS = {
    "d": "double_val",
    "f": "float_val",
    "q": "int64_val",
    "i": "int32_val",
    "?": "bool_val",
    "t": "unix_timestamp_val",
    "s": "string_val",
    "b": "bytes_val",
    "D": "double_list_val",
    "F": "float_list_val",
    "Q": "int64_list_val",
    "I": "int32_list_val",
    "B": "bool_list_val",
}
_LISTS: dict[str, Any] = {
    "D": DoubleList,
    "F": FloatList,
    "Q": Int64List,
    "I": Int32List,
    "B": BoolList,
}
_VALUE: Callable[..., Value] = Value  # the field by its name


def kind_of(value_type: ValueType) -> str:
    """The kind of a column of a Feast type; what has none of its own is kept as Protobuf."""
    return _KINDS.get(value_type, "P")


def column(name: str, kind: str, values: Sequence[Value]) -> Column:
    """Feast's values as a column to be packed.

    Raises:
        UsageError: a value is of another type than the column.
    """
    wires = [to_wire(name, kind, v) for v in values]
    nulls = np.fromiter((w is None for w in wires), bool, len(wires))
    if kind in FIXED:
        return Column(nulls, np.array([0 if w is None else w for w in wires], FIXED[kind]))
    return Column(nulls, [w if isinstance(w, bytes) else b"" for w in wires])


def to_wire(name: str, kind: str, value: Value) -> Wire | None:
    """What is packed of one value; None for null."""
    found = value.WhichOneof("val")
    if found is None or found == "null_val":
        return None
    if kind == "P":
        return bytes(value.SerializeToString())
    if found != _FIELDS[kind]:
        raise UsageError(
            f"feature {name!r} takes {_FIELDS[kind]}, got {found}",
            hint="Write values of the type that the feature view declares.",
        )
    content: Any = getattr(value, found)
    if kind == "s":
        return bytes(content.encode())
    if kind in ITEMS:
        return np.array(content.val, ITEMS[kind]).tobytes()
    return content  # type: ignore[no-any-return]


def to_proto(kind: str, wire: Wire | None) -> Value:
    """One wire value as Feast keeps it."""
    if wire is None:
        return Value()
    if kind == "P":
        return _parsed(wire)
    if kind == "s":
        return Value(string_val=wire.decode())  # type: ignore[union-attr]
    if kind in ITEMS:
        items = np.frombuffer(wire, ITEMS[kind]).tolist()  # type: ignore[arg-type]
        return _VALUE(**{_FIELDS[kind]: _LISTS[kind](val=items)})
    return _VALUE(**{_FIELDS[kind]: wire})


def python_reader(kind: str) -> Callable[[Any], Any] | None:
    """What makes a wire value what ``OnlineResponse.to_dict`` has; None where it is that already.

    The function is not called for null.
    """
    if kind in ITEMS:
        items = ITEMS[kind]
        return lambda wire: np.frombuffer(wire, items).tolist()
    return _PYTHON.get(kind)


def _moment(seconds: int) -> datetime | None:
    if seconds == NULL_TIMESTAMP_INT_VALUE:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def _parsed(wire: Any) -> Value:
    found: Value = Value.FromString(wire)
    return found


_PYTHON: dict[str, Callable[[Any], Any]] = {
    "s": bytes.decode,
    "t": _moment,
    "P": lambda wire: feast_value_type_to_python_type(_parsed(wire)),
}


def key_value(name: str, value: Value) -> KeyValue:
    """The value of a join key out of Feast's Protobuf.

    Raises:
        UsageError: it is missing, or of a type that can't be a key.
    """
    kind = value.WhichOneof("val")
    if kind == "string_val":
        return value.string_val
    if kind == "bytes_val":
        return value.bytes_val
    if kind in _INTEGER_KEYS:
        return int(getattr(value, kind))
    if kind in ("uuid_val", "time_uuid_val"):
        return str(getattr(value, kind))
    raise UsageError(
        f"join key {name!r} is {kind or 'missing'}",
        hint="Keys are texts, bytes, whole numbers or UUIDs.",
    )
