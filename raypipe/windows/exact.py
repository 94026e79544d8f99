"""Exact integer arithmetic on 128 bits for the kernel, as pairs of int64 words (low, high)."""

from __future__ import annotations

import numpy as np
from numba import njit

# The numpy error model leaves out a check for zero at each division; no divisor here can be zero.
compiled = njit(cache=True, nogil=True, error_model="numpy")
inline = njit(cache=True, inline="always", error_model="numpy")

_TWO_64 = 18446744073709551616.0
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_FITS = np.int64(2**62)


@inline
def add(lo, hi, other_lo, other_hi):  # type: ignore[no-untyped-def]
    """(lo, hi) + (other_lo, other_hi) modulo 2**128, as int64 words."""
    s = np.uint64(lo) + np.uint64(other_lo)
    carry = np.int64(1) if s < np.uint64(lo) else np.int64(0)
    return np.int64(s), hi + other_hi + carry


@inline
def negate(lo, hi):  # type: ignore[no-untyped-def]
    """-(lo, hi) modulo 2**128."""
    return add(~lo, ~hi, np.int64(1), np.int64(0))


@inline
def multiply(a, b):  # type: ignore[no-untyped-def]
    """Unsigned 64 x 64 -> 128 bits."""
    a_lo, a_hi = a & _LOW, a >> _32
    b_lo, b_hi = b & _LOW, b >> _32
    low = a_lo * b_lo
    middle = a_hi * b_lo + (low >> _32)
    cross = a_lo * b_hi + (middle & _LOW)
    return (low & _LOW) | (cross << _32), a_hi * b_hi + (middle >> _32) + (cross >> _32)


@compiled
def scale(lo, hi, factor):  # type: ignore[no-untyped-def]
    """(lo, hi) * factor modulo 2**128 for a signed 64-bit factor."""
    size = np.uint64(factor if factor >= 0 else -factor)
    p_lo, p_hi = multiply(np.uint64(lo), size)
    p_hi += np.uint64(hi) * size
    if factor >= 0:
        return np.int64(p_lo), np.int64(p_hi)
    return negate(np.int64(p_lo), np.int64(p_hi))


@compiled
def to_float(lo, hi):  # type: ignore[no-untyped-def]
    """A signed 128-bit number as float64; exact while it fits 53 bits."""
    if hi == (lo >> np.int64(63)):
        return np.float64(lo)
    if hi < 0:
        n_lo, n_hi = negate(lo, hi)
        return -(np.float64(np.uint64(n_hi)) * _TWO_64 + np.float64(np.uint64(n_lo)))
    return np.float64(hi) * _TWO_64 + np.float64(np.uint64(lo))


@compiled
def deviation(count, s_lo, s_hi, q_lo, q_hi):  # type: ignore[no-untyped-def]
    """Population standard deviation from exact sums.

    Shifted form: with an integer m near the mean, sum (x-m)^2 = q - 2 m s + n m^2 is an exact
    integer, and what is left to subtract is at most a quarter. While q and s fit 62 bits, 64-bit
    arithmetic that wraps around gives the same integer, because the result is small.
    """
    n = np.float64(count)
    m = np.int64(np.rint(to_float(s_lo, s_hi) / n))
    if q_hi == 0 and 0 <= q_lo < _FITS and s_hi == s_lo >> np.int64(63):
        squares = np.float64(q_lo - 2 * m * s_lo + count * m * m)
        rest = np.float64(s_lo - count * m) / n
    else:
        a_lo, a_hi = scale(s_lo, s_hi, -2 * m)
        size = np.uint64(m if m >= 0 else -m)
        b_lo, b_hi = multiply(size, size)
        b_lo, b_hi = scale(np.int64(b_lo), np.int64(b_hi), count)
        t_lo, t_hi = add(q_lo, q_hi, a_lo, a_hi)
        t_lo, t_hi = add(t_lo, t_hi, b_lo, b_hi)
        squares = to_float(t_lo, t_hi)
        r_lo, r_hi = scale(np.int64(count), np.int64(0), -m)
        r_lo, r_hi = add(s_lo, s_hi, r_lo, r_hi)
        rest = to_float(r_lo, r_hi) / n
    variance = squares / n - rest * rest
    return np.sqrt(variance) if variance > 0.0 else 0.0
