"""Reading wanted columns out of packed values. Needs no Feast: a replica starts without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from features.store.packed.codec import Reading, damaged, reader
from features.store.packed.layout import ORDER_BYTES, SCHEMA_BYTES, Layout, read_layout
from features.store.packed.order import NEVER

_SCHEMA = slice(ORDER_BYTES, ORDER_BYTES + SCHEMA_BYTES)


class ViewReader:
    """Reads the wanted columns out of values of one view, whatever schema they have."""

    def __init__(
        self,
        wanted: tuple[tuple[str, str], ...],
        ttl: int,
        describe: Callable[[bytes], bytes | None],
        known: Layout | None = None,
    ) -> None:
        """Compile nothing but what is ``known`` already.

        Args:
            wanted: name and kind of each column.
            ttl: microseconds; 0 for no end.
            describe: gives the stored description of a schema that this process hasn't seen.
        """
        self.wanted = wanted
        self._ttl = ttl
        self._describe = describe
        self._readers: dict[bytes, Callable[[bytes], Reading]] = {}
        if known is not None:
            self._readers[known.schema] = reader(known, wanted)

    def read(self, values: Sequence[bytes | None], now: int) -> list[Reading | None]:
        """Event time and columns of each value; None where nothing is known that still counts.

        Args:
            now: microseconds since 1970 UTC, by which the age is judged.

        Raises:
            IntegrityError: the bytes, or their schema, are not what was written.
        """
        oldest = now - self._ttl if self._ttl else NEVER
        known, out = self._readers, list[Reading | None]()
        for value in values:
            if value is None:
                out.append(None)
            else:
                found = (known.get(value[_SCHEMA]) or self._reader(value))(value)
                out.append(found if found[0] >= oldest else None)
        return out

    def _reader(self, value: bytes) -> Callable[[bytes], Reading]:
        schema = value[_SCHEMA]
        if len(schema) < SCHEMA_BYTES:
            raise damaged(value)
        made = self._readers[schema] = reader(
            read_layout(schema, self._describe(schema)), self.wanted
        )
        return made
