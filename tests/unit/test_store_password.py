from __future__ import annotations

from pathlib import Path

import pytest

from features.store.packed.password import FILE_VARIABLE, PASSWORD_VARIABLE, password
from raypipe.errors import ConfigError


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)


def mounted(folder: Path, content: bytes, mode: int = 0o600) -> str:
    file = folder / "password"
    file.write_bytes(content)
    file.chmod(mode)
    return str(file)


def test_nothing_is_said_by_absent_and_empty_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert password() is None
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    monkeypatch.setenv(FILE_VARIABLE, "")
    assert password() is None


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440])
def test_a_file_is_read_without_the_blanks_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, mounted(tmp_path, b" hunter 2\r\n\n", mode))
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    assert password() == "hunter 2"


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"hunter2", 0o604, "has mode 0604: others can read it"),
        (b"hunter2", 0o644, "has mode 0644: others can read it"),
        (b" \n", 0o600, "is empty"),
        (b"hunter2\xff", 0o600, "can't be read: invalid start byte"),
    ],
)
def test_a_file_that_can_not_hold_a_password_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, mode: int, says: str
) -> None:
    file = mounted(tmp_path, content, mode)
    monkeypatch.setenv(FILE_VARIABLE, file)
    with pytest.raises(ConfigError, match=says) as e:
        password()
    assert FILE_VARIABLE in e.value.detail
    assert file in e.value.detail
    assert "hunter2" not in str(e.value)


def test_a_file_that_is_not_there_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, says in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        monkeypatch.setenv(FILE_VARIABLE, str(file))
        with pytest.raises(ConfigError, match=says):
            password()


def test_two_passwords_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE_VARIABLE, mounted(tmp_path, b"one"))
    monkeypatch.setenv(PASSWORD_VARIABLE, "one")
    with pytest.raises(ConfigError, match="both set"):
        password()
