from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

import raypipe
from raypipe.cli._app import app

ROOT = Path(raypipe.__file__).resolve().parents[1]
HEAVY = ("ray", "feast", "mlflow", "pandas", "numpy", "pydantic", "pydantic_settings", "numba")
HEAVY += ("pyarrow", "polars", "duckdb", "xgboost", "sklearn", "psutil", "httpx", "msgspec")
VERBS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
LIMIT_S = 0.5

CODE = """
import json, sys
from raypipe.cli import main
try:
    main()
except SystemExit as e:
    sys.stderr.write(json.dumps({"code": e.code, "modules": sorted(sys.modules)}))
"""


def _help(*verb: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *verb, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    found = json.loads(done.stderr)
    assert not found["code"]
    return done.stdout, found["modules"]


@pytest.mark.parametrize("verb", [(), *((v,) for v in VERBS)], ids=lambda v: " ".join(v) or "root")
def test_help_loads_nothing_heavy(verb: tuple[str, ...]) -> None:
    text, modules = _help(*verb)
    assert text.startswith(" ".join(("Usage: raypipe", *verb)))
    assert not {m.partition(".")[0] for m in modules} & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"]], ids=" ".join)
def test_help_is_fast(arguments: list[str]) -> None:
    """The best of five, in processor time: what an idle machine takes. The clock has some slack."""
    walls, works = [], []
    for _ in range(5):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "raypipe", *arguments],
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            check=True,
        )
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        works.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(works) < LIMIT_S
    assert min(walls) < 4 * LIMIT_S


def test_help_lists_every_verb() -> None:
    text, _ = _help()
    assert all(f"\n  {verb} " in text for verb in VERBS)
