"""What every sweep on Ray Tune needs around it: Tune's own settings, and silence."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import optuna

TUNE: Mapping[str, str] = {
    # A killed sweep loses at most this many seconds of unfinished trials; the default is ten.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    # The newer output prints a banner even when told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune would swallow Ctrl-C and return half a sweep.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextmanager
def environment(values: Mapping[str, str] = TUNE) -> Iterator[None]:
    """Variables that Tune reads while it runs; what the user has set wins."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update({k: v for k, v in values.items() if before[k] is None})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' chatter out of ours; their errors stay."""
    verbosity = optuna.logging.get_verbosity()
    loggers = [logging.getLogger(n) for n in ("ray.tune", "ray.train", "ray.air")]
    levels = [x.level for x in loggers]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # A resumed trial reports again what came after its last snapshot.
            warnings.filterwarnings("ignore", "The reported value is ignored", module="optuna")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
