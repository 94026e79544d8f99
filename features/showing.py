"""`raypipe plan`: what `raypipe features` would compute now, and why. Starts no Ray."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from features import building
from features.steps import Plan, Step
from raypipe.log.opening import open_log
from raypipe.ownership.claim import require_single
from raypipe.project import Project, load_project

if TYPE_CHECKING:
    from raypipe.config import Settings


def show(settings: Settings, *, verify: bool = False) -> dict[str, Any]:
    """The plan as plain data.

    Brings new events of the log into the lake as Parquet, as a build would; computes nothing.

    Raises:
        NotFound: there is no log.
        StageError: the log has no decision events.
    """
    project = load_project(settings.project)
    with closing(open_log(settings.log_url, settings.log_cache, create=False)) as log:
        require_single(log, "`raypipe plan`")
        return describe(project, building.plan(project, log, settings, verify=verify))


def describe(project: Project, plan: Plan) -> dict[str, Any]:
    """Days times key ranges that are done and to be computed, by view, with the reason."""
    rate = plan.before.rate if plan.before else 0.0
    views = {}
    for view in project.views:
        steps = [s for of in plan.steps for s in of if view.name in s.views]
        rows = sum(s.last - s.source for s in steps)
        done = plan.done[view.name]
        cells = {
            (d.day, part)
            for s in steps
            for d in plan.history.days
            if _touches(s, d.start, d.end)
            for part in (s.parts if s.parts is not None else range(plan.partitions))
        }
        days = sorted({day for day, _ in cells})
        views[view.name] = {
            "action": "compute" if steps else "keep",
            "why": list(plan.reasons[view.name]),
            "done_days": sum(d.start < done.end for d in plan.history.days),
            "compute_days": len(days),
            "first_day": days[0] if days else None,
            "last_day": days[-1] if days else None,
            "compute_cells": len(cells),
            "rows": rows,
            "estimated_s": round(rows / rate, 1) if rate else None,
        }
    return {
        "folder": plan.base.url,
        "days": len(plan.history.days),
        "buckets": plan.partitions,
        "end_offset": plan.history.end,
        "passes": sum(len(of) for of in plan.steps),
        "row_views": plan.rows,
        "estimated_s": round(plan.rows / rate, 1) if rate else None,
        "leftovers": len(plan.orphans),
        "removed_views": sorted(_gone(project, plan)),
        "views": views,
    }


def _touches(step: Step, start: int, end: int) -> bool:
    """Whether a step writes outputs of these offsets, or makes the state behind them."""
    return any(s.start < end and start < s.end for s in step.slices) or (
        step.keep and start < step.end <= end
    )


def _gone(project: Project, plan: Plan) -> set[str]:
    known = set(plan.before.views) if plan.before else set()
    return known - {v.name for v in project.views}
