"""What numba has compiled in a process, and a process of which nobody has asked anything yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from numba.core.dispatcher import Dispatcher

ROOT = Path(__file__).resolve().parents[2]
OURS = ("raypipe.", "serving.", "training.", "features.")


def compiled() -> set[tuple[str, str]]:
    """The kernels of all imported modules, by name, with the argument types that they are for."""
    modules = [module for name, module in sys.modules.items() if name.startswith(OURS)]
    kernels = {f for m in modules for f in vars(m).values() if isinstance(f, Dispatcher)}
    return {(k.py_func.__qualname__, str(types)) for k in kernels for types in k.signatures}


def in_new_process(script: str, folder: Path) -> str:
    """What a script prints that gets a folder as its argument."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
