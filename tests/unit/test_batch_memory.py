"""A key that has every event: a block's memory follows a piece of its rows, not all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = 1_000_000
LIMIT = 450 * 2**20
"""Of what the block may take beside its rows. The values of these rows, before and after, are
2 x 24 x 8 bytes a row: 384 MB at once, and as much again for the tables that are written."""

BLOCK = """
import resource, sys
from dataclasses import replace
import numpy as np
import pyarrow as pa
from features import batch
from features.payments import project
from raypipe.lake import Place

n, limit, piece = (int(a) for a in sys.argv[2:])
batch.PIECE_ROWS = batch.GROUP_ROWS = piece
plan = batch.EntityPass.of(project, "card", 4, [v for v in project.views if v.name == "card"])

def rows(n):
    columns = {
        "offset": np.arange(n),
        "kind": np.zeros(n, np.int8),
        "event_id": pa.array([f"t{i:09d}" for i in range(n)]),
        "key_text": pa.array(["hot"]).take(pa.array(np.zeros(n, np.int64))),
        "time": 1_780_000_000_000 + np.arange(n) * 40,
        "key": np.full(n, 7),
        "part": np.zeros(n, np.int32),
    }
    (view,) = plan.views
    amounts, hashes, flags = batch._fact_columns(view)
    for name in (*amounts, *hashes, flags):
        columns[name] = np.arange(n) % 997
    return pa.table(columns)

out = Place.at(sys.argv[1])
few = rows(1_000)
batch.write_block(few, plan, out / "few", batch.Span(0, 1_000, ((0, 1_000),)))  # compiled now
table = rows(n)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + limit,) * 2)
(done,) = batch.write_block(table, plan, out / "all", batch.Span(0, n, ((0, n),)))
assert done.rows == n
files = done.files["card"]
assert len(files) == 2
"""


def run(folder: Path, piece: int) -> subprocess.CompletedProcess[str]:
    words = [str(folder), str(ROWS), str(LIMIT), str(piece)]
    return subprocess.run(
        [sys.executable, "-c", BLOCK, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_a_hot_key_of_many_rows_fits_where_its_values_do_not(tmp_path: Path) -> None:
    from features.batch import PIECE_ROWS

    done = run(tmp_path / "pieces", PIECE_ROWS)
    assert done.returncode == 0, done.stderr
    # The same block as one piece needs more: so the limit is one.
    done = run(tmp_path / "whole", ROWS)
    assert done.returncode != 0
    assert "MemoryError" in done.stderr or "malloc" in done.stderr or "alloc" in done.stderr
