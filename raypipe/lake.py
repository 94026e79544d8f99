"""The lake: where what many nodes read and write lies, in a folder or in an object store.

An object store can't rename, and no store replaces a folder as a whole. So nothing here is ever
replaced but single files, each by one atomic write: what consists of many files is written under
a name of its own, and one small file that is written last makes it count.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from raypipe.durable import make_directory, sync, sync_directory
from raypipe.errors import ConfigError, Unavailable, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

OPTIONS = {
    "s3": frozenset({"region", "scheme", "endpoint_override"}),
    "gs": frozenset({"scheme", "endpoint_override", "retry_limit_seconds"}),
}
"""Object stores by the scheme of their URL, with what may stand behind its question mark."""

_TRIES = 10

_HINT = "Use a folder, file:///FOLDER, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX."
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_GLOB = frozenset("*?[]#%")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A file or a folder of the lake, whether it is there or not.

    Only text: it costs nothing to make, and goes to other processes. ``Place.at(str(place))`` is
    the place again. Names with a leading dot are temporary files or an engine's own: not listed.
    """

    url: str
    """A local path, or ``s3://bucket/prefix``."""
    options: str = ""
    """The URL's query: how an object store is reached."""

    @classmethod
    def at(cls, where: str | os.PathLike[str]) -> Place:
        """The place that a URL or a path names; a relative path is of the working directory.

        Raises:
            ConfigError: no such URL can work.
        """
        text = os.fspath(where)
        parts = urlsplit(text) if "://" in text else None
        if parts is None:
            # Resolves '..', but not links.
            return cls(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111
        if parts.scheme == "file":
            path = unquote(parts.path)
            if parts.netloc or parts.query or parts.fragment or not path.startswith("/"):
                raise ConfigError("file: needs an absolute path", hint="Write file:///FOLDER.")
            return cls(os.path.abspath(path))  # noqa: PTH100
        if parts.scheme not in OPTIONS:
            raise ConfigError(f"{parts.scheme}: is no lake that can be reached", hint=_HINT)
        if "@" in parts.netloc + parts.path:  # a secret key may contain a slash
            raise ConfigError(
                "credentials don't belong into a URL",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of every "
                "node, or give the nodes a role.",
            )
        if not _BUCKET.fullmatch(parts.netloc):
            raise ConfigError(f"{parts.netloc!r} is no bucket", hint=_HINT)
        _check_options(parts.scheme, parts.query)
        names = [n for n in parts.path.split("/") if n]
        bad = sorted(_GLOB & set(parts.path)) + ["#"] * bool(parts.fragment)
        if bad or {".", ".."} & set(names):
            raise ConfigError(
                f"the path {parts.path!r} has {' '.join(bad) or 'dots for a name'}",
                hint="Files are found by glob: choose another prefix.",
            )
        return cls("/".join([f"{parts.scheme}://{parts.netloc}", *names]), parts.query)

    def __str__(self) -> str:
        return f"{self.url}?{self.options}" if self.options else self.url

    def __truediv__(self, below: str) -> Place:
        """A place below this one; raises UsageError for a name that could lead elsewhere."""
        if any(n in ("", ".", "..") for n in below.split("/")) or set(below) & set("?#\\\0"):
            raise UsageError(f"{below!r} is no name in the lake")
        return Place(f"{self.url.rstrip('/')}/{below}", self.options)

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The folder that this is in."""
        return Place(self.url.rpartition("/")[0], self.options)

    @property
    def local(self) -> Path | None:
        """The path on this machine, None in an object store."""
        return None if "://" in self.url else Path(self.url)

    @property
    def filesystem(self) -> FileSystem:
        """The pyarrow filesystem in which ``key`` is this place; one a process and store."""
        scheme, found, rest = self.url.partition("://")
        return _filesystem(scheme, rest.partition("/")[0], self.options) if found else _local()

    @property
    def key(self) -> str:
        """The path in ``filesystem``."""
        return self.url.rpartition("://")[2]

    def below(self, folder: Place) -> str | None:
        """The path from a folder to this, None when it is not inside."""
        inside = self.url.startswith(folder.url + "/") and self.options == folder.options
        return self.url[len(folder.url) + 1 :] if inside else None

    def exists(self) -> bool:
        """Whether a file is here."""
        with self._reached():
            found: bool = self.filesystem.get_file_info(self.key).is_file
        return found

    def buffer(self) -> pa.Buffer:
        """All bytes: mapped from a local file, fetched from elsewhere.

        Raises:
            FileNotFoundError: there is no such file.
            Unavailable: the object store can't be reached, or refuses.
        """
        import pyarrow as pa

        if self.local is not None:
            if not self.local.stat().st_size:
                return pa.py_buffer(b"")  # nothing can't be mapped
            with pa.memory_map(self.url) as file:
                return file.read_buffer()
        with self._reached():
            for _ in range(_TRIES):
                with self.filesystem.open_input_file(self.key) as file:
                    found, data = file.metadata(), file.read_buffer()
                # pyarrow asks for the size first: of a file that was replaced between the two
                # requests it gives a part. Its tag, asked for again, tells.
                with self.filesystem.open_input_file(self.key) as file:
                    if file.metadata() == found:
                        return data
        raise Unavailable(f"{self.url} is replaced faster than it can be read")

    def read(self) -> bytes:
        """All bytes, copied; raises like ``buffer``."""
        data: bytes = self.buffer().to_pybytes()
        return data

    def open(self) -> pa.NativeFile:
        """For reading parts of it; raises like ``buffer``."""
        with self._reached():
            return self.filesystem.open_input_file(self.key)

    @contextmanager
    def writing(self) -> Iterator[pa.NativeFile]:
        """A sink; when the block ends its bytes are the file, durably. If it raises, nothing is.

        Readers see the file before or the file after. For an object store the bytes are kept in
        memory: a stream that fails half-way would still be closed, and so stored, by its end.
        """
        import pyarrow as pa

        path = self.local
        if path is None:
            memory = pa.BufferOutputStream()
            yield memory
            with self._reached():
                stream = self.filesystem.open_output_stream(self.key)
                stream.write(memory.getvalue())
                stream.close()
            return
        make_directory(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with pa.OSFile(os.fspath(temporary), "wb") as sink:
                yield sink
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)

    def write(self, data: bytes | pa.Buffer) -> str:
        """Make these bytes the file, as ``writing`` does; their sha256."""
        with self.writing() as sink:
            sink.write(data)
        return hashlib.sha256(data).hexdigest()

    def write_parquet(self, table: pa.Table, **options: Any) -> str:
        """Write a table with the options of ``pyarrow.parquet.write_table``; the file's sha256."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        memory = pa.BufferOutputStream()
        pq.write_table(table, memory, **options)
        return self.write(memory.getvalue())

    def sha256(self) -> str:
        """Of all bytes; raises like ``buffer``."""
        return hashlib.sha256(self.buffer()).hexdigest()

    def names(self) -> list[str]:
        """What lies right below, files and folders, sorted; nothing where nothing is."""
        return sorted(n for p in self._list(recursive=False) if (n := p.base_name)[:1] != ".")

    def files(self) -> list[Place]:
        """All files below, in subfolders too, sorted."""
        return sorted(self / path for path in self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each of these files, by its path from here."""
        found = {}
        for info in self._list(recursive=True):
            path = info.path[len(self.key) + 1 :]
            if info.is_file and not any(n.startswith(".") for n in path.split("/")):
                found[path] = int(info.size)
        return found

    def remove(self) -> None:
        """Remove the file, if there is one."""
        try:
            with self._reached():
                self.filesystem.delete_file(self.key)
        except FileNotFoundError:
            return

    def remove_tree(self) -> None:
        """Remove all that lies below, hidden files too. Readers of it find nothing or a part."""
        from pyarrow.fs import FileType

        found = self._list(recursive=True)
        if not found and self.local is None:
            return
        folders = [i.path for i in found if i.type is FileType.Directory]
        # Deepest first: not every object store takes a folder's mark before its content.
        for folder in (*sorted(folders, key=len, reverse=True), self.key):
            try:
                with self._reached():
                    self.filesystem.delete_dir(folder)
            except FileNotFoundError:
                continue  # an object store's folder ends with its last file

    def prune(self, keep: Collection[str]) -> None:
        """Remove every folder right below that is not named."""
        for info in self._list(recursive=False):
            if not info.is_file and info.base_name not in keep:
                (self / info.base_name).remove_tree()

    def _list(self, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.key, allow_not_found=True, recursive=recursive)
        with self._reached():
            found: list[Any] = self.filesystem.get_file_info(selector)
        return found

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """An object store's errors in our words; a disk's stay as they are."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as e:
            if self.local is not None:
                raise
            raise Unavailable(
                f"{self.url}: {e}",
                hint="Check lake_url, that its bucket exists, and the credentials of this node.",
            ) from e


def _check_options(scheme: str, query: str) -> None:
    given = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in given]
    unknown = sorted(set(names) - OPTIONS[scheme])
    if unknown or len(names) != len(set(names)) or not all(value for _, value in given):
        raise ConfigError(
            f"the options {query!r} can't work",
            hint=f"{scheme} knows, once each: {', '.join(sorted(OPTIONS[scheme]))}.",
        )


@lru_cache
def _filesystem(scheme: str, bucket: str, options: str) -> FileSystem:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    # Small files in one request instead of three.
    extra = ["allow_delayed_open=true"] if scheme == "s3" else []
    query = "&".join([*([options] if options else []), *extra])
    try:
        return FileSystem.from_uri(f"{scheme}://{bucket}?{query}")[0]
    except (pa.ArrowException, OSError) as e:
        raise Unavailable(
            f"{scheme}://{bucket} can't be opened: {e}", hint="Check lake_url and its options."
        ) from e


@lru_cache
def _local() -> FileSystem:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()
