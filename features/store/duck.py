"""DuckDB over Parquet in the lake.

Files in an object store are read through pyarrow's filesystem, with the lake's own options and
credentials: DuckDB's httpfs would have to be downloaded and told them again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.errors import ConfigError
from raypipe.lake import Place

if TYPE_CHECKING:
    import duckdb

_PARTS = "/part-*.parquet"


def connect(
    *, threads: int | None = None, memory: str | None = None, spill: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection to nothing, without a progress bar.

    Args:
        threads: all of the machine's when None.
        memory: how much it holds before it spills, as "1GB"; most of the machine's when None.
        spill: local folder for what memory can't hold; one of the machine's temporary folder when
            None. It is made at the first spill and removed with the connection.
    """
    import duckdb

    place = spill or Path(tempfile.gettempdir()) / f"raypipe-spill-{os.getpid()}"
    config: dict[str, str | bool | int | float | list[str]] = {"temp_directory": str(place)}
    if threads is not None:
        config["threads"] = threads
    if memory is not None:
        config["memory_limit"] = memory
    con = duckdb.connect(config=config)
    con.execute("SET enable_progress_bar = false")
    return con


def scan(
    con: duckdb.DuckDBPyConnection, files: Sequence[Place], *, together: bool = False
) -> duckdb.DuckDBPyRelation:
    """The rows of at least one Parquet file; ``together`` takes every column that any has."""
    reach(con, files[0])
    return con.read_parquet([url(f) for f in files], union_by_name=together)


def url(place: Place) -> str:
    """How SQL names a file. Ibis wants httpfs for s3:, and nothing of other names of it."""
    return place.url.replace("s3://", "s3a://", 1)


def reach(con: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Let a connection read what lies in the place's store."""
    if place.local is not None:
        return
    protocol = url(place).partition("://")[0]
    if protocol in con.list_filesystems():
        con.unregister_filesystem(protocol)  # it may be of a lake with other options
    con.register_filesystem(_lake(protocol)(place.filesystem))


def glob(folder: Place) -> str:
    """All parts of a folder; Feast reads a glob where it fails on a folder.

    Raises:
        ConfigError: the path can't stand in a glob.
    """
    bad = sorted(set(folder.url) & set("*?[]#%"))
    if bad:
        raise ConfigError(
            f"the lake {folder.url!r} contains {' '.join(bad)}",
            hint="Feast reads its files by glob: choose another path for home or lake_url.",
        )
    return url(folder) + _PARTS


def parts(pattern: str, lake: Place) -> list[Place]:
    """The files that a glob of a folder in this lake finds."""
    folder = pattern.removesuffix(_PARTS).replace("s3a://", "s3://", 1)
    return Place(folder, lake.options).files()


@cache
def _lake(scheme: str) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper

    class Lake(ArrowFSWrapper):  # type: ignore[misc]
        """pyarrow's filesystem as fsspec's, under the scheme of a URL."""

        protocol = (scheme,)
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            if isinstance(path, list):
                return [cls._strip_protocol(p) for p in path]
            return path.partition("://")[2] or path

    return Lake
