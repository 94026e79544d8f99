"""The table of an experiment's units, read into Moments by arm, day and segment.

A row is a unit: ``unit``, ``arm``, ``exposed_at`` (ms), columns of segments, and of each metric its
value NAME, its number of rows NAME__of (ratios only), its value before the exposure NAME__before
(NaN where there is no past) and NAME__mature, whether it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import StageError
from raypipe.experiments.capping import capped
from raypipe.experiments.cuped import filled
from raypipe.experiments.effects import linearised
from raypipe.experiments.moments import Floats, Moments
from raypipe.experiments.spec import Experiment, Kind, Metric

Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Values:
    """A metric of the units that are mature: columns of Moments [n], and what was left out.

    Columns are (value, covariate), for a ratio (value, rows, covariate); without a past the
    covariate is constant.
    """

    metric: Metric
    rows: Codes
    """Places in the table."""
    columns: tuple[Floats, ...]
    immature: Codes
    above: Codes
    cap: float | None
    covariate: bool

    def groups(self, codes: Codes, size: int) -> list[Moments]:
        """Of the raw columns, by a code [rows of the table] from 0 to below ``size``; -1: none."""
        mine = codes[self.rows]
        order = np.argsort(mine, kind="stable")
        edges = np.searchsorted(mine[order], np.arange(size + 1))
        table = np.column_stack(self.columns)[order]
        return [Moments.of(*table[a:b].T) for a, b in pairwise(edges)]

    def pair(self, moments: Moments) -> Moments:
        """Columns (metric, covariate) from the raw ones; nothing of a ratio without any row."""
        if self.metric.kind is not Kind.RATIO:
            return moments
        return linearised(moments) if moments.mean[1] else Moments(0, np.zeros(2), np.zeros((2, 2)))


class Units:
    """The table, checked against its experiment.

    Raises StageError: a column is missing or holds nothing where it has to, an arm is not the
    experiment's, a unit has two rows.
    """

    def __init__(self, experiment: Experiment, table: pa.Table) -> None:
        self.experiment = experiment
        self.table = table
        self.arms = [a.name for a in experiment.arms]
        needed = ["unit", "arm", "exposed_at", *experiment.segments]
        for m in experiment.metrics:
            needed += [m.name, f"{m.name}__mature", *([f"{m.name}__of"] * (m.kind is Kind.RATIO))]
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise StageError(
                f"the table of units lacks {', '.join(missing)}",
                hint=f"Make it again for {experiment.id}.",
            )
        if pc.count_distinct(table["unit"]).as_py() != len(table):
            raise StageError(
                f"units have two rows in the table of {experiment.id}",
                hint="A unit has the arm of its first exposure, once.",
            )

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def arm(self) -> Codes:
        """The place of each unit's arm in the experiment."""
        column = self.table["arm"].cast(pa.string())
        found = pc.index_in(column, pa.array(self.arms)).to_numpy()
        if np.isnan(found.astype(np.float64)).any():
            known = set(pc.unique(self.table["arm"]).to_pylist())
            raise StageError(
                f"arms {sorted(map(str, known - set(self.arms)))} are not of {self.experiment.id}",
                hint="It has: " + ", ".join(self.arms),
            )
        places: Codes = found.astype(np.int64)
        return places

    @cached_property
    def exposed(self) -> Codes:
        """When each unit was first exposed, ms."""
        found: Codes = self.table["exposed_at"].to_numpy()
        return found

    def by_arm(self, rows: Codes | slice = slice(None)) -> dict[str, int]:
        """How many of some rows each arm has."""
        counts = np.bincount(self.arm[rows], minlength=len(self.arms))
        return dict(zip(self.arms, counts.tolist(), strict=True))

    def segment(self, name: str) -> tuple[list[str], Codes]:
        """The values of a segment's column, and the place of each unit's; -1 where it has none."""
        column = self.table[name]
        values = sorted(str(v) for v in pc.unique(column).to_pylist() if v is not None)
        places = pc.index_in(column.cast(pa.string()), pa.array(values, pa.string()))
        return values, pc.fill_null(places, -1).to_numpy().astype(np.int64)

    def values(self, metric: Metric) -> Values:
        """A metric of the mature units, its value capped as declared."""
        mature = self._numbers(f"{metric.name}__mature").astype(np.bool_)
        rows = np.flatnonzero(mature)
        value = self._finite(metric.name, rows)
        cut = capped(value, quantile=metric.cap.quantile, value=metric.cap.value)
        columns = [cut.values]
        if metric.kind is Kind.RATIO:
            columns.append(self._finite(f"{metric.name}__of", rows))
        before = np.full(len(rows), np.nan)
        if f"{metric.name}__before" in self.table.column_names:
            before = self._numbers(f"{metric.name}__before").astype(np.float64)[rows]
        past = bool(np.isfinite(before).any())
        # The covariate's tail is as heavy as the metric's: the same rule, on what was before.
        known = np.isfinite(before)
        before[known] = capped(
            before[known], quantile=metric.cap.quantile, value=metric.cap.value
        ).values
        columns.append(filled(np.where(known, before, np.nan)))
        above = rows[value > cut.cap] if cut.cap is not None else rows[:0]
        return Values(metric, rows, tuple(columns), np.flatnonzero(~mature), above, cut.cap, past)

    def _numbers(self, name: str) -> npt.NDArray[np.generic]:
        found: npt.NDArray[np.generic] = self.table[name].to_numpy()
        return found

    def _finite(self, name: str, rows: Codes) -> Floats:
        values = self._numbers(name).astype(np.float64)[rows]
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise StageError(
                f"{name} of {bad} mature units is no number",
                hint="A unit without any row of a metric has 0.",
            )
        return values
