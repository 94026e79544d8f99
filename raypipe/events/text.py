"""Arrow text columns from outside: one physical type, bad UTF-8 found, unfit values found fast.

Arrow does not check UTF-8 when it reads IPC, Parquet or CSV, and later code crashes on it or
worse. So a text column goes through ``plain_text`` before anything else touches it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import MalformedBody

Mask = npt.NDArray[np.bool_]

_CONTROL = r"[\x00-\x1f\x7f-\x{9f}]"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of that Arrow type holds text, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def as_bytes(column: pa.Array) -> pa.Array:
    """The bytes of a text column, its structure checked; UTF-8 isn't.

    Raises MalformedBody when offsets or dictionary indices point outside the data.
    """
    try:
        if pa.types.is_dictionary(column.type):
            column.indices.validate(full=True)
            words = as_bytes(column.dictionary)
            return pa.DictionaryArray.from_arrays(column.indices, words).dictionary_decode()
        raw = column.view(_BYTES[column.type])
        raw.validate(full=True)
        return raw.cast(pa.binary())
    except (pa.ArrowInvalid, pa.ArrowIndexError) as e:
        raise MalformedBody(f"a text column is damaged: {e}") from e


_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def plain_text(column: pa.Array) -> tuple[pa.StringArray, Mask | None]:
    """Any text column as ``string``, and which rows are not valid UTF-8 (None when all are).

    Rows that are not valid are null in the returned column.
    """
    raw = as_bytes(column)
    text = raw.view(pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        bad = np.fromiter((not _is_utf8(v) for v in raw.to_pylist()), np.bool_, len(raw))
        kept = pc.if_else(pa.array(~bad), raw, pa.scalar(None, pa.binary()))
        return kept.view(pa.string()), bad
    return text, None


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or bool(str(value, "utf-8") or True)
    except UnicodeDecodeError:
        return False


def unfit_text(text: pa.StringArray, max_length: int) -> Mask:
    """Rows that are empty, longer than ``max_length`` characters or hold a control character.

    Null rows may read as either; the caller knows where they are.
    """
    rows = len(text)
    if not rows:
        return np.zeros(0, np.bool_)
    _, offset_buffer, data_buffer = text.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[text.offset : text.offset + rows + 1]
    sizes = np.diff(offsets)
    unfit: Mask = sizes == 0
    too_long = sizes > max_length
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    # Printable ASCII throughout is the usual case: two passes over bytes instead of a regex a row.
    plain = not len(data) or (int(data.min()) >= 0x20 and int(data.max()) < 0x7F)
    if not plain:
        unfit |= flags(pc.match_substring_regex(text, _CONTROL))
        if too_long.any():
            too_long = filled(pc.utf8_length(text), 0).to_numpy() > max_length
    return unfit | too_long


def flags(mask: pa.Array) -> Mask:
    """A boolean column as numpy; null counts as false."""
    found: Mask = filled(mask, False).to_numpy(zero_copy_only=False)
    return found


def filled(column: pa.Array, value: bool | float) -> pa.Array:
    """The column with ``value`` in place of null."""
    return column.fill_null(value) if column.null_count else column
