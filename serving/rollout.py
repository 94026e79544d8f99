"""Exchange the release inside running replicas: no restart, no lost request, all or none.

1. Every running replica loads and checks the release beside the one that it serves. One that can't
   is the end: nothing has changed, and the reason is raised.
2. The release is recorded and becomes the current one, durably.
3. Every replica is told to switch, which exchanges one reference in memory.
4. The deployment's ``user_config`` becomes the release, for replicas that start later. Serve calls
   ``reconfigure`` of the running ones, which have the release already.

Step 3 stands before 4 because Serve reconfigures a few replicas at a time and sends no requests
to them meanwhile; loaded already, they are back within a tick of its controller.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raypipe.errors import Conflict, StageError, Unavailable, error_of
from serving.app import APPLICATION, DEPLOYMENT
from serving.release import Release
from serving.releases import Recorded, Releases

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from raypipe.config import Settings

LOAD_S = 120.0
"""How long replicas may take to load a release."""

SWITCH_S = 30.0
AGREE_S = 60.0
"""How long Serve may take until all replicas, those that started meanwhile too, serve it."""

_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment whose replicas have ``prepare``, ``forget``, ``switch`` and ``serves``."""

    application: str
    deployment: str


DECISIONS = Target(APPLICATION, DEPLOYMENT)


def apply(
    settings: Settings, release: Release, *, by: str, reason: str, replaces: int | None = None
) -> Recorded:
    """Serve a release from now on, in the running Ray session; what was recorded.

    Args:
        replaces: number of the release that this one was made from; by default any.

    Raises what a replica says that can't load it (NotFound, IntegrityError ...), Conflict when
    another release is current by now, Unavailable when replicas don't answer: the old release
    serves on. StageError when it is recorded and some replica does not serve it.
    """
    releases = Releases(settings.lake)
    made: list[Recorded] = []

    def record() -> dict[str, Any]:
        current = releases.current()
        if replaces is not None and (current.number if current else 0) != replaces:
            raise Conflict(
                f"release {current.number if current else 0} was recorded meanwhile",
                hint="Look at `raypipe release show`, then try again.",
            )
        made.append(releases.record(release, by=by, reason=reason))
        return made[0].release.describe()

    exchange(DECISIONS, release.describe(), record)
    return made[0]


def exchange(
    target: Target, wanted: dict[str, Any], record: Callable[[], dict[str, Any] | None]
) -> None:
    """Have all running replicas serve something else, by the steps above.

    Args:
        target: whose replicas.
        wanted: the ``user_config`` that they prepare.
        record: makes it durable when all have it; may return what the ``user_config`` is by then.

    Raises as ``apply``.
    """
    handle = _handle(target)
    # Replicas that Serve reconfigures or has lost are not asked: wait until it has all of them.
    if not _settled(LOAD_S, target):
        raise Unavailable(
            f"the replicas are not all up within {LOAD_S:g} s", hint="`raypipe status` shows them."
        )
    _prepare(handle, wanted)
    try:
        plain = record() or wanted
    except Conflict:
        _ask(handle, SWITCH_S, "forget")
        raise
    _ask(handle, SWITCH_S, "switch", plain)
    set_user_config(plain, target)
    _await_agreement(handle, plain, target)


def _settled(within_s: float, target: Target = DECISIONS) -> bool:
    """Whether Serve has every replica as it should be, in time."""
    from ray import serve

    until = time.monotonic() + within_s
    while serve.status().applications[target.application].status != "RUNNING":
        if time.monotonic() > until:
            return False
        time.sleep(_TICK_S)
    return True


