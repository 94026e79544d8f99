"""The upkeep of the greenhouse domain's log as a process of its own, to be killed by tests."""

import os

import msgspec

from raypipe.log.upkeep import Policy
from raypipe.runtime import upkeep
from tests.domains.greenhouse import project

EVERY_S = 0.1
SMALL = Policy(keep_rows=60, keep_ms=0, least_rows=80, events=tuple(e.name for e in project.events))
"""So that there is something to do in a short test."""


def start(log_url: str) -> None:
    """Do rounds until killed, as the process beside a worker does."""
    read, write = os.pipe()
    os.write(write, msgspec.json.encode(upkeep.Order(log_url, 0, EVERY_S, SMALL)) + b"\n")
    os.dup2(read, 0)
    upkeep.main()
