from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner, Result

import raypipe
from raypipe.cli import _docs, _output, _stage
from raypipe.cli._app import app
from raypipe.cli._guard import Guarded, unwrap
from raypipe.cli._options import Json
from raypipe.errors import Conflict, InputError, RaypipeError, UsageError, Violation
from raypipe.runtime import running

ROOT = Path(raypipe.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RAYPIPE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


# Errors -----------------------------------------------------------------------------------------


def guarded(error: BaseException) -> typer.Typer:
    """A command line of one verb that ends so."""
    failing = typer.Typer(cls=Guarded, rich_markup_mode=None, pretty_exceptions_enable=False)

    @failing.callback()
    def root() -> None:
        """Make it a group."""

    @failing.command()
    def verb(json: Json = False) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a", hint="b"), 2),
        (InputError("a", hint="b", violations=(Violation("/amount", "missing"),)), 1),
        (ValueError("a"), 1),
        (KeyboardInterrupt(), 3),
    ],
)
def test_errors_end_with_their_exit_code_and_no_traceback(error: BaseException, code: int) -> None:
    result = CliRunner().invoke(guarded(error), ["verb"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_an_error_shows_headline_detail_pointers_and_hint() -> None:
    error = InputError("two fields", hint="Look.", violations=(Violation("/amount", "missing"),))
    result = CliRunner().invoke(guarded(error), ["verb"])
    assert result.stderr == "Invalid event: two fields\n  /amount: missing\n  Look.\n"


def test_with_json_an_error_is_an_object_on_stdout_too() -> None:
    error = InputError("two fields", hint="Look.", violations=(Violation("/amount", "missing"),))
    result = CliRunner().invoke(guarded(error), ["verb", "--json"])
    assert json.loads(result.stdout) == {
        "error": {
            "code": "invalid_event",
            "headline": "Invalid event",
            "detail": "two fields",
            "hint": "Look.",
            "violations": [{"pointer": "/amount", "reason": "missing", "code": "invalid"}],
        }
    }
    assert "two fields" in result.stderr


def test_what_a_library_prints_is_no_result() -> None:
    chatty = typer.Typer(cls=Guarded, rich_markup_mode=None, pretty_exceptions_enable=False)

    @chatty.callback()
    def root() -> None:
        """Make it a group."""

    @chatty.command()
    def verb(json: Json = False) -> None:
        print("(raylet) a warning")
        _output.write({"a": 1}, as_json=json)

    result = CliRunner().invoke(chatty, ["verb", "--json"])
    assert (result.stdout, result.stderr) == ('{"a": 1}\n', "(raylet) a warning\n")


def test_an_unexpected_error_says_what_to_report_and_where() -> None:
    result = CliRunner().invoke(guarded(KeyError("x")), ["verb", "--json"])
    assert "Unexpected error: KeyError: 'x'" in result.stderr
    assert "report" in result.stderr
    assert "RAYPIPE_DEBUG=1" in result.stderr
    assert json.loads(result.stdout)["error"]["code"] == "internal"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPIPE_DEBUG", "1")
    result = CliRunner().invoke(guarded(UsageError("a")), ["verb"])
    assert "Traceback" in result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize("cause", [Conflict("taken", hint="Wait."), KeyError("x")])
def test_what_failed_inside_ray_is_shown_as_if_it_had_failed_here(cause: Exception) -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    inner = exceptions.RayTaskError("f", "remote traceback", cause, "p", 1, "127.0.0.1")
    outer = exceptions.RayTaskError(
        "g", "remote traceback", inner.as_instanceof_cause(), "p", 1, "127.0.0.1"
    )
    assert unwrap(outer) is cause
    assert unwrap(outer.as_instanceof_cause()) is cause
    result = CliRunner().invoke(guarded(outer.as_instanceof_cause()), ["verb"])
    assert "remote traceback" not in result.stderr
    if isinstance(cause, RaypipeError):
        assert result.stderr == "Conflict: taken\n  Wait.\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["up", "--nonsense"], ["load"], ["up", "--events", "many"], ["train", "x"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_every_verb_has_help() -> None:
    for verb in get_command(app).commands:  # type: ignore[attr-defined]
        result = call(verb, "--json", "--help")
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: ")
        assert f" {verb} " in result.stdout.splitlines()[0]


def test_the_version_is_told() -> None:
    assert call("--version").stdout == f"raypipe {raypipe.__version__}\n"


def test_a_setting_can_be_given_to_any_verb_and_is_checked(tmp_path: Path) -> None:
    result = call("status", "--json", "--set", "http_prt=1")
    assert result.exit_code == 2
    assert "did you mean http_port?" in result.stderr
    assert json.loads(result.stdout)["error"]["code"] == "config"
    assert call("status", "--set", "trials").exit_code == 2
    shown = call("doctor", "--json", "--set", "trials=3", "--set", "ray_address=")
    settings = json.loads(shown.stdout)["settings"]
    assert settings["trials"] == {"value": 3, "origin": "flag"}
    assert settings["ray_address"]["origin"] == "default"


# Stages -----------------------------------------------------------------------------------------


def test_a_stage_is_called_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_stage.py").write_text("def add(a, *, b):\n    return a + b\n")
    (tmp_path / "a_broken_stage.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _stage.call("a_stage:add", 1, b=2) == 3
    with pytest.raises(UsageError, match="no 'subtract'"):
        _stage.call("a_stage:subtract")
    with pytest.raises(UsageError, match=r"no 'no_stage\.at\.all'"):
        _stage.call("no_stage.at.all:main")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        _stage.call("a_broken_stage:main")


# Output -----------------------------------------------------------------------------------------


def test_json_is_valid_whatever_is_in_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    result = {
        "path": Path("/a"),
        "nan": float("nan"),
        "numpy": [np.float32(0.5), np.int64(2), np.float64("inf"), np.bool_(True)],
        "nested": {"a": (1, {"b": None})},
        "text": "ü",
    }
    _output.write(result, as_json=True, text="not this")
    assert json.loads(capsys.readouterr().out) == {
        "path": "/a",
        "nan": None,
        "numpy": [0.5, 2, None, True],
        "nested": {"a": [1, {"b": None}]},
        "text": "ü",
    }


def test_a_result_reads_as_aligned_lines() -> None:
    text = _output.lines(
        {"events": 200_000, "rate": 0.123456, "model": {"name": "fraud", "ok": True}, "none": None}
    )
    assert text.splitlines() == [
        "events  200,000",
        "rate    0.1235",
        "model",
        "  name  fraud",
        "  ok    yes",
        "none    -",
    ]


# Verbs that need no stage -----------------------------------------------------------------------


def test_status_and_down_of_nothing() -> None:
    assert call("status").exit_code == 1
    assert json.loads(call("status", "--json").stdout)["running"] is False
    assert call("down").exit_code == 0
    assert json.loads(call("down", "--json").stdout)["stopped"] is False


def test_doctor_shows_each_setting_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raypipe.config import Settings

    (tmp_path / "raypipe.toml").write_text("http_port = 18017\n")
    monkeypatch.setenv("RAYPIPE_TRIALS", "3")
    found = json.loads(call("doctor", "--json").stdout)
    assert list(found["settings"]) == list(Settings.model_fields)
    assert found["settings"]["http_port"] == {
        "value": 18017,
        "origin": str(tmp_path / "raypipe.toml"),
    }
    assert found["settings"]["trials"] == {"value": 3, "origin": "RAYPIPE_TRIALS"}
    text = call("doctor").stdout
    assert re.search(r"^trials +3 +RAYPIPE_TRIALS$", text, re.MULTILINE)
    assert re.search(r"^ok +python", text, re.MULTILINE)


def _checks(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = call("doctor", "--json", *arguments)
    found = json.loads(result.stdout)
    assert found["ok"] == (result.exit_code == 0)
    assert all(c["cure"] for c in found["checks"] if c["state"] != "ok")
    return result.exit_code, {c["name"]: c for c in found["checks"]}


def test_doctor_finds_a_taken_port() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, checks = _checks("--set", f"http_port={taken.getsockname()[1]}")
    assert (code, checks["port"]["state"]) == (1, "fail")


def test_doctor_finds_a_key_that_others_can_read(tmp_path: Path) -> None:
    key = tmp_path / "api-key"
    key.write_text("rp_x")
    key.chmod(0o644)
    code, checks = _checks("--home", str(tmp_path))
    assert (code, checks["api key"]["state"]) == (1, "fail")
    assert f"chmod 600 {key}" in checks["api key"]["cure"]
    key.chmod(0o600)
    assert _checks("--home", str(tmp_path))[1]["api key"]["state"] == "ok"


def test_doctor_finds_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, checks = _checks("--home", str(tmp_path / "file/home"))
    assert (code, checks["home"]["state"]) == (1, "fail")


def test_doctor_finds_a_lake_that_is_away(tmp_path: Path) -> None:
    assert _checks("--home", str(tmp_path))[1]["lake"]["state"] == "ok"
    url = "s3://bucket/x?region=r&scheme=http&endpoint_override=127.0.0.1:1"
    code, checks = _checks("--set", f"lake_url={url}")
    assert (code, checks["lake"]["state"]) == (1, "fail")
    assert "s3://bucket/x" in checks["lake"]["found"]


def test_doctor_finds_a_project_that_cannot_be_imported() -> None:
    code, checks = _checks("--set", "project=nowhere.at_all:project")
    assert (code, checks["project"]["state"]) == (1, "fail")


def test_doctor_tells_what_runs_and_what_died(tmp_path: Path) -> None:
    with running.claim(tmp_path, "up") as claim:
        record = (tmp_path / running.RUN_FILE).read_text()
        assert str(claim.running.pid) in _checks("--home", str(tmp_path))[1]["running"]["found"]
    changed = json.loads(record) | {"born_s": 1.0}
    (tmp_path / running.RUN_FILE).write_text(json.dumps(changed))
    assert _checks("--home", str(tmp_path))[1]["running"]["state"] == "warn"


def test_features_can_be_shown_in_one_way_at_a_time(tmp_path: Path) -> None:
    assert call("features", "--list", "--html", str(tmp_path / "x.html")).exit_code == 2
    assert call("features", "--show", "nothing_at_all").exit_code == 1
    shown = json.loads(call("features", "--show", "amount_to_habit", "--json").stdout)
    assert ["habit", "amount_to_habit"] in shown["edges"]
    assert ["transaction.amount", "customer_amount_mean_90d"] in shown["edges"]
    text = call("features", "--show", "amount_to_habit").stdout
    assert "      customer_count_90d_before_14d\n        transaction.customer_id" in text
    page = tmp_path / "folder" / "features.html"
    assert call("features", "--html", str(page)).exit_code == 0
    assert "amount_to_habit" in page.read_text()


def test_a_simulated_world_can_be_loaded_and_the_log_reports_it(tmp_path: Path) -> None:
    made = call("simulate", "--events", "2000", "--days", "30", "--json", "-q")
    assert made.exit_code == 0, made.stderr
    world = json.loads(made.stdout)
    assert 1_400 < world["transactions"] < 2_600
    assert made.stderr == ""
    files = [
        str(tmp_path / ".raypipe/world" / f"{t}.parquet") for t in ("transactions", "chargebacks")
    ]
    mapping = str(tmp_path / ".raypipe/world/load.toml")
    loaded = call("load", *files, "--map", mapping, "--json")
    assert loaded.exit_code == 0, loaded.stderr
    report = json.loads(loaded.stdout)
    accepted = report["accepted"]
    assert accepted["transaction"] == world["transactions"]
    assert accepted.get("chargeback", 0) == world["chargebacks"]
    assert "load       started\n" in loaded.stderr
    again = json.loads(call("load", *files, "--map", mapping, "--json").stdout)
    assert (again["already_loaded"], again["end"]) == (True, report["end"])
    assert call("quarantine", "list").stdout == "Nothing of tenant default was refused.\n"


def _two_payments(tmp_path: Path) -> None:
    """t.csv with a good row and one of a negative amount, and its mapping t.toml."""
    (tmp_path / "t.csv").write_text(
        "id,at,card,cust,shop,cents\na,1767225600000,c1,k1,s1,100\nb,1767225601000,c1,k1,s1,-5\n"
    )
    (tmp_path / "t.toml").write_text(
        '[[stream]]\nevent = "transaction"\ntime_unit = "ms"\n[stream.columns]\n'
        'event_id = "id"\nevent_time = "at"\ncard_id = "card"\ncustomer_id = "cust"\n'
        'merchant_id = "shop"\namount = { from = "cents", unit = "minor" }\n'
        'currency = { const = "EUR" }\n'
    )


def test_refused_rows_make_a_load_partial_and_can_be_listed(tmp_path: Path) -> None:
    _two_payments(tmp_path)
    loaded = call("load", "t.csv", "--map", "t.toml", "--json")
    assert loaded.exit_code == 3, loaded.stderr
    report = json.loads(loaded.stdout)
    assert (report["accepted"], report["rejected"]) == ({"transaction": 1}, 1)
    listed = json.loads(call("quarantine", "list", "--json").stdout)
    assert sum(listed["counts"]["transaction"].values()) == 1
    assert "/amount" in listed["rows"][0]["reasons"][0]
    assert "-5" in call("quarantine", "list").stdout
    assert "Nothing of tenant other" in call("quarantine", "list", "--tenant", "other").stdout


def test_nothing_is_loaded_into_a_home_that_another_process_owns(tmp_path: Path) -> None:
    _two_payments(tmp_path)
    with running.claim(tmp_path / ".raypipe", "up"):
        result = call("load", "t.csv", "--map", "t.toml")
    assert result.exit_code == 1
    assert f"`raypipe up` (pid {os.getpid()}) runs on" in result.stderr
    assert not (tmp_path / ".raypipe/log").exists()


# A long-lived process ---------------------------------------------------------------------------

STAGE = """
    from pathlib import Path

    def run(settings, progress, *, announce, **options):
        with progress.stage("demo", unit="things") as stage:
            stage.advance(3)
        if (Path.cwd() / "hang").exists():
            progress.note("hanging")
            import threading
            threading.Event().wait()
        if "serve" not in FAILED:
            announce("http://127.0.0.1:1", "127.0.0.1:2")
        return {"options": options, "trials": settings.trials}, FAILED
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Any]:
    """Starts `raypipe up` on a stage that does nothing; the working directory comes first."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, failed: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        package = tmp_path / "serving"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        text = textwrap.dedent(STAGE).replace("FAILED", repr(list(failed)))
        (package / "up.py").write_text(text)
        process = subprocess.Popen(
            [sys.executable, "-m", "raypipe", "up", "--home", "home", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_up_once_ends_by_itself_and_hands_every_flag_on(stage: Any) -> None:
    flags = ["--events", "5000", "--days", "30", "--requests", "7", "--fresh", "--trials", "2"]
    out, err = stage("--once", "--json", *flags).communicate(timeout=60)
    assert json.loads(out) == {
        "options": {"events": 5000, "days": 30, "requests": 7, "fresh": True},
        "trials": 2,
    }
    assert err.splitlines()[0] == "demo       started"


def test_up_with_a_failed_stage_is_partial(stage: Any) -> None:
    process = stage("--once", failed=("train",))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "failed: train" in err


def test_up_that_could_not_serve_ends_by_itself(stage: Any) -> None:
    process = stage(failed=("serve",))
    process.communicate(timeout=60)
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_keeps_running_until_a_signal_and_then_ends_with_0(
    stage: Any, tmp_path: Path, number: signal.Signals
) -> None:
    process = stage("--json")
    assert json.loads(process.stdout.readline())["trials"] == 8
    found = running.find(tmp_path / "home")
    assert found is not None
    assert (found.pid, found.state, found.verb) == (process.pid, "serving", "up")
    second = call("up", "--home", "home")
    assert second.exit_code == 1
    assert f"pid {process.pid}" in second.stderr
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert running.read(tmp_path / "home") is None


def test_status_and_down_reach_a_running_process(stage: Any, tmp_path: Path) -> None:
    process = stage()
    process.stdout.readline()
    status = call("status", "--json", "--home", "home")
    assert status.exit_code == 3  # nothing answers at the announced address
    shown = json.loads(status.stdout)
    assert (shown["pid"], shown["ready"], shown["http_url"]) == (
        process.pid,
        False,
        "http://127.0.0.1:1",
    )
    down = call("down", "--json", "--home", "home", "--timeout", "60")
    assert down.exit_code == 0
    assert json.loads(down.stdout)["stopped"] is True
    assert process.wait(60) == 0
    assert call("status", "--home", "home").exit_code == 1


def test_up_stopped_before_it_serves_is_partial(stage: Any, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    process = stage()
    assert any("hanging" in line for line in process.stderr)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert running.read(tmp_path / "home") is None


# Documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "page"), [(_docs.CLI, _docs.cli_page), (_docs.SETTINGS, _docs.settings_page)]
)
def test_the_reference_says_what_the_code_says(path: Path, page: Any) -> None:
    assert (ROOT / path).read_text() == page(), "run: python -m raypipe.cli._docs"


def test_the_reference_names_every_verb_and_option() -> None:
    text = _docs.cli_page()
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    while groups := [n for n, c in commands.items() if hasattr(c, "commands")]:
        for name in groups:
            inner = commands.pop(name).commands
            commands |= {f"{name} {verb}": command for verb, command in inner.items()}
    for name, command in commands.items():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section
        for parameter in command.params:
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
            assert all(n in section for n in names), (name, names)
