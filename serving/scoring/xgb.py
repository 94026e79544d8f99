"""XGBoost for one row, on one thread.

``inplace_predict`` spends more time on describing its input than on the trees. The C function
behind it takes the description as text, which for one buffer that is filled again for each row is
always the same.
"""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xgboost

Row = npt.NDArray[np.float32]


class DenseRow:
    """Scores by ``XGBoosterPredictFromDense``. Not thread-safe: it reuses its buffers.

    Raises whatever comes when this release of XGBoost has no such function any more.
    """

    name = "xgboost_c_api"

    def __init__(self, booster: xgboost.Booster, features: int) -> None:
        from xgboost.core import _LIB  # private, hence the comparison at load and the other way

        self._booster = booster  # owns what the handle points to
        self._predict: Any = _LIB.XGBoosterPredictFromDense
        self._error: Any = _LIB.XGBGetLastError
        self._error.restype = ctypes.c_char_p
        self._row = np.zeros((1, features), np.float32)  # its address is in the description
        self._scores = ctypes.POINTER(ctypes.c_float)()
        shape, dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        self._arguments = (
            booster.handle,
            _text(
                data=[self._row.ctypes.data, False],
                shape=[1, features],
                typestr="<f4",
                version=3,
            ),
            _text(
                type=0,
                training=False,
                iteration_begin=0,
                iteration_end=0,
                missing=float("nan"),
                strict_shape=False,
                cache_id=0,
            ),
            None,
            ctypes.byref(shape),
            ctypes.byref(dimensions),
            ctypes.byref(self._scores),
        )

    def __call__(self, row: Row) -> float:
        """The score of ``row``, float32 [features]."""
        self._row[0] = row
        if self._predict(*self._arguments):
            raise RuntimeError(f"XGBoost: {self._error().decode(errors='replace')}")
        return float(self._scores[0])


class DenseRows:
    """Scores some rows at once, by the same function. Not thread-safe: it reuses its buffer.

    Args:
        booster: the model.
        features: columns of a row.
        most: rows that come at once.

    Raises as DenseRow.
    """

    def __init__(self, booster: xgboost.Booster, features: int, most: int) -> None:
        from xgboost.core import _LIB  # private, hence the comparison at load and the other way

        self._booster = booster  # owns what the handle points to
        self._predict: Any = _LIB.XGBoosterPredictFromDense
        self._error: Any = _LIB.XGBGetLastError
        self._error.restype = ctypes.c_char_p
        self._rows = np.zeros((most, features), np.float32)  # its address is in the description
        self._described: dict[int, bytes] = {}
        self._scores = ctypes.POINTER(ctypes.c_float)()
        shape, dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        self._options = _text(
            type=0,
            training=False,
            iteration_begin=0,
            iteration_end=0,
            missing=float("nan"),
            strict_shape=False,
            cache_id=0,
        )
        self._rest = (
            None,
            ctypes.byref(shape),
            ctypes.byref(dimensions),
            ctypes.byref(self._scores),
        )

    def __call__(self, rows: Row) -> Row:
        """The score of each of ``rows``, float32 [n, features], n from 1 to ``most``."""
        count = len(rows)
        self._rows[:count] = rows
        described = self._described.get(count)
        if described is None:
            described = self._described[count] = _text(
                data=[self._rows.ctypes.data, False],
                shape=list(rows.shape),
                typestr="<f4",
                version=3,
            )
        if self._predict(self._booster.handle, described, self._options, *self._rest):
            raise RuntimeError(f"XGBoost: {self._error().decode(errors='replace')}")
        return np.ctypeslib.as_array(self._scores, (count,)).copy()


class InplaceRow:
    """Scores by ``inplace_predict``, the public way. Not thread-safe."""

    name = "xgboost_inplace"

    def __init__(self, booster: xgboost.Booster, features: int) -> None:
        self._booster = booster
        self._row = np.zeros((1, features), np.float32)

    def __call__(self, row: Row) -> float:
        """The score of ``row``, float32 [features]."""
        self._row[0] = row
        return float(self._booster.inplace_predict(self._row, validate_features=False)[0])


def scores(booster: xgboost.Booster, rows: Row) -> Row:
    """What ``Booster.predict`` gives to float32 [n, features]."""
    return np.asarray(booster.predict(_matrix(booster, rows)))


def contributions(booster: xgboost.Booster, rows: Row) -> Row:
    """XGBoost's own exact TreeSHAP, float32 [n, features], without the bias."""
    return np.asarray(booster.predict(_matrix(booster, rows), pred_contribs=True)[:, :-1])


def _matrix(booster: xgboost.Booster, rows: Row) -> xgboost.DMatrix:
    import xgboost

    return xgboost.DMatrix(rows, feature_names=booster.feature_names, nthread=1)


def _text(**described: Any) -> bytes:
    return json.dumps(described).encode()
