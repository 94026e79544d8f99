"""Counts, means and products of deviations of some columns: all that the methods need of an arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Of ``n`` rows of k columns: their means [k] and the sums of products of deviations [k, k].

    Parts of a table add up to the whole (Chan, Golub & LeVeque, *Updating formulae and a pairwise
    algorithm for computing sample variances*, 1979).

    >>> part = Moments.of([1.0, 2.0]) + Moments.of([6.0])
    >>> part.n, float(part.mean[0]), float(part.covariance[0, 0])
    (3, 3.0, 7.0)
    """

    n: int
    mean: Floats
    products: Floats

    @classmethod
    def of(cls, *columns: npt.ArrayLike) -> Moments:
        """Of columns of one length; raises UsageError if they are not, or not all finite."""
        values = [np.asarray(c, np.float64) for c in columns]
        if not values or any(v.shape != (len(values[0]),) for v in values):
            shapes = ", ".join(str(v.shape) for v in values)
            raise UsageError(f"columns of shapes {shapes}", hint="Give columns of one length.")
        rows = np.column_stack(values)
        if not np.isfinite(rows).all():
            raise UsageError(
                f"{int((~np.isfinite(rows)).any(axis=1).sum())} rows are not finite numbers",
                hint="Leave them out, and count them.",
            )
        return cls._of_rows(rows)

    @classmethod
    def _of_rows(cls, rows: Floats) -> Moments:
        k = rows.shape[1]
        if not len(rows):
            return cls(0, np.zeros(k), np.zeros((k, k)))
        mean = rows.mean(axis=0)
        deviations = rows - mean
        return cls(len(rows), mean, deviations.T @ deviations)

    @classmethod
    def known(cls, n: int, mean: npt.ArrayLike, covariance: npt.ArrayLike) -> Moments:
        """From what others report: means [k] and the sample covariance [k, k], or one of each."""
        found = np.atleast_1d(np.asarray(mean, np.float64))
        products = np.atleast_2d(np.asarray(covariance, np.float64)) * (n - 1)
        if n < 2 or products.shape != (len(found), len(found)):
            raise UsageError(
                f"{n} rows, {len(found)} means, covariances of shape {products.shape}",
                hint="Two rows at least, k means and k by k covariances are expected.",
            )
        return cls(n, found, products)

    @property
    def covariance(self) -> Floats:
        """The sample covariance [k, k]; NaN below two rows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.products / (self.n - 1 if self.n > 1 else np.nan)

    def linear(self, matrix: npt.ArrayLike, shift: Floats | float = 0.0) -> Moments:
        """Of the columns ``matrix [m, k] @ row + shift``."""
        a = np.atleast_2d(np.asarray(matrix, np.float64))
        return Moments(self.n, a @ self.mean + shift, a @ self.products @ a.T)

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        if not n:
            return self
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.n * other.n / n)
        return Moments(
            n, self.mean + apart * (other.n / n), self.products + other.products + between
        )