def running(target: Target = DECISIONS) -> bool:
    """Whether the application is deployed in this Ray session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray import serve

    return target.application in serve.status().applications


def served(target: Target = DECISIONS) -> list[dict[str, Any]]:
    """What each running replica serves, as plain data."""
    return _ask(_handle(target), SWITCH_S, "serves")


def set_user_config(user_config: dict[str, Any], target: Target = DECISIONS) -> None:
    """Change the deployment's ``user_config`` and nothing else of it.

    ``serve.run`` can't: it takes every application for new code. An application that a config file
    deployed is deployed again by that config, with this one change; one that ``serve.run`` deployed
    is told of its own deployment as it runs, under the code version that it has. Both are calls of
    Serve's own client, which are not public; a test holds them.
    """
    import ray
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    controller = client._controller
    configs = ray.get(controller.get_app_configs.remote())
    details = client.get_serve_details()["applications"][target.application]
    if details["source"] == "declarative" and target.application in configs:
        client.deploy_apps(_declared(configs, user_config, target))
    else:
        arguments = _imperative(controller, user_config, target)
        ray.get(controller.deploy_applications.remote(*arguments))


def _declared(configs: dict[str, Any], user_config: dict[str, Any], target: Target) -> Any:
    from ray.serve.schema import ServeDeploySchema

    applications = {n: c.model_dump(exclude_unset=True) for n, c in configs.items()}
    deployments = applications[target.application].setdefault("deployments", [])
    mine = next((d for d in deployments if d["name"] == target.deployment), None)
    if mine is None:
        mine = {"name": target.deployment}
        deployments.append(mine)
    mine["user_config"] = user_config
    return ServeDeploySchema.model_validate({"applications": list(applications.values())})


def _imperative(
    controller: Any, user_config: dict[str, Any], target: Target
) -> tuple[dict[str, Any], ...]:
    """Arguments of the controller's ``deploy_applications``: the deployment as it runs."""
    import ray
    from ray.serve._private.config import DeploymentConfig
    from ray.serve.generated import serve_pb2

    messages: Any = serve_pb2  # made at run time: type checkers see no names in it
    told = ray.get(controller.get_deployment_info.remote(target.deployment, target.application))
    route = messages.DeploymentRoute.FromString(told)
    info = route.deployment_info
    config = DeploymentConfig.from_proto(info.deployment_config)
    config.user_config = user_config
    config.version = info.version
    deployment = messages.DeploymentArgs(
        deployment_name=target.deployment,
        deployment_config=config.to_proto_bytes(),
        replica_config=info.replica_config.SerializeToString(),
        deployer_job_id=ray.get_runtime_context().get_job_id(),
        route_prefix=route.route,
        ingress=True,
    )
    return (
        {target.application: [deployment.SerializeToString()]},
        {target.application: messages.ApplicationArgs().SerializeToString()},
    )


def _handle(target: Target = DECISIONS) -> DeploymentHandle[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray import serve
        from ray.serve.exceptions import RayServeException

    try:
        handle = serve.get_deployment_handle(target.deployment, target.application)
    except RayServeException as e:
        raise Unavailable(
            f"nothing is served in this Ray session: {e}", hint="Start it: `raypipe serve`."
        ) from e
    # Between actors, not over the transport of requests: that is for what comes often.
    return handle.options(_by_reference=True)


def _prepare(handle: DeploymentHandle[Any], wanted: dict[str, Any]) -> None:
    answers = _ask(handle, LOAD_S, "prepare", wanted)
    failed = next((a for a in answers if a is not None), None)
    if failed is not None:
        _ask(handle, SWITCH_S, "forget")
        raise error_of(failed["code"])(failed["detail"], hint=failed["hint"])


def _ask(handle: DeploymentHandle[Any], within_s: float, method: str, *given: Any) -> list[Any]:
    """Every running replica's answer."""
    import ray
    from ray.serve.exceptions import RayServeException

    try:
        answers: list[Any] = handle.broadcast(method, *given).results(timeout_s=within_s)
    except (TimeoutError, RayServeException, ray.exceptions.RayError) as e:
        raise Unavailable(
            f"not every replica answered to {method!r}: {type(e).__name__}: {e}".strip(),
            hint="`raypipe status` shows what runs; try again.",
        ) from e
    return answers


def _await_agreement(handle: DeploymentHandle[Any], plain: dict[str, Any], target: Target) -> None:
    """Wait until Serve has reconfigured all replicas, and hear what each serves."""
    settled = _settled(AGREE_S, target)
    others = [found for found in _ask(handle, SWITCH_S, "serves") if found != plain]
    if others or not settled:
        raise StageError(
            f"{plain} is recorded, and "
            + (f"a replica serves {others[0]}" if others else "Serve has not taken it yet"),
            hint="The replicas' logs say why; `raypipe release show` tells, `rollback` undoes.",
        )
