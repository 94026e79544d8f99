"""LightGBM for one row, on one thread: its C library keeps what it prepared for the row before."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import lightgbm

Row = npt.NDArray[np.float32]

_FLOAT32, _NORMAL, _ALL_ROUNDS = 0, 0, -1


class FastRow:
    """Scores by ``LGBM_BoosterPredictForMatSingleRowFast``. Not thread-safe.

    Raises whatever comes when this release of LightGBM has no such functions any more.
    """

    name = "lightgbm_single_row_fast"

    def __init__(self, booster: lightgbm.Booster, features: int) -> None:
        from lightgbm import basic

        self._booster = booster
        library: Any = vars(basic)["_LIB"]  # private, as in serving/scoring/xgb.py
        self._library = library
        self._config = ctypes.c_void_p()
        self._row = np.zeros(features, np.float32)
        self._score = np.zeros(1, np.float64)
        self._check(
            library.LGBM_BoosterPredictForMatSingleRowFastInit(
                booster._handle,
                ctypes.c_int(_NORMAL),
                ctypes.c_int(0),
                ctypes.c_int(_ALL_ROUNDS),
                ctypes.c_int(_FLOAT32),
                ctypes.c_int32(features),
                ctypes.c_char_p(b"num_threads=1"),
                ctypes.byref(self._config),
            )
        )
        self._arguments = (
            self._config,
            ctypes.c_void_p(self._row.ctypes.data),
            ctypes.byref(ctypes.c_int64()),
            ctypes.c_void_p(self._score.ctypes.data),
        )

    def __call__(self, row: Row) -> float:
        """The score of ``row``, float32 [features]."""
        self._row[:] = row
        self._check(self._library.LGBM_BoosterPredictForMatSingleRowFast(*self._arguments))
        return float(self._score[0])

    def __del__(self) -> None:
        if getattr(self, "_config", None):
            self._library.LGBM_FastConfigFree(self._config)

    def _check(self, failed: int) -> None:
        if failed:
            error = self._library.LGBM_GetLastError
            error.restype = ctypes.c_char_p
            raise RuntimeError(f"LightGBM: {error().decode(errors='replace')}")


class PlainRow:
    """Scores by ``Booster.predict``, the public way."""

    name = "lightgbm_predict"

    def __init__(self, booster: lightgbm.Booster, features: int) -> None:
        self._booster = booster

    def __call__(self, row: Row) -> float:
        """The score of ``row``, float32 [features]."""
        return float(scores(self._booster, row[None])[0])


def scores(booster: lightgbm.Booster, rows: Row) -> npt.NDArray[np.float64]:
    """What ``Booster.predict`` gives to float32 [n, features]."""
    return np.asarray(booster.predict(rows, num_threads=1))


def contributions(booster: lightgbm.Booster, rows: Row) -> npt.NDArray[np.float64]:
    """LightGBM's own exact TreeSHAP, float64 [n, features], without the bias."""
    return np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1))[:, :-1]
