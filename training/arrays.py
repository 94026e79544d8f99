"""NumPy's ``.npy`` files in the lake: written whole, read over their mapped bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.lake import Place

_HEAD = 4_096
"""Bytes of a file that surely hold its header."""


def write_array(place: Place, array: npt.NDArray[Any]) -> None:
    """Make an array the file, atomically and without pickle."""
    with place.writing() as sink:
        np.lib.format.write_array(sink, np.asarray(array), allow_pickle=False)


def array_of(data: pa.Buffer) -> npt.NDArray[Any]:
    """The array of a ``.npy`` file, read-only, over its bytes.

    Raises IntegrityError for bytes that are no such file, or fewer than it says.
    """
    head = io.BytesIO(data.slice(0, min(_HEAD, data.size)).to_pybytes())
    try:
        np.lib.format.read_magic(head)
        shape, fortran, kind = np.lib.format.read_array_header_1_0(head)
        if kind.hasobject:
            raise ValueError("it holds objects")
        return np.ndarray(shape, kind, data, head.tell(), order="F" if fortran else "C")
    except (ValueError, TypeError) as e:
        raise IntegrityError(f"these bytes are no .npy file: {e}") from e
