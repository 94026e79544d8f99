"""What a worker compiles before it takes requests, so that none of them waits for it."""

from __future__ import annotations

from raypipe.patterns.engine import compile_patterns
from raypipe.project import Project
from raypipe.runtime.worker.hash_queue import compile_queue
from raypipe.tables.sketch import compile_sketches
from raypipe.windows.engine import compile_windows


def compile_worker(project: Project) -> None:
    """Have all kernels ready: up to a minute once an installation, milliseconds from then on."""
    compile_windows(project.views, project.decision)
    compile_patterns()
    compile_queue()
    compile_sketches()
