"""Kills worker and ingest server at random, over and over: ``python -m tests.recovery.soak``.

Rounds of ten kills, half of them with idempotency keys, half relying on event ids. After each round
the log, the windows, the receipts and the quarantine are compared with what the clients were told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.recovery import ingest_kit

KILLS = 10
BATCHES = 40


@dataclass
class Soaked:
    """What a soak went through."""

    kills: int = 0
    rounds: int = 0
    rows: int = 0


def soak(home: Path, *, kills: int, seed: int) -> Soaked:
    """Rounds until so many kills; raises AssertionError for anything lost, doubled or different."""
    done = Soaked()
    while done.kills < kills:
        keyed = done.rounds % 2 == 0
        folder = home / f"round-{done.rounds}"
        folder.mkdir()
        with ingest_kit.Processes(folder) as processes:
            told = ingest_kit.run(
                processes, batches=BATCHES, keyed=keyed, kills=KILLS, seed=seed + done.rounds
            )
            done.kills += processes.kills
            if keyed:
                ingest_kit.check_receipts(processes, told)
        ingest_kit.check(folder, told, keyed=keyed)
        done.rounds += 1
        done.rows += len(told.rows)
    return done


def main() -> None:
    """Soak and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raypipe-soak-") as folder:
        done = soak(Path(folder), kills=args.kills, seed=args.seed)
    sys.stdout.write(
        f"{done.kills:,} kills in {done.rounds:,} rounds: {done.rows:,} events acknowledged, "
        "all recovered, none twice\n"
    )


if __name__ == "__main__":
    main()
