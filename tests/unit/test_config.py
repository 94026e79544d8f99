from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raypipe.config import Settings, load_settings, origins
from raypipe.errors import ConfigError
from raypipe.lake import Place


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("RAYPIPE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_a_later_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("trials", "seed", "http_port", "max_replicas")
    Path("raypipe.toml").write_text("trials = 2\nseed = 2\nhttp_port = 2222\n")
    monkeypatch.setenv("RAYPIPE_SEED", "3")
    monkeypatch.setenv("RAYPIPE_HTTP_PORT", "3333")
    found = origins({"http_port": 4444, "trials": None})
    assert {name: found[name] for name in names} == {
        "trials": (2, str(tmp_path / "raypipe.toml")),
        "seed": (3, "RAYPIPE_SEED"),
        "http_port": (4444, "flag"),
        "max_replicas": (2, "default"),
    }


def test_origins_cover_every_setting_and_agree_with_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYPIPE_TENANT", "acme")
    settings = load_settings({"home": "elsewhere"})
    assert {n: v for n, (v, _) in origins({"home": "elsewhere"}).items()} == dict(settings)
    assert settings.tenant == "acme"


def test_settings_are_frozen_hashable_and_survive_pickling() -> None:
    settings = load_settings({"trials": 3})
    with pytest.raises(ValueError, match="frozen"):
        settings.trials = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(pickle.loads(pickle.dumps(settings))) == hash(settings)


def test_a_copy_in_another_process_does_not_read_that_process_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = pickle.dumps(load_settings({"trials": 3}))
    monkeypatch.setenv("RAYPIPE_TRIALS", "99")
    assert pickle.loads(data).trials == 3
    assert Settings().trials == 8


@pytest.mark.parametrize(
    ("flags", "nearest"),
    [
        ({"http_prt": 1}, "http_port"),
        ({"http-port": 1}, "http_port"),
        ({"max_replica": 1}, "max_replicas"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest_name(
    flags: dict[str, object], nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {nearest}"):
        load_settings(flags)


def test_an_unknown_name_in_the_file_is_refused_with_file_and_nearest_name() -> None:
    Path("raypipe.toml").write_text('curency = "USD"\n[serving]\nport = 1\n')
    with pytest.raises(ConfigError) as e:
        load_settings()
    assert "raypipe.toml" in e.value.detail
    assert "did you mean currency" in str(e.value)
    assert [v.pointer for v in e.value.violations] == ["/curency", "/serving"]


def test_an_unknown_variable_is_refused_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYPIPE_TENNANT", "acme")
    with pytest.raises(ConfigError, match="did you mean RAYPIPE_TENANT"):
        load_settings()


def test_variables_that_are_no_settings_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RAYPIPE_DEBUG": "1",
        "RAYPIPE_API_KEY": "rp_x",
        "RAYPIPE_ABORT_AT": "log.append",
        # What Kubernetes sets beside services called raypipe and raypipe-head.
        "RAYPIPE_SERVICE_HOST": "10.0.0.1",
        "RAYPIPE_SERVICE_PORT": "80",
        "RAYPIPE_SERVICE_PORT_HTTP": "80",
        "RAYPIPE_PORT": "tcp://10.0.0.1:80",
        "RAYPIPE_PORT_80_TCP_ADDR": "10.0.0.1",
        "RAYPIPE_HEAD_PORT": "tcp://10.0.0.2:6379",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == Settings()


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPIPE_RAY_ADDRESS", "")
    monkeypatch.setenv("RAYPIPE_TRIALS", "")
    assert origins()["ray_address"] == (None, "default")
    assert load_settings().trials == 8


def test_every_wrong_value_is_told_at_once_with_its_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("raypipe.toml").write_text('currency = "euro"\n')
    monkeypatch.setenv("RAYPIPE_HTTP_PORT", "many")
    with pytest.raises(ConfigError) as e:
        load_settings({"trials": 0})
    reasons = {v.pointer: v.reason for v in e.value.violations}
    assert set(reasons) == {"/currency", "/http_port", "/trials"}
    assert "raypipe.toml" in reasons["/currency"]
    assert "'many' from RAYPIPE_HTTP_PORT" in reasons["/http_port"]
    assert "from flag" in reasons["/trials"]


@pytest.mark.parametrize(
    "flags",
    [
        {"http_port": 65_536},
        {"http_port": True},
        {"trials": 1.5},
        {"max_false_positive_rate": float("nan")},
        {"min_replicas": 3, "max_replicas": 2},
        {"project": "features.payments"},
        {"tenant": "Acme"},
        {"tenant": "../x"},
        {"ray_address": "ray://head:10001"},
        {"ray_address": "head"},
        {"ray_auth": "none"},
        {"log_url": "kafka://broker"},
        {"log_url": "sqlite://log"},
        {"online_url": "sqlite://online.db"},
        {"online_url": "sqlite:///folder/"},
        {"online_url": "memcached://host"},
        {"online_url": "redis://"},
        {"online_url": "redis://host:99999/0"},
        {"online_url": "redis://host:port/0"},
        {"online_url": "redis://host/name"},
        {"online_url": "redis://host:6379/0?ssl_ca_certs=/ca.pem"},
        {"online_url": "rediss://host:6379/0?ssl_cert_reqs=none"},
        {"online_url": "redis://user:secret@host:6379/0"},
    ],
    ids=str,
)
def test_a_value_that_cannot_work_is_refused(flags: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        load_settings(flags)


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.example:6379", "[::1]:6379"])
def test_addresses_of_clusters(address: str) -> None:
    assert load_settings({"ray_address": address}).ray_address == address


def test_the_home_of_a_file_is_relative_to_the_file_and_that_of_a_flag_to_the_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc/other.toml"
    file.write_text('home = "data"\n')
    assert load_settings(config=file).home == tmp_path / "etc/data"
    assert load_settings(config=Path("etc/other.toml")).home == tmp_path / "etc/data"
    assert load_settings({"home": Path("data")}, file).home == tmp_path / "data"
    assert load_settings().home == tmp_path / ".raypipe"


def test_the_log_lies_under_home_unless_it_is_named(tmp_path: Path) -> None:
    from raypipe.log.sqlite import SqliteLog

    settings = load_settings({"home": "a b"})
    assert settings.log_directory == tmp_path / "a b/log"
    log = SqliteLog.open(settings.log_url)
    log.close()
    assert log.directory == settings.log_directory
    assert load_settings({"log_url": "sqlite:///elsewhere"}).log_directory == tmp_path / "elsewhere"
    assert load_settings({"log_url": "sqlite:////var/log"}).log_directory == Path("/var/log")


def test_the_online_store_lies_under_home_unless_it_is_named(tmp_path: Path) -> None:
    settings = load_settings({"home": tmp_path / "h"})
    assert settings.online_url == f"sqlite:///{tmp_path}/h/feast/online.db"
    elsewhere = load_settings({"online_url": "sqlite:///other/o.db"}).online_url
    assert elsewhere == f"sqlite:///{tmp_path}/other/o.db"
    for url in (
        "redis://127.0.0.1",
        "redis://user@host:6380/15",
        "redis://[::1]:6379/0",
        "rediss://host:6379/0?ssl_ca_certs=/etc/ca.pem",
    ):
        assert load_settings({"online_url": url}).online_url == url


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as e:
        load_settings({"online_url": "redis://user:secret@host:6379/0"})
    assert "RAYPIPE_ONLINE_PASSWORD" in str(e.value)
    assert "secret" not in str(e.value)


def test_a_named_file_must_exist_and_be_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no settings file .*gone\.toml"):
        load_settings(config=tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("http_port: 80\n")
    monkeypatch.setenv("RAYPIPE_CONFIG", str(tmp_path / "bad.toml"))
    with pytest.raises(ConfigError, match=r"bad\.toml is no TOML"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "ms"),
    [
        ("1970-01-01T01:00:00+01:00", 0),
        ("2026-01-31T00:00:00.250Z", 1_769_817_600_250),
        ("1769817600000", 1_769_817_600_000),
        (1_769_817_600_000, 1_769_817_600_000),
    ],
)
def test_a_moment_is_ms_or_iso_8601(given: object, ms: int) -> None:
    assert load_settings({"label_as_of": given}).label_as_of == ms


def test_a_moment_of_a_toml_file() -> None:
    Path("raypipe.toml").write_text("label_as_of = 1970-01-01T00:00:01Z\n")
    assert load_settings().label_as_of == 1_000


@pytest.mark.parametrize("given", ["2026-01-31T00:00:00", "yesterday"])
def test_a_moment_without_offset_or_sense_is_refused(given: str) -> None:
    with pytest.raises(ConfigError):
        load_settings({"label_as_of": given})


def test_the_lake_is_the_home_folder_unless_it_is_named(tmp_path: Path) -> None:
    assert load_settings({"home": tmp_path / "h"}).lake == Place.at(tmp_path / "h")
    folder = load_settings({"lake_url": "shared/lake"})
    assert folder.lake_url == str(Path.cwd() / "shared" / "lake")
    assert load_settings({"lake_url": (tmp_path / "a b").as_uri()}).lake.local == tmp_path / "a b"
    store = load_settings({"lake_url": "s3://bucket/a/b/?region=eu-west-1"})
    assert store.lake_url == "s3://bucket/a/b?region=eu-west-1"
    assert store.lake == Place("s3://bucket/a/b", "region=eu-west-1")
    assert pickle.loads(pickle.dumps(store)).lake == store.lake
    assert load_settings({"lake_url": "gs://bucket"}).lake.url == "gs://bucket"


def test_a_lake_folder_of_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "raypipe.toml"
    file.parent.mkdir()
    file.write_text('lake_url = "lake"\n')
    assert load_settings(config=file).lake.local == file.parent / "lake"
    file.write_text('lake_url = "s3://bucket/lake"\n')
    assert load_settings(config=file).lake_url == "s3://bucket/lake"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/x", "is no lake"),
        ("s3:bucket/x", "://"),
        (" ", "://"),
        ("s3://b/x", "is no bucket"),
        ("s3://bucket/x?regio=y", "regio"),
        ("s3://AKIA:hush@bucket/x", "credentials"),
        ("s3://AKIA:hu/sh@bucket/x", "credentials"),
    ],
)
def test_a_lake_that_can_not_work_is_refused_and_no_secret_is_told(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as e:
        load_settings({"lake_url": url})
    (violation,) = e.value.violations
    assert violation.pointer == "/lake_url"
    assert reason in violation.reason
    assert "hu" not in str(e.value).replace("http", "")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("shop.example", "http://shop.example:8000"),
    ],
)
def test_the_url_for_a_client_on_this_machine(host: str, url: str) -> None:
    assert load_settings({"http_host": host}).http_url == url


def test_every_setting_says_what_it_is_for() -> None:
    assert not [n for n, f in Settings.model_fields.items() if not f.description]
