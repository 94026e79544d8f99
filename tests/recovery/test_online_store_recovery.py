"""A writer of online values dies by kill -9: what was acknowledged is there, and all is whole.

The process that dies runs a function of this file; each acknowledged batch is a line on its
standard output.
"""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from features.store.packed.backend import open_backend
from features.store.packed.codec import Column, encode, reader
from features.store.packed.layout import layout
from tests.contract.redis_server import PROGRAM, RedisServer
from tests.recovery.nursery import Nursery

LAYOUT = layout((*((f"f{i}", "q") for i in range(40)), ("text", "s")))
KEYS = [b"rp:p:v:id:s%d" % i for i in range(300)]


def batch(place: int) -> list[bytes]:
    """What the writer puts for all keys in its batch of this number."""
    n = len(KEYS)
    places, none = np.full(n, place), np.zeros(n, bool)
    columns = [Column(none, places + i) for i in range(40)]
    columns.append(Column(none, [b"%d" % place * 50] * n))
    return encode(LAYOUT, places, places, places, columns)


def write(url: str, start: str) -> None:
    backend = open_backend(url)
    for place in count(int(start)):
        backend.put(KEYS, batch(place), LAYOUT.schema, LAYOUT.described)
        print(place, flush=True)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_killed_writers_leave_whole_values_and_all_that_was_acknowledged(
    nursery: Nursery, tmp_path: Path, kind: str
) -> None:
    if kind == "redis" and PROGRAM is None:
        pytest.skip("no redis-server: apt-get install --no-install-recommends redis-server")
    server = RedisServer(tmp_path) if kind == "redis" else None
    url = server.url() if server else f"sqlite:///{tmp_path}/online.db"
    chance = random.Random(4)
    newest = -1
    try:
        for _ in range(4):
            process = nursery.start(write, url, newest + 1, heard=True)
            assert process.out is not None
            with process.out:
                for _ in range(chance.randint(1, 12)):
                    newest = int(process.out.readline())
                for _ in range(chance.randint(0, 20_000)):
                    pass  # die somewhere inside a batch
                process.kill()
                newest = max([newest, *map(int, process.out.read().split())])
            backend = open_backend(url)
            read = reader(LAYOUT, LAYOUT.columns)
            places = set()
            for value in backend.get(KEYS):
                assert value is not None
                place, found = read(value)
                assert found == (*range(place, place + 40), b"%d" % place * 50)
                places.add(place)
            backend.close()
            assert places <= {newest, newest + 1}
            if kind == "sqlite":
                assert len(places) == 1  # a batch is one transaction
    finally:
        if server:
            server.kill()
