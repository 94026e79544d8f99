"""Bulk events through two processes that are killed: acknowledged is recovered, once each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recovery import ingest_kit, soak

POINTS = [
    "worker.quarantined:3",
    "worker.before_commit:3",
    "worker.after_commit:3",
    "worker.after_reply:3",
    "log.append.before_commit:4",
    "log.append.after_commit:4",
]


@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "event ids"])
@pytest.mark.parametrize("point", POINTS)
def test_death_at_each_step_of_a_bulk_commit(tmp_path: Path, point: str, keyed: bool) -> None:
    with ingest_kit.Processes(tmp_path, point) as processes:
        told = ingest_kit.run(processes, batches=12, keyed=keyed, kills=0, seed=1)
        if keyed:
            ingest_kit.check_receipts(processes, told)
    assert processes.starts == {"worker": 2, "ingest": 1}
    ingest_kit.check(tmp_path, told, keyed=keyed)


def test_a_short_soak(tmp_path: Path) -> None:
    done = soak.soak(tmp_path, kills=20, seed=11)
    assert done.kills >= 20
    assert done.rows > 2_000
