"""JSON lines to spans and columns: a scanner of flat objects with declared members.

It takes only what has one meaning: RFC 8259, no member twice, none undeclared, strings, numbers,
booleans and nulls where they are declared. Every other line is left to the reader of single events.
Numba compiles this module; one file on purpose: its cache notices a change of the file that holds a
function, not of those that hold what it calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

TEXT, INTEGER, NUMBER, BOOLEAN, NULL, NOTHING = range(6)
"""What a member's value is; NOTHING: no such value."""

REST = -1
"""In place of a type's number: the line must be read another way."""

MEMBERS = 64
"""Members of a line; one with more is read another way."""

_DIGITS = 18
_NUMBER_BYTES = 400
_KEY_FROM, _KEY_TO, _FROM, _TO, _CLASS = range(5)
_QUOTE, _ESCAPE, _COMMA, _COLON, _OPEN, _CLOSE = 34, 92, 44, 58, 123, 125

_compiled: Any = njit(cache=True, nogil=True)
_inner: Any = njit(cache=True, nogil=True, forceinline=True)


class Plan(NamedTuple):
    """The declared types. Slots are the members of all types, each type's in a row.

    ``names`` [bytes] holds the types' names one after the other up to ``name_ends`` [types], and
    ``keys`` [bytes] those of the slots up to ``key_ends`` [slots]; type t has the slots from
    ``first[t]`` to ``first[t + 1]``, of the ``classes`` [slots]. ``tag`` [bytes] is the member that
    names the type; empty: there is one type, and no line names it.
    """

    tag: Bytes
    names: Bytes
    name_ends: Ints
    keys: Bytes
    key_ends: Ints
    first: Ints
    classes: Ints


@_inner
def _space(text, at, end):  # type: ignore[no-untyped-def]
    """Behind white space."""
    while at < end and (text[at] == 32 or text[at] == 9 or text[at] == 13):
        at += 1
    return at


@_inner
def _hex4(text, at, end):  # type: ignore[no-untyped-def]
    """The number of four hexadecimal digits; -1 if they are none."""
    if at + 4 > end:
        return -1
    found = 0
    for i in range(at, at + 4):
        c = int(text[i])
        if 48 <= c <= 57:
            found = found * 16 + c - 48
        elif 97 <= c <= 102 or 65 <= c <= 70:
            found = found * 16 + (c & 15) + 9
        else:
            return -1
    return found


@_compiled
def _escape(text, at, end):  # type: ignore[no-untyped-def]
    """Behind the escape that begins at ``at``, and the code point it stands for; -1: it is none."""
    if at + 1 >= end:
        return at, -1
    c = int(text[at + 1])
    if c in (_QUOTE, _ESCAPE, 47):
        return at + 2, c
    for letter, code in ((98, 8), (102, 12), (110, 10), (114, 13), (116, 9)):
        if c == letter:
            return at + 2, code
    if c != 117:
        return at, -1
    code = _hex4(text, at + 2, end)
    if code < 0xD800 or code > 0xDFFF:
        return at + 6, code
    # The first half of a pair, else it is no character.
    if code > 0xDBFF or at + 8 > end or text[at + 6] != _ESCAPE or text[at + 7] != 117:
        return at, -1
    low = _hex4(text, at + 8, end)
    if low < 0xDC00 or low > 0xDFFF:
        return at, -1
    return at + 12, 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)


@_inner
def _string(text, at, end, ascii_only):  # type: ignore[no-untyped-def]
    """The closing quote of the string whose first byte is at ``at``, and whether it has escapes;
    -1 if it has none, or bytes that aren't plain."""
    escapes = False
    while at < end:
        c = text[at]
        if c == _QUOTE:
            return at, escapes
        if c == _ESCAPE:
            at, code = _escape(text, at, end)
            if code < 0:
                return -1, False
            escapes = True
            continue
        if c < 32 or (c > 127 and ascii_only):
            return -1, False
        at += 1
    return -1, False


@_inner
def _digits(text, at, end):  # type: ignore[no-untyped-def]
    """Behind digits."""
    while at < end and 48 <= text[at] <= 57:
        at += 1
    return at


