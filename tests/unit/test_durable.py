from __future__ import annotations

import os
from pathlib import Path

import pytest

from raypipe import durable


def test_each_new_folder_is_synced_into_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_directory", synced.append)
    (tmp_path / "a").mkdir()
    durable.make_directory(tmp_path / "a" / "b" / "c", 0o700)
    assert synced == [tmp_path / "a", tmp_path / "a" / "b"]
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o700
    durable.make_directory(tmp_path / "a" / "b" / "c")
    assert len(synced) == 2


def test_a_rewritten_file_is_the_same(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(data)
    durable.rewrite(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    durable.rewrite(tmp_path / "none")
    assert not (tmp_path / "none").exists()
