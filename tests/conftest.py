"""What all tests share: Hypothesis profiles, Ray's environment, one Ray session for the run.

The only network that a test may use is the loopback interface.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import prometheus_client  # noqa: F401 - Feast's metrics, imported first, switch it to shared files
import pytest
from hypothesis import HealthCheck, settings

from tests import s3
from tests.contract import kafka_server
from tests.recovery import disk
from tests.recovery.nursery import Nursery

_USER_ENVIRONMENT = dict(os.environ)

# Ray reads these when it is imported or when its first process starts, so they stand here.
os.environ.update(
    RAY_AUTH_MODE="disabled",  # loopback only; the product itself uses tokens
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="serving.proxy:middlewares",
    # Ray ends idle workers after a second by default: on two cores most time would go into
    # starting Python again.
    RAY_idle_worker_killing_time_threshold_ms="60000",
    RAY_num_workers_soft_limit="8",
    # Replicas that leave wait for nobody here: the tests that end a system under load have their
    # own, started as a user starts it.
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="1",
    # Ray Data's newer reader starts dozens of processes for the footers of one Parquet file.
    RAY_DATA_USE_DATASOURCE_V2="0",
)
os.environ.pop("RAY_ADDRESS", None)

# Ray's processes inherit them, so they stand here too. Only the tests' own server knows them.
os.environ.update(s3.CREDENTIALS)

# No deadline: a busy machine is no failure. CI draws the same examples each time, so that a
# change is judged by itself; `dev` draws new ones.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci",
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "dev")
)


@pytest.fixture(scope="session")
def user_environment() -> dict[str, str]:
    """The environment as it was before the tests' own settings.

    For tests that start the product as a process, as a user's shell would.
    """
    return dict(_USER_ENVIRONMENT)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one local Ray session of the run: 2 CPUs, a small object store, no dashboard."""
    import ray

    # Short on purpose: Unix socket paths inside it must stay under 108 bytes.
    directory = tempfile.mkdtemp(prefix="rp-")
    try:
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=400_000_000,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=directory,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """What processes are forked from; they may be given a disk and a clock of their own."""
    env = {} if disk.MISSING else disk.preloaded(tmp_path_factory.mktemp("library"))
    with Nursery(env) as found:
        yield found


@pytest.fixture(scope="session")
def s3_query(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server with the bucket ``lake``: what stands behind ``s3://lake/PREFIX?``."""
    with s3.server(tmp_path_factory.mktemp("s3")) as query:
        yield query


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_server.KafkaServer]:
    """The one Kafka broker of the run; every test writes to topics of its own."""
    if kafka_server.MISSING:
        pytest.skip(kafka_server.MISSING)
    server = kafka_server.KafkaServer(tmp_path_factory.mktemp("kafka"))
    yield server
    server.stop()
