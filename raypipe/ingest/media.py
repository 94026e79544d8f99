"""What a bulk body is and how it was packed: media types, compression, and their limits."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

from raypipe.errors import BodyTooLarge, MalformedBody, UnsupportedMedia


class Media(StrEnum):
    """Forms of a bulk body."""

    LINES = "application/x-ndjson"
    ARRAY = "application/json"
    ARROW = "application/vnd.apache.arrow.stream"


_NAMES = {m.value: m for m in Media} | {
    "application/jsonl": Media.LINES,
    "application/x-jsonlines": Media.LINES,
    "application/jsonlines": Media.LINES,
    "application/ndjson": Media.LINES,
}
_CODECS = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}


def media_of(content_type: str) -> Media:
    """The form that a Content-Type names; raises UnsupportedMedia."""
    name, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    media = _NAMES.get(name.strip().lower())
    if media is None or (charset.startswith("charset=") and charset not in _UTF8):
        raise UnsupportedMedia(
            f"bulk events don't come as {content_type!r}" if content_type else "no Content-Type",
            hint="Send " + ", ".join(m.value for m in Media) + "; text in UTF-8.",
        )
    return media


_UTF8 = {"charset=utf-8", "charset=utf8"}


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding, of at most ``limit`` bytes.

    Raises UnsupportedMedia, MalformedBody, BodyTooLarge.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in _CODECS:
        raise UnsupportedMedia(
            f"bulk events don't come with Content-Encoding {encoding!r}",
            hint="Send them plain, or with gzip or zstd.",
        )
    try:
        with pa.input_stream(pa.py_buffer(body), compression=_CODECS[name]) as stream:
            plain: bytes = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as e:
        raise MalformedBody(f"the body is no whole {name} stream: {e}") from None
    if len(plain) > limit:
        raise BodyTooLarge(
            f"the body is over {limit} bytes unpacked", hint="Send it in several requests."
        )
    return plain
