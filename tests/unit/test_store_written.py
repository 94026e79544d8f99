"""The record of what is online."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from features.store.written import SCHEMA, Written


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "feast").mkdir()
    return tmp_path


def rows(*values: tuple[str, int, int]) -> pa.Table:
    return pa.table(dict(zip(SCHEMA.names, zip(*values, strict=True), strict=True)), SCHEMA)


def test_rows_come_back_after_reopening_and_later_ones_replace_earlier(home: Path) -> None:
    with Written(home) as written:
        assert written.rows("plot", "x").num_rows == 0
        assert written.some_key("plot") is None
        written.add("plot", "x", rows(("a", 1, 2), ("b", 3, 4)))
        written.add("other", "y", rows(("a", 7, 8)))
    with Written(home) as written:
        written.add("plot", "x", rows(("b", 5, 6)))
        assert written.rows("plot", "x").sort_by("key").equals(rows(("a", 1, 2), ("b", 5, 6)))
        assert written.rows("plot", "x").schema == SCHEMA
        assert written.some_key("plot") in {"a", "b"}


def test_rows_of_another_definition_are_void(home: Path) -> None:
    with Written(home) as written:
        written.add("plot", "x", rows(("a", 1, 2), ("b", 3, 4)))
        assert written.rows("plot", "z").num_rows == 0
        written.add("plot", "z", rows(("c", 1, 2)))
        assert written.rows("plot", "x").num_rows == 0
        assert written.rows("plot", "z").equals(rows(("c", 1, 2)))


def test_forget_takes_one_view_only(home: Path) -> None:
    with Written(home) as written:
        written.add("plot", "x", rows(("a", 1, 2)))
        written.add("other", "x", rows(("a", 1, 2)))
        written.forget("plot")
        assert written.rows("plot", "x").num_rows == 0
        assert written.rows("other", "x").num_rows == 1
