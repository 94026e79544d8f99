"""Replicas by latency: what the policy wants, and that Ray Serve takes it as its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from raypipe.config import Settings
from raypipe.errors import ConfigError
from serving.app import unwarned
from serving.autoscaling import P95, Latencies, P95Latency, wanted
from serving.options import deployment_options, load_options


def context(requests: float, p95: dict[str, float], running: int = 2) -> Any:
    return SimpleNamespace(
        aggregated_metrics={P95: p95} if p95 else {},
        total_num_requests=requests,
        current_num_replicas=running,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 4.0),
    )


def test_the_slowest_replica_decides() -> None:
    policy = P95Latency(50)
    assert policy(context(0, {"a": 10, "b": 75})) == (3.0, {})
    assert policy(context(0, {"a": 10, "b": 500})) == (4.0, {})
    assert policy(context(40, {"a": 10, "b": 75}))[0] == 10
    assert policy(context(0, {"a": 30, "b": 10}))[0] == 2
    assert policy(context(0, {"a": 20, "b": 10}))[0] == 1
    assert policy(context(6, {}))[0] == 1.5


def test_no_step_between_growing_and_shrinking_swings() -> None:
    running = 4.0
    for _ in range(20):
        p95 = 90.0 * 2 / running  # latency as if the work were shared out
        running = float(round(wanted(int(running), 1.0, p95, 60.0)))
    assert running == 4


def test_latencies_are_of_the_last_seconds_only() -> None:
    now = [0.0]
    latencies = Latencies(2.0, lambda: now[0])
    assert latencies.p95_ms == 0
    for _ in range(100):
        latencies.add(0.5)
    now[0] = 1.9
    for _ in range(100):
        latencies.add(0.1)
    assert latencies.p95_ms == 500
    now[0] = 2.1
    assert latencies.p95_ms == pytest.approx(100)
    now[0] = 9
    assert latencies.p95_ms == 0


def test_an_option_makes_it_the_policy_of_the_deployment() -> None:
    with unwarned():
        from ray.serve.config import AutoscalingConfig

    options = load_options()
    assert "policy" not in deployment_options(Settings(), options)["autoscaling_config"]
    scaling = msgspec.structs.replace(options.autoscaling, p95_ms=40.0)
    made = deployment_options(Settings(), msgspec.structs.replace(options, autoscaling=scaling))
    with unwarned():
        policy = AutoscalingConfig(**made["autoscaling_config"]).policy
    assert policy.policy_kwargs == {"target_ms": 40.0}
    assert policy.get_policy() is P95Latency
    with pytest.raises(ConfigError):
        P95Latency(0)
