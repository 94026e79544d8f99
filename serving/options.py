"""What Ray Serve is told: config.yaml as typed data, joined with the settings."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from raypipe.errors import ConfigError

if TYPE_CHECKING:
    from raypipe.config import Settings

Positive = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]


class PolicyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the default policy takes from here; its thresholds come from the model's manifest."""

    on_error: Literal["review", "block"]


class Autoscaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast replicas come and go, in seconds, and the p95 that they aim at, if any."""

    upscale_delay_s: Seconds
    downscale_delay_s: Seconds
    metrics_interval_s: Positive
    look_back_period_s: Positive
    p95_ms: Positive | None = None


class Fairness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of tenants when a replica is full; 1 where none is named."""

    weights: dict[str, Positive] = {}


class Recommend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How lists of recommendations are made.

    ``selection`` is a file of rules, diversity and exploration, by default the shop's own;
    ``sponsored`` are ids of items, the first choice first.
    """

    selection: str | None = None
    sponsored: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of config.yaml; an unknown or impossible value is refused by name."""

    policy: PolicyOptions
    autoscaling: Autoscaling
    graceful_shutdown_timeout_s: Seconds
    fairness: Fairness = Fairness()
    recommend: Recommend = Recommend()
    core_hour_price: Seconds = 0.0


def load_options(path: Path | None = None) -> Options:
    """The options in ``path``, by default those beside this file; raises ConfigError."""
    source = path or files("serving") / "config.yaml"
    try:
        return msgspec.convert(yaml.safe_load(source.read_text("utf-8")), Options)
    except OSError as e:
        raise ConfigError(f"the serving options {source} can't be read: {e.strerror}") from e
    except (yaml.YAMLError, msgspec.ValidationError) as e:
        raise ConfigError(
            f"the serving options {source} are wrong: {e}",
            hint="serving/config.yaml as it came is a complete, commented example.",
        ) from e


REFUSALS = 64
"""Requests over a replica's places that Ray lets in, so that it is we who refuse some of them."""


def deployment_options(settings: Settings, options: Options) -> dict[str, Any]:
    """Arguments of ``ray.serve.deployment``."""
    scaling = msgspec.structs.asdict(options.autoscaling)
    target_ms = scaling.pop("p95_ms")
    if target_ms is not None:
        scaling["policy"] = {
            "policy_function": "serving.autoscaling:P95Latency",
            "policy_kwargs": {"target_ms": target_ms},
        }
    places = settings.max_ongoing_requests + settings.max_queued_requests
    return {
        "autoscaling_config": {
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
            **scaling,
        },
        "ray_actor_options": {"num_cpus": settings.replica_cpus},
        # Those that wait do so in the replica, where tenants are told apart: serving/fairness.py.
        "max_ongoing_requests": places + REFUSALS,
        "max_queued_requests": settings.max_queued_requests,
        "graceful_shutdown_timeout_s": options.graceful_shutdown_timeout_s,
        # Serve notices a dead replica when it looks: by default every 10 s, and with one replica
        # nothing is decided for so long.
        "health_check_period_s": 1.0,
        # On the deployment itself: set elsewhere it doesn't reach the replicas, and the access log
        # flushes inside their event loop. The level spares them the record that is then dropped.
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
