"""Writers to the log on Kafka as processes of their own, to be killed by tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from raypipe.errors import Unavailable
from raypipe.log.kafka.log import KafkaLog
from tests.recovery.test_log_recovery import SEAL, SEALED_ROWS, batches_of, history


def append_forever(url: str, cache: str, first: str, last: str) -> None:
    """Append; ask again with the same seq while the brokers are away."""
    log = KafkaLog.open(url, Path(cache))
    for seq in range(int(first), int(last)):
        while True:
            try:
                offsets = log.append(0, batches_of(seq), producer="p", seq=seq)
            except Unavailable:
                print(json.dumps("away"), flush=True)
            else:
                break
        print(json.dumps([seq, [o.tolist() for o in offsets]]), flush=True)


def seal_once(url: str, cache: str) -> None:
    log = KafkaLog.open(url, Path(cache))
    print(json.dumps(log.seal(0, history(), SEALED_ROWS, **SEAL)), flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    {"append": append_forever, "seal": seal_once}[sys.argv[1]](*sys.argv[2:])
