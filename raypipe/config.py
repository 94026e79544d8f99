"""The settings: defaults < raypipe.toml < RAYPIPE_* < flags, as one frozen, picklable value.

Import this inside functions only: pydantic-settings takes 0.2 s that ``--help`` must not pay.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from raypipe.errors import ConfigError, Violation
from raypipe.lake import Place
from raypipe.log.kafka.address import ALLOWED, SCHEME, KafkaAddress

CONFIG_FILE = "raypipe.toml"
ENV_PREFIX = "RAYPIPE_"

RESERVED_ENV = frozenset(
    {
        *("DEBUG", "CONFIG", "API_KEY", "ONLINE_PASSWORD", "ONLINE_PASSWORD_FILE"),
        *("ABORT_AT", "ABORT_ONCE"),
    }
)
"""RAYPIPE_* variables that are no settings."""

# Kubernetes puts such variables into every pod beside a service that is called raypipe.
_SERVICE_LINK = re.compile(r"(^|_)(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)$")

_SECRET = re.compile(r"//\S*@")
"""User and password in a URL: an error must not print them."""


def moment(value: object) -> object:
    """ISO 8601 with an offset, or a TOML date-time, as ms UTC; anything else as it is.

    Raises ValueError for text that is neither a number nor such a time.

    >>> moment("2026-01-31T00:00:00+01:00"), moment("1769814000000")
    (1769814000000, '1769814000000')
    """
    if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time without an offset is ambiguous; write 2026-01-31T00:00:00Z")
        return round(value.timestamp() * 1000)
    return value


def _log_url(url: str) -> str:
    if url.startswith(f"{SCHEME}:"):
        try:
            KafkaAddress.parse(url)
        except ConfigError as e:
            raise ValueError(f"{e.detail}. {e.hint}") from None
        return url
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or not path:
        raise ValueError(
            f"use sqlite:///FOLDER (a fourth slash begins an absolute path) or {ALLOWED}"
        )
    return f"sqlite:///{_absolute(Path(path))}"


def _lake_url(url: str) -> str:
    if not url.strip() or re.match(r"[a-z][a-z0-9+.-]*:(?!//)", url):
        raise ValueError("use a folder or a URL with ://, or leave it out for the home folder")
    try:
        return str(Place.at(url))
    except ConfigError as e:
        raise ValueError(f"{e.detail}. {e.hint}") from None


def _online_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as e:
        raise ValueError(f"no URL: {e}") from None
    if parts.scheme == "sqlite":
        path = url.partition(":///")[2]
        if path and not path.endswith("/"):
            return f"sqlite:///{_absolute(Path(path))}"
    elif parts.scheme in ("redis", "rediss") and parts.hostname:
        if parts.password is not None:
            raise ValueError(
                "put the password into RAYPIPE_ONLINE_PASSWORD or a file that "
                "RAYPIPE_ONLINE_PASSWORD_FILE names, not into the URL"
            )
        of_tls = parts.scheme == "rediss" and parts.query.startswith("ssl_ca_certs=/")
        if re.fullmatch(r"(/\d{0,5})?", parts.path) and (of_tls or not parts.query):
            return url
    raise ValueError(
        "use sqlite:///FILE (a fourth slash begins an absolute path), redis://[USER@]HOST:PORT/DB "
        "or rediss://[USER@]HOST:PORT/DB[?ssl_ca_certs=/FILE]"
    )


def _absolute(path: Path) -> Path:
    # Ray processes and later calls may have another working directory.
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolves '..', not links


class Settings(BaseSettings):
    """All that raypipe can be told from outside. Made by ``load_settings``.

    Calling the class itself reads neither files nor the environment: tests are hermetic, and a
    copy in a Ray process is what the driver had.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
    )

    home: Annotated[Path, AfterValidator(_absolute)] = Field(
        Path(".raypipe"),
        description="folder of everything that raypipe keeps; relative to the settings file "
        "that names it, else to the working directory",
        json_schema_extra={"default_text": ".raypipe"},
    )
    project: str = Field(
        "features.payments:project",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="module:attribute of the declared project",
        json_schema_extra={"allowed": "module:attribute"},
    )
    patterns: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None,
        description="file or folder of YAML files with the event patterns that run; relative to "
        "the settings file that names it; unset: those beside the project",
    )
    tenant: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="tenant that local commands work for",
        json_schema_extra={"allowed": "1 to 64 of a-z, 0-9, `.`, `_`, `-`"},
    )
    currency: str = Field(
        "EUR",
        pattern=r"^[A-Z]{3}$",
        description="the tenant's currency, ISO 4217",
        json_schema_extra={"allowed": "three capitals"},
    )
    log_url: Annotated[str, AfterValidator(_log_url)] = Field(
        default_factory=lambda data: f"sqlite:///{data['home']}/log",
        description="the event log; sqlite is the embedded one; options of Kafka are partitions, "
        "replication, min_insync, timeout_ms, record_bytes and config, a file of the client's "
        "security.*, sasl.* and ssl.* properties",
        json_schema_extra={
            "default_text": "sqlite:///HOME/log",
            "allowed": "`sqlite:///FOLDER`, `kafka://HOST:PORT,.../TOPIC?replication=3`",
        },
    )
    log_compact_minutes: float = Field(
        10,
        ge=0,
        le=10_080,
        description="how often a worker has old rows of the embedded log moved into Parquet, and "
        "events deleted that are too old; 0: never",
    )
    log_retention_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="days after which events leave the embedded log; at least what the project's "
        "longest window or table reaches back; decisions and other records stay; unset: all stay",
    )
    lake_url: Annotated[str, AfterValidator(_lake_url)] = Field(
        default_factory=lambda data: str(data["home"]),
        description="where what all nodes read and write lies: exported events, features, sweeps, "
        "models, reports; behind a question mark an object store's region, endpoint_override and "
        "scheme; its credentials come from the environment or the machine's role",
        json_schema_extra={
            "default_text": "HOME",
            "allowed": "a folder, `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`",
        },
    )
    online_url: Annotated[str, AfterValidator(_online_url)] = Field(
        default_factory=lambda data: f"sqlite:///{data['home']}/feast/online.db",
        description="the online feature store; sqlite is the embedded one; a password of Redis "
        "comes from RAYPIPE_ONLINE_PASSWORD or the file that RAYPIPE_ONLINE_PASSWORD_FILE names",
        json_schema_extra={
            "default_text": "sqlite:///HOME/feast/online.db",
            "allowed": "`sqlite:///FILE`, `redis://[USER@]HOST:PORT/DB`, `rediss://...`",
        },
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that keep window state, each a share of the keys and a partition of "
        "the log; a log belongs to the number that it was begun with",
    )
    seed: int = Field(7, ge=0, lt=2**31, description="seed of simulation, sampling and training")

    http_host: str = Field(
        "127.0.0.1", min_length=1, description="address that the HTTP interface listens on"
    )
    http_port: int = Field(8000, ge=1, le=65_535, description="port of the HTTP interface")
    body_limit_bytes: int = Field(
        65_536, ge=1_024, le=64 * 2**20, description="largest body of a decision request"
    )
    batch_body_bytes: int = Field(
        4 * 2**20,
        ge=1_024,
        le=64 * 2**20,
        description="largest body of a batch of decision requests, unpacked",
    )
    batch_rows: int = Field(
        1_000, ge=1, le=100_000, description="rows of a batch of decision requests at most"
    )
    decision_deadline_ms: int = Field(
        5_000,
        ge=10,
        le=120_000,
        description="how long a decision may take, or a batch as a whole; a client may send less "
        "in X-Deadline-Ms; if the worker does not answer by then, the last written windows decide, "
        "`degraded`",
    )
    worker_patience_ms: int = Field(
        1_000,
        ge=0,
        le=120_000,
        description="how long a decision waits at most for a worker that can't be reached, as "
        "while it starts again, before the last written windows decide, `degraded`",
    )
    fallback_reserve_ms: int = Field(
        200,
        ge=1,
        le=60_000,
        description="how much of a decision's time is kept at least for deciding without the "
        "worker; more where that was measured to take longer, and half of the time at most",
    )
    spill_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=lambda data: data["home"] / "spill",
        description="folder on each node's own disk for decisions that were made while the worker "
        "was away, until the log has them",
        json_schema_extra={"default_text": "HOME/spill"},
    )
    spill_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="size of such a file at which no more decisions are made without the worker; "
        "they are answered with 503",
    )
    review_minutes: int = Field(
        1_440,
        ge=1,
        le=129_600,
        description="how soon after a decision a person should have looked at it where one must",
    )
    ingest_port: int = Field(
        default_factory=lambda data: data["http_port"] + 1,
        ge=1,
        le=65_535,
        description="port of the server that takes bulk events",
        json_schema_extra={"default_text": "http_port + 1"},
    )
    ingest_body_bytes: int = Field(
        64 * 2**20,
        ge=1_024,
        le=64 * 2**20,
        description="largest body of a bulk request, unpacked",
    )
    ingest_waiting_bytes: int = Field(
        256 * 2**20,
        ge=1_024,
        description="bytes of bulk bodies in work before the next is answered with 429",
    )
    snapshot_seconds: float = Field(
        60,
        gt=0,
        description="how often a worker begins a snapshot of its state; what came after the last "
        "one is replayed when it starts again",
    )
    flush_rows_per_second: int = Field(
        5_000,
        ge=0,
        description="keys whose windows changed that are written to the online store at most; "
        "0: none, only `raypipe features` writes there",
    )
    dedup_seconds: int = Field(
        600,
        ge=1,
        le=86_400,
        description="how long the ids of bulk events are remembered: one that comes again by then "
        "is a duplicate",
    )
    dedup_ids: int = Field(
        2**24,
        ge=1_024,
        le=2**30,
        description="ids of bulk events remembered at most, at 24 bytes each; under more load the "
        "memory is shorter than dedup_seconds",
    )
    quarantine_limit_rows: int = Field(
        1_000_000,
        ge=0,
        description="refused rows kept for each tenant; beyond it they are refused and counted, "
        "and not kept",
    )
    reasons_table_bytes: int = Field(
        64 * 2**20,
        ge=0,
        le=2**32,
        description="largest table of a model's contributions; where it would be larger, the "
        "library that trained the model finds reasons, which is slower; 0: always",
    )
    min_replicas: int = Field(1, ge=1, le=10_000, description="serving replicas at rest")
    max_replicas: int = Field(2, ge=1, le=10_000, description="serving replicas under load")
    target_ongoing_requests: float = Field(
        4, gt=0, description="requests in flight per replica that autoscaling aims at"
    )
    max_ongoing_requests: int = Field(
        100, ge=1, description="decisions in work per replica before they queue"
    )
    max_queued_requests: int = Field(
        200,
        ge=0,
        description="queued decisions per replica before one is refused: with 503, or 429 for a "
        "tenant that has its share",
    )
    serving_options: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None,
        description="YAML file instead of serving/config.yaml: the policy's on_error, autoscaling, "
        "shutdown; relative to the settings file that names it; unset: as they come",
    )
    replica_cpus: float = Field(0.2, gt=0, description="CPUs that Ray reserves per replica")

    ray_address: str | None = Field(
        None,
        pattern=r"^(auto|[^\s/:]+:\d+|\[[0-9a-fA-F:]+\]:\d+)$",
        description="host:port of a Ray cluster that this machine belongs to; "
        "unset: a session of its own",
        json_schema_extra={"allowed": "`HOST:PORT` or `auto`"},
    )
    ingress: Literal["haproxy", "proxy"] = Field(
        default_factory=lambda data: "haproxy" if data["ray_address"] is None else "proxy",
        description="what takes HTTP requests: haproxy, which comes with Ray, or Ray Serve's own "
        "proxy, which takes ten times the CPU; on a cluster proxy alone",
        json_schema_extra={"default_text": "haproxy; with ray_address proxy"},
    )
    tls_dir: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None,
        description="folder with ca.crt, node.crt and node.key, by which the nodes of a cluster "
        "know each other; unset: a worker answers on its own node only",
    )
    worker_port: int = Field(
        8465,
        ge=1,
        le=65_535,
        description="port at which a worker answers other nodes, with tls_dir; the worker of "
        "partition p takes worker_port + p",
    )
    ray_auth: Literal["token", "disabled"] = Field(
        "token", description="Ray's authentication; RAY_AUTH_MODE in the environment wins"
    )
    ray_num_cpus: int | None = Field(
        None, ge=1, description="CPUs of the local Ray session; unset: all"
    )
    object_store_bytes: int | None = Field(
        None, ge=78_643_200, description="shared memory of the local Ray session; unset: Ray's 30 %"
    )
    dashboard: bool = Field(False, description="start Ray's dashboard, on loopback only")
    features_blocks: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="key ranges of the batch features; unset: as they are, at first 2 x CPUs",
    )

    trials: int = Field(8, ge=1, le=10_000, description="models tried in a sweep")
    max_false_positive_rate: float = Field(
        0.005, gt=0, lt=1, description="operating point: false positives allowed on validation"
    )
    min_precision: float = Field(
        0.6, ge=0, lt=1, description="operating point: flags that must be right on validation"
    )
    label_as_of: Annotated[int | None, BeforeValidator(moment)] = Field(
        None,
        description="train on what was known then; unset: at the newest event",
        json_schema_extra={"allowed": "ms UTC, or ISO 8601 with an offset"},
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: object, info: ValidationInfo) -> object:
        # Python takes true for 1; whoever writes `trials = true` means something else.
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError("a number or a text is expected")
        return value

    @model_validator(mode="after")
    def _replicas(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is over max_replicas {self.max_replicas}"
            )
        return self

    @model_validator(mode="after")
    def _ingress_of_a_session(self) -> Self:
        if self.ingress == "haproxy" and self.ray_address is not None:
            raise ValueError(
                "ingress haproxy with a ray_address: HAProxy reaches replicas of other nodes in "
                "clear text only; leave ingress out, or set it to proxy"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: ``load_settings`` reads the other sources, once."""
        return (init_settings,)

    @property
    def log_directory(self) -> Path:
        """Folder of the embedded event log; raises ConfigError when the log is none."""
        if not self.log_url.startswith("sqlite:"):
            raise ConfigError(
                f"log_url is {self.log_url}, and this needs a log in a folder of this machine",
                hint="Use sqlite:///FOLDER for it.",
            )
        return Path(self.log_url.partition(":///")[2])

    @property
    def log_place(self) -> str:
        """The event log as people are told of it: a folder, or a topic without its options."""
        return self.log_url.partition(":///")[2] or self.log_url.partition("?")[0]

    @property
    def log_cache(self) -> Path:
        """Folder for what this machine keeps of a distributed log and can make again."""
        return self.home / "log-index"

    @property
    def lake(self) -> Place:
        """The place that ``lake_url`` names."""
        return Place.at(self.lake_url)

    @property
    def embedded_online(self) -> bool:
        """Whether the online store is a file, which one node alone has."""
        return self.online_url.startswith("sqlite:")

    @property
    def http_url(self) -> str:
        """Where a client on this machine reaches the HTTP interface."""
        return self._url(self.http_port)

    @property
    def ingest_url(self) -> str:
        """Where a client on this machine sends bulk events."""
        return self._url(self.ingest_port)

    def _url(self, port: int) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.http_host, self.http_host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def load_settings(
    flags: Mapping[str, object] | None = None, config: Path | None = None
) -> Settings:
    """Read every source. A flag of None was not given.

    Raises ConfigError naming each unknown or wrong setting and where it came from.
    """
    return _build(_given(flags or {}, config))


def origins(
    flags: Mapping[str, object] | None = None, config: Path | None = None
) -> dict[str, tuple[object, str]]:
    """Each setting's value and where it came from: default, a file, RAYPIPE_X or flag."""
    given = _given(flags or {}, config)
    settings = _build(given)
    return {
        name: (getattr(settings, name), given[name][1] if name in given else "default")
        for name in Settings.model_fields
    }


def _build(given: Mapping[str, tuple[object, str]]) -> Settings:
    try:
        return Settings(**{name: value for name, (value, _) in given.items()})  # type: ignore[arg-type]
    except ValidationError as e:
        raise ConfigError(
            "these values can't work",
            violations=tuple(
                _violation(str(x["loc"][0]) if x["loc"] else "", x["msg"], given)
                for x in e.errors(include_url=False)
                if x["type"] != "default_factory_not_called"  # its cause is listed too
            ),
            hint="docs/reference/settings.md lists every setting.",
        ) from None


def _violation(name: str, message: str, given: Mapping[str, tuple[object, str]]) -> Violation:
    reason = message.removeprefix("Value error, ")
    if name in given:
        value, origin = given[name]
        shown = _SECRET.sub("//***@", repr(value))
        reason = f"{shown} from {origin}: {reason}"
    return Violation(f"/{name}" if name else "settings", reason)


def _given(flags: Mapping[str, object], config: Path | None) -> dict[str, tuple[object, str]]:
    """What is not left at its default: name -> (raw value, origin). Later sources win."""
    given: dict[str, tuple[object, str]] = {}
    file = _config_file(config)
    if file is not None:
        values = _read(file)
        _refuse_unknown(values, str(file), str)
        if isinstance(values.get("home"), str):
            values["home"] = file.parent / Path(str(values["home"])).expanduser()
        for name in ("serving_options", "patterns", "spill_dir"):
            path = values.get(name)
            if isinstance(path, str) and path:
                values[name] = file.parent / Path(path).expanduser()
        lake = values.get("lake_url")
        if isinstance(lake, str) and lake and "://" not in lake:
            values["lake_url"] = str(file.parent / Path(lake).expanduser())
        given |= {name: (value, str(file)) for name, value in values.items()}
    _refuse_unknown(_environment_names(), "the environment", _variable)
    env = EnvSettingsSource(Settings)()
    given |= {name: (value, _variable(name)) for name, value in env.items()}
    set_flags = {name: value for name, value in flags.items() if value is not None}
    _refuse_unknown(set_flags, "the command line", str)
    return given | {name: (value, "flag") for name, value in set_flags.items()}


def _config_file(config: Path | None) -> Path | None:
    named = config or (Path(p) if (p := os.environ.get(f"{ENV_PREFIX}CONFIG")) else None)
    if named is None:
        found = Path.cwd() / CONFIG_FILE
        return found if found.is_file() else None
    if not named.is_file():
        raise ConfigError(
            f"there is no settings file {named}", hint="Check --config or RAYPIPE_CONFIG."
        )
    return named.absolute()


def _read(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"{file} is no TOML: {e}", hint='Write lines like: currency = "EUR"'
        ) from e


def _environment_names() -> dict[str, object]:
    """Names of the RAYPIPE_* variables that mean a setting, as settings are written."""
    names: dict[str, object] = {}
    for variable, value in os.environ.items():
        name = variable.upper().removeprefix(ENV_PREFIX)
        if not variable.upper().startswith(ENV_PREFIX) or name in RESERVED_ENV:
            continue
        if not (_SERVICE_LINK.search(name) or value.startswith(("tcp://", "udp://"))):
            names[name.lower()] = value
    return names


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _refuse_unknown(values: Mapping[str, Any], origin: str, spell: Callable[[str], str]) -> None:
    known = list(Settings.model_fields)
    unknown = [name for name in values if name not in known]
    if not unknown:
        return
    violations = []
    for name in unknown:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        reason = f"did you mean {spell(near[0])}?" if near else "no setting has such a name"
        violations.append(Violation(f"/{name}", reason))
    raise ConfigError(
        f"unknown in {origin}: {', '.join(spell(name) for name in unknown)}",
        violations=tuple(violations),
        hint="Settings are flat names; docs/reference/settings.md lists every setting.",
    )
