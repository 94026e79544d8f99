"""The verbs that change what is served, on a running system or before the next start."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from raypipe.errors import NotFound, UsageError
from raypipe.experiments.registry import EXPERIMENTS
from raypipe.policy.registry import POLICIES
from raypipe.project import load_project
from serving.release import Challenger, Release, split_reference
from serving.releases import Recorded, Releases, first_or_current, somebody
from training import registry

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

Edit = Callable[[Release], Release]


def change(
    settings: Settings,
    progress: Progress,
    edit: Edit,
    *,
    reason: str,
    by: str | None = None,
) -> tuple[Recorded, bool]:
    """Serve what ``edit`` makes of the current release; what was recorded, and whether replicas
    run that serve it now. Where none runs the next start serves it.

    Raises UsageError when nothing would change, what ``serving.rollout.apply`` raises, and the
    same reasons for a version that can't be loaded where nothing runs.
    """
    releases = Releases(settings.lake)
    before = first_or_current(settings, load_project(settings.project).models[0].name)
    wanted = edit(before.release)
    if not list(before.release.changes(wanted)):
        raise UsageError(f"release {before.number} is like that already")
    by = by or somebody()
    if _decides(settings):
        from serving import rollout

        with progress.stage("release") as stage:
            made = rollout.apply(settings, wanted, by=by, reason=reason, replaces=before.number)
            stage.say(f"release {made.number} serves")
        return made, True
    _check(settings, wanted)
    return releases.record(wanted, by=by, reason=reason), False


def show(settings: Settings) -> tuple[Recorded, list[dict[str, Any]]]:
    """The current release, and what each running replica serves; raises NotFound without one."""
    recorded = Releases(settings.lake).current()
    if recorded is None:
        raise NotFound("nothing was released yet", hint="`raypipe serve` begins with release 1.")
    if not _decides(settings):
        return recorded, []
    from serving import rollout

    return recorded, rollout.served()


def promoted(settings: Settings, reference: str) -> Edit:
    """Make a version the champion; a name alone means the model's current version."""
    model = resolve(settings, reference)

    def edit(release: Release) -> Release:
        return msgspec.structs.replace(
            release,
            champion=model,
            challengers=tuple(c for c in release.challengers if c.model != model),
            shadows=tuple(s for s in release.shadows if s != model),
        )

    return edit


def challenged(settings: Settings, reference: str, share: float, salt: str | None = None) -> Edit:
    """Give a version a share of the keys; 0 takes it out.

    A new salt begins another experiment. Without one the running experiment goes on: keys keep
    their arms, and a challenger that is there already keeps its place.
    """
    model = resolve(settings, reference)

    def edit(release: Release) -> Release:
        there = [c.model for c in release.challengers]
        if share == 0.0 and model not in there:
            raise NotFound(f"{model} is no challenger", hint=f"There are: {_listed(there)}.")
        if model == release.champion:
            raise UsageError(f"{model} is the champion", hint="Challenge it with another version.")
        given = [
            Challenger(c.model, share if c.model == model else c.share) for c in release.challengers
        ]
        if model not in there:
            given.append(Challenger(model, share))
        return msgspec.structs.replace(
            release,
            challengers=tuple(c for c in given if c.share != 0.0),
            shadows=tuple(s for s in release.shadows if s != model),
            salt=salt or release.salt or secrets.token_hex(4),
        )

    return edit


def shadowed(settings: Settings, reference: str, *, stop: bool = False) -> Edit:
    """Have a version judge beside the others without deciding, or no longer."""
    model = resolve(settings, reference)

    def edit(release: Release) -> Release:
        if stop and model not in release.shadows:
            raise NotFound(f"{model} is no shadow", hint=f"There are: {_listed(release.shadows)}.")
        rest = tuple(s for s in release.shadows if s != model)
        return msgspec.structs.replace(release, shadows=rest if stop else (*rest, model))

    return edit


