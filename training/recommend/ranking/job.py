"""``raypipe recommend fit``: a home's log to a version, through a sweep if one is asked for.

``tune/ranker-<name>`` in the lake holds Tune's records and ``work.json``, which is there from the
moment the sweep can be resumed until its version is written. It names the end of the log: a
resumed run learns from the log as it was, so its spans are those of the trials that have ended.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from features.log_files import LogFiles, open_log
from raypipe.errors import IntegrityError, UsageError
from raypipe.events.schema import canonical_json
from raypipe.lake import Place
from raypipe.project import load_project
from raypipe.runtime import session
from raypipe.runtime.progress import Progress
from training.recommend.ranking.fit import SHOP, Fitted, Plan, fit, require_shop
from training.recommend.ranking.profiles import is_made
from training.recommend.ranking.spans import Span

if TYPE_CHECKING:
    from raypipe.config import Settings
    from training.recommend.ranking.tuning import Tuned

_WORK = "work.json"
_ANEW = "Fit without --resume."


@dataclass(frozen=True)
class Work:
    """What a sweep is about; written before it begins, so that it can be resumed."""

    log_id: str
    log_end: int
    definition_hash: str
    trials: int
    seed: int


def run(
    settings: Settings,
    progress: Progress,
    *,
    trials: int | None = None,
    resume: bool = False,
    plan: Plan = SHOP,
) -> dict[str, Any]:
    """Fit a shop's recommender on a home's log; what `raypipe recommend fit` tells.

    Args:
        settings: of the home.
        progress: stages, and a line per finished trial.
        trials: orders tried in a sweep, for which a Ray session is started if none runs; without,
            and without ``resume``, the settings that are tried first.
        resume: finish an interrupted sweep; later events don't count.
        plan: what is fitted.

    Raises:
        NotFound, StageError: as ``fit``, or no trial succeeded.
        DeclarationError: the project lacks a shop's events.
        UsageError: an interrupted sweep was told otherwise, or was about another log or other
            declarations.
    """
    project = load_project(settings.project)
    require_shop(project)
    folder = settings.lake / "tune" / f"ranker-{plan.retrieval.name}"
    work = _interrupted(folder, trials, progress) if resume else None
    with open_log(settings, project, end=None if work is None else work.log_end) as files:
        if trials is None and not resume:
            return _told(fit(files, settings.lake, plan, progress), plan, None)
        asked = Work(
            files.id,
            files.end,
            _definition(plan, files, settings.lake),
            settings.trials if trials is None else trials,
            settings.seed,
        )
        sweep = _Sweep(folder, work or asked, plan, progress, resumed=work is not None)
        if work is None:
            folder.remove_tree()
            (folder / _WORK).write(msgspec.json.format(msgspec.json.encode(asked), indent=2))
        elif (work.log_id, work.definition_hash) != (asked.log_id, asked.definition_hash):
            raise UsageError(
                "the log, or what is fitted from it, is another than the interrupted sweep's",
                hint=_ANEW,
            )
        session.start(settings)
        found = fit(files, settings.lake, plan, progress, choose_order=sweep)
    (folder / _WORK).remove()
    return _told(found, plan, sweep.found)


class _Sweep:
    """Chooses by a sweep; see choosing.Choose. ``found`` is what it found."""

    def __init__(
        self, folder: Place, work: Work, plan: Plan, progress: Progress, *, resumed: bool
    ) -> None:
        self._folder = folder
        self._work = work
        self._plan = plan
        self._progress = progress
        self._resumed = resumed
        self.found: Tuned | None = None

    def __call__(self, learn: Span, choose: Span) -> Tuned:
        from training.recommend.ranking.tuning import TuningPlan, tuned

        work, progress = self._work, self._progress
        wanted = TuningPlan(
            work.trials, max_rounds=self._plan.rounds, seed=work.seed, k=self._plan.k
        )
        with progress.stage("sweep", total=work.trials, unit="trials") as stage:

            def ended(line: str) -> None:
                stage.advance()
                progress.note(line)

            self.found = found = tuned(
                learn,
                choose,
                wanted,
                storage=self._folder,
                resume=self._resumed,
                note=progress.note,
                trial_ended=ended,
            )
            stage.reach(len(found.trials))
            stage.say(f"best NDCG@{wanted.k} {found.best.metric:.4f} of all items")
        return found


def _interrupted(folder: Place, trials: int | None, progress: Progress) -> Work | None:
    """What an earlier run was about, None when there was none."""
    place = folder / _WORK
    try:
        work = msgspec.json.decode(place.read(), type=Work)
    except FileNotFoundError:
        progress.note("no interrupted sweep to resume: starting a new one")
        return None
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{place.url} is not what was written: {e}", hint=_ANEW) from e
    if trials not in (None, work.trials):
        raise UsageError(
            f"an interrupted sweep of {work.trials} trials can't be told to try {trials}",
            hint="Resume without --trials, or fit without --resume.",
        )
    return work


def _definition(plan: Plan, files: LogFiles, lake: Place) -> str:
    """sha256 of all but the log that decides what trials see."""
    profiles = [p for p in plan.profiles if is_made(p, lake, files.id, files.tenant)]
    told = {
        "tenant": files.tenant,
        "retrieval": plan.retrieval.describe(),
        "beside": {name: method.describe() for name, method in plan.beside.items()},
        "views": {v.name: v.definition_hash for v in plan.views},
        "profiles": {p.name: p.definition_hash for p in profiles},
        "spans": [
            plan.learn_ms,
            plan.choose_ms,
            plan.refit_ms,
            plan.visits,
            plan.candidates,
            plan.rounds,
            plan.k,
        ],
    }
    return hashlib.sha256(canonical_json(told)).hexdigest()


def _told(found: Fitted, plan: Plan, sweep: Tuned | None) -> dict[str, Any]:
    manifest = found.manifest
    gain = found.two_stage.gain(found.retriever, "ndcg", plan.k)
    return {
        "version": manifest.reference,
        "retriever": manifest.retriever,
        "current": found.promoted,
        "items": manifest.items,
        "profiles": sorted(manifest.profiles),
        "learner": manifest.learner,
        "trees": manifest.training["trees"],
        "least_known": manifest.least_known,
        "trials": [] if sweep is None else [t.describe() for t in sweep.trials],
        "k": plan.k,
        "ndcg_retriever": found.retriever.mean("ndcg", plan.k),
        "ndcg_two_stage": found.two_stage.mean("ndcg", plan.k),
        "ndcg_gain_low": gain.low,
        "ndcg_gain_high": gain.high,
    }
