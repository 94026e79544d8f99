"""How likely each place of a list is looked at, from lists whose order was drawn.

A click needs a look (the examination hypothesis). Where every item is as likely at every place,
clicks by place differ by looks alone: the ratio of click rates is the ratio of looks (Joachims,
Swaminathan & Schnabel, Unbiased learning-to-rank with biased feedback, WSDM 2017; Wang, Golbandi,
Bendersky, Metzler & Najork, Position bias estimation for unbiased learning to rank in personal
search, WSDM 2018, who also say what can be done without drawn lists). Looks are relative to the
first place: what is never looked at is not known to be there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import StageError, UsageError

Doubles = npt.NDArray[np.float64]

REPEATS = 500


@dataclass(frozen=True)
class Examination:
    """Looks at each place beside those at the first, [places], between bounds of ``level``.

    ``chance`` never rises down the list; ``low`` and ``high`` are those of the plain ratios.
    """

    chance: Doubles
    ratio: Doubles
    low: Doubles
    high: Doubles
    level: float
    lists: int

    def __repr__(self) -> str:
        return f"Examination({self.chance.round(3).tolist()}, {self.lists} lists)"

    def of(self, place: npt.NDArray[np.integer]) -> Doubles:
        """The chance of a look at places from 1 on; below the last known one as at that.

        Raises UsageError for a place below 1.
        """
        if len(place) and int(place.min()) < 1:
            raise UsageError(f"place {int(place.min())}", hint="Places count from 1.")
        found: Doubles = self.chance[np.minimum(place, len(self.chance)) - 1]
        return found


def examination(
    clicked: npt.ArrayLike,
    propensity: npt.ArrayLike | None = None,
    *,
    repeats: int = REPEATS,
    level: float = 0.95,
    seed: int = 0,
) -> Examination:
    """From impressions of drawn lists.

    Args:
        clicked: [lists, places], 0 or 1.
        propensity: [lists, places] with which each item was put there, where some of the lists
            were not drawn; clicks and impressions then count one over it.
        repeats: of the bootstrap, over lists.
        level: of the bounds.
        seed: of the bootstrap.

    Raises:
        UsageError: shapes differ, or a propensity is not above 0.
        StageError: nobody clicked on the first place.
    """
    y = np.asarray(clicked, np.float64)
    p = np.ones(y.shape) if propensity is None else np.asarray(propensity, np.float64)
    if y.ndim != 2 or y.shape != p.shape or not (p > 0).all():
        raise UsageError(
            f"clicks of shape {y.shape}, propensities of shape {p.shape}",
            hint="Give a row for each list, and propensities above 0.",
        )
    if not y[:, 0].any():
        raise StageError(
            f"nobody clicked on the first place of {len(y)} lists",
            hint="Show more lists in a drawn order.",
        )
    seen = 1.0 / p
    got = y * seen
    rng = np.random.default_rng(seed)
    drawn = np.empty((repeats, y.shape[1]))
    for n in range(repeats):
        times = np.bincount(rng.integers(0, len(y), len(y)), minlength=len(y))
        drawn[n] = _ratio(times @ got, times @ seen)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    ratio = _ratio(got.sum(axis=0), seen.sum(axis=0))
    return Examination(_falling(ratio, seen.sum(axis=0)), ratio, low, high, level, len(y))


def _ratio(got: Doubles, seen: Doubles) -> Doubles:
    rate = got / np.maximum(seen, 1e-12)
    return rate / rate[0] if rate[0] > 0 else np.full(len(rate), np.nan)


def _falling(ratio: Doubles, weight: Doubles) -> Doubles:
    """The nearest curve from 1 that never rises, nor reaches 0 (isotonic regression)."""
    from sklearn.isotonic import IsotonicRegression

    places = np.arange(len(ratio))
    found = IsotonicRegression(y_max=1.0, increasing=False).fit_transform(
        places, ratio, sample_weight=weight
    )
    out: Doubles = np.maximum(np.minimum(found, 1.0), 1e-3)
    return out
