"""Kills worker, upkeep and ingest server, over and over: ``python -m tests.recovery.soak``.

Rounds of ten kills at random moments, half of the rounds with idempotency keys, half relying on
event ids. After each the log, the windows, the receipts and the quarantine are compared with what
the clients were told.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.recovery import ingest_kit
from tests.recovery.nursery import Nursery

KILLS = 10
BATCHES = 40


@dataclass
class Soaked:
    """What a soak went through."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    rows: int = 0


def soak(
    nursery: Nursery,
    home: Path,
    *,
    kills: int,
    seed: int,
    after_round: Callable[[Soaked], object] = id,
) -> Soaked:
    """Rounds until so many kills; raises AssertionError for anything lost, doubled or different."""
    done = Soaked()
    while done.kills.total() < kills:
        keyed = done.rounds % 2 == 0
        folder = home / f"round-{done.rounds}"
        folder.mkdir()
        with ingest_kit.Processes(nursery, folder) as processes:
            told = ingest_kit.run(
                processes, batches=BATCHES, keyed=keyed, kills=KILLS, seed=seed + done.rounds
            )
            done.kills += processes.kills
            if keyed:
                ingest_kit.check_receipts(processes, told)
        ingest_kit.check(folder, told, keyed=keyed)
        shutil.rmtree(folder)
        done.rounds += 1
        done.rows += len(told.rows)
        after_round(done)
    return done


def main() -> None:
    """Soak and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()

    def say(done: Soaked) -> None:
        if done.rounds % 10 == 0:
            sys.stderr.write(f"{done.kills.total():,} kills in {time.monotonic() - began:,.0f} s\n")

    with (
        tempfile.TemporaryDirectory(prefix="raypipe-soak-") as folder,
        Nursery() as nursery,
    ):
        done = soak(nursery, Path(folder), kills=args.kills, seed=args.seed, after_round=say)
    of = ", ".join(f"{count:,} of the {name}" for name, count in sorted(done.kills.items()))
    sys.stdout.write(
        f"{done.kills.total():,} kills ({of}) in {done.rounds:,} rounds and "
        f"{time.monotonic() - began:,.0f} s: {done.rows:,} events acknowledged, all recovered, "
        "none twice\n"
    )


if __name__ == "__main__":
    main()