@_inner
def _number(text, at, end):  # type: ignore[no-untyped-def]
    """Behind the number that begins at ``at``, and its class."""
    start = at
    if text[at] == 45:
        at += 1
    stop = _digits(text, at, end)
    if stop == at or (text[at] == 48 and stop > at + 1):
        return at, NOTHING
    found = INTEGER if stop - at <= _DIGITS else NOTHING
    at = stop
    if at < end and text[at] == 46:
        stop = _digits(text, at + 1, end)
        if stop == at + 1:
            return at, NOTHING
        at, found = stop, NUMBER
    if at < end and (text[at] == 101 or text[at] == 69):
        at += 1
        if at < end and (text[at] == 43 or text[at] == 45):
            at += 1
        stop = _digits(text, at, end)
        if stop == at:
            return at, NOTHING
        at, found = stop, NUMBER
    return at, found if at - start <= _NUMBER_BYTES else NOTHING


@_inner
def _is(text, at, end, word):  # type: ignore[no-untyped-def]
    """Whether the bytes from ``at`` to ``end`` begin with the word."""
    if at + len(word) > end:
        return False
    for i in range(len(word)):  # noqa: SIM110 - numba compiles loops, not generators
        if text[at + i] != word[i]:
            return False
    return True


_TRUE = np.frombuffer(b"true", np.uint8)
_FALSE = np.frombuffer(b"false", np.uint8)
_NULL = np.frombuffer(b"null", np.uint8)


@_inner
def _members(text, at, end, ascii_only, found):  # type: ignore[no-untyped-def]
    """Read the object between ``at`` and ``end`` into ``found`` [members, 5]; returns how many
    members it has, -1 if it isn't plain. A text with escapes has a negative start."""
    at = _space(text, at, end)
    if at >= end or text[at] != _OPEN:
        return -1
    at = _space(text, at + 1, end)
    count = 0
    if at < end and text[at] == _CLOSE:
        return 0 if _space(text, at + 1, end) == end else -1
    while True:
        if at >= end or text[at] != _QUOTE or count == MEMBERS:
            return -1
        member = found[count]
        member[_KEY_FROM] = at + 1
        stop, escapes = _string(text, at + 1, end, True)
        if stop < 0 or escapes:
            return -1
        member[_KEY_TO] = stop
        at = _space(text, stop + 1, end)
        if at >= end or text[at] != _COLON:
            return -1
        at = _space(text, at + 1, end)
        if at >= end:
            return -1
        c = text[at]
        member[_FROM] = at
        if c == _QUOTE:
            stop, escapes = _string(text, at + 1, end, ascii_only)
            if stop < 0:
                return -1
            member[_FROM] = -(at + 1) if escapes else at + 1
            member[_TO], member[_CLASS] = stop, TEXT
            at = stop + 1
        elif c == 45 or 48 <= c <= 57:
            at, kind = _number(text, at, end)
            if kind == NOTHING:
                return -1
            member[_TO], member[_CLASS] = at, kind
        elif _is(text, at, end, _TRUE):
            at += 4
            member[_TO], member[_CLASS] = at, BOOLEAN
        elif _is(text, at, end, _FALSE):
            at += 5
            member[_TO], member[_CLASS] = at, BOOLEAN
        elif _is(text, at, end, _NULL):
            at += 4
            member[_TO], member[_CLASS] = at, NULL
        else:
            return -1
        count += 1
        at = _space(text, at, end)
        if at >= end:
            return -1
        if text[at] == _CLOSE:
            return count if _space(text, at + 1, end) == end else -1
        if text[at] != _COMMA:
            return -1
        at = _space(text, at + 1, end)


@_inner
def _same(text, start, stop, words, first, last):  # type: ignore[no-untyped-def]
    """Whether the two stretches of bytes are equal."""
    if stop - start != last - first:
        return False
    for i in range(stop - start):  # noqa: SIM110
        if text[start + i] != words[first + i]:
            return False
    return True


@_inner
def _begin(ends, i):  # type: ignore[no-untyped-def]
    """Where the i-th word begins among words that lie one after the other."""
    return ends[i - 1] if i > 0 else 0


@_inner
def _type_of(text, found, count, plan):  # type: ignore[no-untyped-def]
    """The type that the members name, and which member does; REST if not just one names one."""
    if len(plan.tag) == 0:
        return 0, -1
    kind, tagged = REST, -1
    for m in range(count):
        member = found[m]
        if not _same(text, member[_KEY_FROM], member[_KEY_TO], plan.tag, 0, len(plan.tag)):
            continue
        if tagged >= 0 or member[_CLASS] != TEXT or member[_FROM] < 0:
            return REST, m
        tagged = m
        for t in range(len(plan.name_ends)):
            begin, stop = _begin(plan.name_ends, t), plan.name_ends[t]
            if _same(text, member[_FROM], member[_TO], plan.names, begin, stop):
                kind = t
                break
    return kind, tagged


