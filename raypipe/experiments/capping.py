"""Heavy tails: values above a declared cap count as the cap (winsorised), in all arms alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from raypipe.errors import UsageError
from raypipe.experiments.moments import Floats


class Capped(NamedTuple):
    """Values [n], the cap that was used, and how many values lay above it."""

    values: Floats
    cap: float | None
    above: int


def capped(values: Floats, *, quantile: float | None = None, value: float | None = None) -> Capped:
    """Apply a declared cap: a ``value``, or a ``quantile`` of all these values, or none.

    A quantile is of the units of all arms together, so that it knows nothing of the arm. What is
    compared then is the mean of capped values: less than the whole, and said so in the report.

    >>> capped(np.array([1.0, 2.0, 90.0]), value=10.0)
    Capped(values=array([ 1.,  2., 10.]), cap=10.0, above=1)
    """
    if quantile is not None and value is not None:
        raise UsageError("a cap by quantile and by value", hint="Declare one of both.")
    if quantile is not None:
        if not 0.5 <= quantile <= 1.0:
            raise UsageError(f"a cap at quantile {quantile:g}", hint="It is from 0.5 to 1.")
        value = float(np.quantile(values, quantile)) if len(values) else None
    if value is None:
        return Capped(values, None, 0)
    return Capped(np.minimum(values, value), value, int((values > value).sum()))