def rolled_back(settings: Settings, to: int | None = None) -> Edit:
    """Serve again what an earlier release was, by default the one before the current one."""
    releases = Releases(settings.lake)
    current = releases.current()
    if to is None:
        if current is None or current.previous == 0:
            raise NotFound("there is no release before the current one")
        to = current.previous
    wanted = releases.get(to).release
    return lambda release: msgspec.structs.replace(wanted, number=release.number)


def with_policy(settings: Settings, reference: str | None) -> Edit:
    """Decide by a published policy, by a name alone its highest version; None: by the thresholds
    of each model. Raises NotFound."""
    found = None if reference is None else POLICIES.resolve(settings.lake, reference)
    return lambda release: msgspec.structs.replace(release, policy=found)


def started(settings: Settings, reference: str) -> Edit:
    """Run a published experiment, by a name alone its highest version; a version of it that runs
    gives way. Raises NotFound."""
    found = EXPERIMENTS.resolve(settings.lake, reference)

    def edit(release: Release) -> Release:
        others = _without(release, found.partition("@")[0])
        return msgspec.structs.replace(release, experiments=(*others, found))

    return edit


def stopped(reference: str) -> Edit:
    """Run an experiment no longer: its units get what the release serves. Raises NotFound."""

    def edit(release: Release) -> Release:
        _running(release, reference)
        others = _without(release, reference.partition("@")[0])
        return msgspec.structs.replace(release, experiments=others)

    return edit


def arm_promoted(settings: Settings, reference: str, arm: str) -> Edit:
    """End an experiment and serve to everybody what an arm of it got.

    Raises NotFound for an experiment that doesn't run, DeclarationError for an unknown arm.
    """

    def edit(release: Release) -> Release:
        winner = EXPERIMENTS.read(settings.lake, _running(release, reference)).arm(arm)
        ended = stopped(reference)(release)
        if winner.policy is not None:
            ended = msgspec.structs.replace(ended, policy=winner.policy)
        return ended if winner.model is None else promoted(settings, winner.model)(ended)

    return edit


def _running(release: Release, reference: str) -> str:
    """The ``name@version`` that runs and that a name, or the same, means."""
    for running in release.experiments:
        if reference in (running, running.partition("@")[0]):
            return running
    raise NotFound(
        f"experiment {reference!r} doesn't run", hint=f"There run: {_listed(release.experiments)}."
    )


def _without(release: Release, name: str) -> tuple[str, ...]:
    return tuple(e for e in release.experiments if e.partition("@")[0] != name)


def resolve(settings: Settings, reference: str) -> str:
    """``name@version``; of a name alone its current version. Raises NotFound for what isn't there,
    UsageError for a model that the project doesn't declare."""
    name, at, version = reference.partition("@")
    if at:
        name, version = split_reference(reference)
    project = load_project(settings.project)
    if name not in {m.name for m in project.models}:
        raise UsageError(
            f"{project.name!r} declares no model {name!r}",
            hint="It has: " + ", ".join(m.name for m in project.models),
        )
    return f"{name}@{registry.locate(settings.lake / 'models', name, version or None).name}"


def _check(settings: Settings, release: Release) -> None:
    """Load it here, as a replica would."""
    from serving.options import load_options
    from serving.panel import load_panel

    options = load_options(settings.serving_options)
    project = load_project(settings.project)
    load_panel(
        settings.lake,
        project,
        release,
        options.policy.on_error,
        table_bytes=settings.reasons_table_bytes,
    )


def join(settings: Settings) -> bool:
    """Join the Ray session that serves; whether there is one."""
    from raypipe.runtime import running, session

    if session.address():
        pass  # this process is in one already
    elif settings.ray_address is not None:
        session.start(settings, warm=False)
    else:
        found = running.find(settings.home)
        if found is None or not found.ray_address:
            return False
        # A guest brings no ingress of its own.
        joined = {"ray_address": found.ray_address, "ingress": "proxy"}
        guest = settings.model_copy(update=joined)
        session.start(guest, warm=False)
    return True


def _decides(settings: Settings) -> bool:
    """Join the session that serves; whether it makes decisions."""
    from serving import rollout

    return join(settings) and rollout.running()


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