@_compiled
def scan(text, starts, ends, ascii_only, plan, kinds, spans):  # type: ignore[no-untyped-def]
    """Read every line.

    Args:
        text: the lines' bytes [n]; ``ascii_only`` if others may be no UTF-8.
        starts: where each line begins [lines], and ``ends`` where it stops.
        plan: a Plan.
        kinds: to be filled [lines]: the type's number, or REST.
        spans: to be filled [lines, slots of a type, 2]: where the member's value begins and stops;
            (0, 0) where it is null or missing, a negative beginning for a text with escapes.
    """
    found = np.empty((MEMBERS, 5), np.int64)
    guess = np.zeros((len(plan.first), MEMBERS), np.int64)
    seen = np.full(len(plan.key_ends), -1, np.int64)
    for line in range(len(starts)):
        kinds[line] = REST
        count = _members(text, starts[line], ends[line], ascii_only, found)
        if count < 0:
            continue
        kind, tagged = _type_of(text, found, count, plan)
        if kind == REST:
            continue
        first, last = plan.first[kind], plan.first[kind + 1]
        for m in range(count):
            if m == tagged:
                continue
            member = found[m]
            key, stop = member[_KEY_FROM], member[_KEY_TO]
            # Lines of one type mostly have their members in one order.
            slot = first + guess[kind, m]
            begin = _begin(plan.key_ends, slot)
            if not _same(text, key, stop, plan.keys, begin, plan.key_ends[slot]):
                slot = first
                while slot < last:
                    begin = _begin(plan.key_ends, slot)
                    if _same(text, key, stop, plan.keys, begin, plan.key_ends[slot]):
                        break
                    slot += 1
                if slot == last:
                    kind = REST
                    break
                guess[kind, m] = slot - first
            if seen[slot] == line:
                kind = REST
                break
            seen[slot] = line
            if member[_CLASS] == NULL:
                continue
            wanted = plan.classes[slot]
            whole = wanted == NUMBER and member[_CLASS] == INTEGER
            if member[_CLASS] != wanted and not whole:
                kind = REST
                break
            spans[line, slot - first, 0] = member[_FROM]
            spans[line, slot - first, 1] = member[_TO]
        kinds[line] = kind


@_compiled
def integers(text, spans, values, valid):  # type: ignore[no-untyped-def]
    """Fill ``values`` and ``valid`` [rows] with the integers of ``spans`` [rows, 2]."""
    for row in range(len(values)):
        at, stop = spans[row]
        valid[row] = at != 0
        minus = at != 0 and text[at] == 45
        found = np.int64(0)
        for i in range(at + 1 if minus else at, stop):
            found = found * 10 + (np.int64(text[i]) - 48)
        values[row] = -found if minus else found


@_compiled
def booleans(text, spans, values, valid):  # type: ignore[no-untyped-def]
    """Fill ``values`` and ``valid`` [rows] with the booleans of ``spans`` [rows, 2]."""
    for row in range(len(values)):
        at = spans[row, 0]
        valid[row] = at != 0
        values[row] = at != 0 and text[at] == 116


@_compiled
def texts(text, spans, offsets, data, valid):  # type: ignore[no-untyped-def]
    """Copy the texts of ``spans`` [rows, 2] to ``data``, which has room for them all: the i-th
    lies between ``offsets[i]`` and ``offsets[i + 1]``."""
    out = 0
    offsets[0] = 0
    for row in range(len(valid)):
        at, stop = spans[row]
        valid[row] = at != 0
        if at < 0:
            out = _unescaped(text, -at, stop, data, out)
        else:
            for i in range(at, stop):
                data[out] = text[i]
                out += 1
        offsets[row + 1] = out


@_compiled
def _unescaped(text, at, stop, data, out):  # type: ignore[no-untyped-def]
    while at < stop:
        if text[at] != _ESCAPE:
            data[out] = text[at]
            at += 1
            out += 1
            continue
        at, code = _escape(text, at, stop)
        if code < 0x80:
            data[out] = code
            out += 1
            continue
        more = 1 if code < 0x800 else (2 if code < 0x10000 else 3)
        data[out] = 0xFF << (7 - more) & 0xFF | code >> 6 * more
        for i in range(1, more + 1):
            data[out + i] = 0x80 | code >> 6 * (more - i) & 0x3F
        out += more + 1
    return out
