"""What a worker compiles before it is ready is all that events need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
from numba.core.dispatcher import Dispatcher
from features.payments import project
from raypipe.windows import kernel
from raypipe.windows.engine import WindowEngine, compile_windows

def compiled():
    found = {n: f for n, f in vars(kernel).items() if isinstance(f, Dispatcher)}
    return {n: tuple(f.signatures) for n, f in found.items() if f.signatures}

assert not compiled()
compile_windows(project.views, project.decision)
before = compiled()
assert "process" in before
engine = WindowEngine(project.views, project.decision)
for number in range(6_000):
    event = dict.fromkeys((f.name for f in project.decision_event.fields), None)
    event |= {"tenant": "t", "event_id": str(number), "event_time": 1_790_000_000_000 + number}
    event |= {"received_at": 1_790_000_000_000 + number, "amount": number, "currency": "EUR"}
    event |= {n: f"{n}-{number % 5_000}" for n in ("card_id", "customer_id", "merchant_id")}
    assert engine.observe(project.decision, event, number)
WindowEngine(project.views, project.decision).restore(engine.snapshot())
print(sorted(compiled().items() - before.items()))
"""


def test_events_compile_nothing_after_a_worker_is_ready() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
