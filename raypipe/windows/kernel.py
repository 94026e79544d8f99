"""The window kernel: keyed tiles, read and updated in log order.

A tile is as coarse as the finest window that still covers it needs, so a key holds few of them; a
tile that left every finer window lies wholly inside or outside each coarser one, because hops
divide each other and a key's clock never runs back. All accumulators are integers, so neither
order, partitioning nor compaction changes a bit.

One file on purpose: numba's cache notices a change of the file that holds a function, not of those
that hold what it calls.

Numba compiles this module; the functions take plain arrays. ``state.py`` owns them, ``layout.py``
writes the one that describes the others.

The words of a key lie in one block of the arena: at its end the tail (values of the last events),
before it the entries, the newest first, aligned to the tail so that there is room for newer ones.
An entry is an event or a tile. Most tiles of most keys hold few events, and few events cost less
as they came than as sums; so a tile becomes sums with as many events as make that no larger.

header   start of the tile in seconds << 24 | bits of the event << 1 | 1 if a tile
event    header, its values, further words with bits: conditions that hold, places in sketches
tile     header, counts, 128-bit sums and sums of squares, minima, maxima, bit maps, registers
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from raypipe.windows.prefetch import prefetch

SLOT_WORDS = 5
KEY, CLOCK, NEWEST, PLACE, SIZE = range(SLOT_WORDS)
"""A slot: key hash (0 is empty), clock (ms), offset of the newest event, first word of the block
<< 8 | its size class, number of the kept accumulators (0: none) << 32 | words in entries."""

CLASS_BITS, CLASS_MASK = 8, 255
COMPACT_EACH = 4
USED_BITS, USED_MASK = 32, 2**32 - 1

SLOT_BITS, SORT_BITS = 31, 11
SLOT_MASK, SORT_MASK = 2**SLOT_BITS - 1, 2**SORT_BITS - 1

BUCKET_BITS = 10
_BUCKET_SHIFT = np.uint64(64 - BUCKET_BITS)

TOP_WORDS = 5
TOP_USED, TOP_FREE, TOP_KEYS, TOP_OLD, TOP_KEPT = range(TOP_WORDS)
"""Counters: words of the arena in blocks, those of them in free blocks, keys, events too old for
any window, kept accumulators (the first are everyone's scratch)."""

START_BITS = 24
LOW_BITS = 2**START_BITS - 1
TILE = 1
HEADER_BITS = START_BITS - 1
"""Bits of an event that fit its header."""

SLOTS_AHEAD, BLOCKS_AHEAD = 16, 8
"""How many rows before its own a key's slot is fetched, and then its block: with millions of keys
a row would wait for both longer than it takes."""

READ, UPDATE, READ_AFTER = 1, 2, 4
"""What a row asks for: the value before it, to count it, the value after it."""

FULL, DONE, EXPIRED = range(3)
"""What became of an event: no room in the arena, it is in its tile, every window has left it."""

# The layout: one int64 vector. Numbers first, then rows, which it points to.
(
    SPANS, EVENT_WORDS, TILE_WORDS, TAIL_WORDS, FEW, KEEP, FLAGS_WORD, FLAGS_SHIFT, VALUES,
    COUNTS, CHANNELS, CHANNELS_AT, MAPS_AT, REGISTERS_AT,
    HOPS, REACHES, CLASSES, COUNT_ROWS, CHANNEL_ROWS, SKETCH_ROWS, SKETCHES, MARKS, MARKED,
    LASTS, LASTS_END, WANTED, LAYOUT_WORDS,
) = range(27)  # fmt: skip
"""FEW events of one start become a tile. A key with KEEP words in entries keeps an accumulator per
span between reads. VALUES are the values in an event, COUNTS and CHANNELS the counts and the
channels in a tile, _AT the words of a tile where those of a kind begin."""

CHANNEL_WORDS = 6
SUM_LO, SUM_HI, SQ_LO, SQ_HI, LEAST, MOST = range(CHANNEL_WORDS)
"""What a tile holds of one value under one condition."""

STATS = 5
SUM, MEAN, MIN, MAX, STD = range(STATS)
"""What is computed of each channel for each span. The figures of a span are its counts, STATS for
each channel, an estimate for each sketch."""

CHANNEL_ROW = 3
CHANNEL_SOURCE, CHANNEL_FLAG, CHANNEL_COUNT = range(CHANNEL_ROW)
"""A channel: word of its value in an event, its condition's bit (0: none), its count. The rows of
counts are their conditions' bits alone."""

SKETCH_ROW = 5
SKETCH_WORD, SKETCH_MARK, SKETCH_FLAG, SKETCH_SIZE, SKETCH_TABLE = range(SKETCH_ROW)
"""A sketch: its first word in a tile, the row of its mark, its condition's bit, its words or,
negative, log2 of its registers, where its estimates begin in the tables."""

MARK_ROW = 5
MARK_WORD, MARK_SHIFT, MARK_MASK, MARK_BITS, MARK_REGISTERS = range(MARK_ROW)
"""Where an event holds its place in a sketch: word, shift and mask; 0 there is no value. The
sketch has 2**MARK_BITS bits, or so many registers."""

LAST_ROW = 5
LAST_WORD, LAST_DEPTH, LAST_WIDTH, LAST_FLAG, LAST_SOURCES = range(LAST_ROW)
"""Last events: word in the tail, how many, words of each (its time, then values), its condition's
bit, where the layout lists its values."""

PLAN_ROW = 4
PLAN_WHAT, PLAN_FIRST, PLAN_SECOND, PLAN_THIRD = range(PLAN_ROW)
"""An output: the place of its figure among all spans' (each has so many), or one of the next."""
SINCE, SINCE_LAST, LAST_VALUE, DIFFERENCE = -1, -2, -3, -4
"""Of the newest event: how long ago. Of an earlier one: how long ago (word of its time in the
tail), or its value (words of both). Or a figure of a span without a shorter one."""

SCRATCH_ROWS = 3
OLDEST, HOP, SUMS = range(SCRATCH_ROWS)
"""Rows of ``edges`` for each span: the oldest second in it, the current hop, where its
accumulators are."""

# The numpy error model leaves out a check for zero at each division; no divisor here can be zero.
# Nothing here makes an array, so none needs its references counted: that took a third of a read.
_options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
compiled = njit(**_options, nogil=True)
inline = njit(**_options, inline="always")
# A call passes each array as nine words, which costs more than most bodies here: half of the time
# went into calls before LLVM was told to inline these.
inner = njit(**_options, nogil=True, forceinline=True)

_TWO_64 = 18446744073709551616.0
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_FITS = np.int64(2**62)

NO_LEAST = np.int64(2**62)
NO_MOST = np.int64(-(2**62))
NEVER = np.int64(-(2**62))

RANK_BITS = 6
RANKS = 64
_RANK_MASK = np.int64(RANKS - 1)
_HIGH_BITS = np.uint64(0x8080808080808080)
_ALPHA = 0.7213475204444817  # 1 / (2 ln 2)


@inline
def _mix(x):  # type: ignore[no-untyped-def]
    h = np.uint64(x)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@inline
def _ones(x):  # type: ignore[no-untyped-def]
    v = np.uint64(x)
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((v * np.uint64(0x0101010101010101)) >> np.uint64(56))


# Exact integers of 128 bits, as pairs of int64 words (low, high).


@inline
def add(lo, hi, other_lo, other_hi):  # type: ignore[no-untyped-def]
    """(lo, hi) + (other_lo, other_hi) modulo 2**128, as int64 words."""
    s = np.uint64(lo) + np.uint64(other_lo)
    carry = np.int64(1) if s < np.uint64(lo) else np.int64(0)
    return np.int64(s), hi + other_hi + carry


@inline
def negate(lo, hi):  # type: ignore[no-untyped-def]
    """-(lo, hi) modulo 2**128."""
    return add(~lo, ~hi, np.int64(1), np.int64(0))


@inline
def multiply(a, b):  # type: ignore[no-untyped-def]
    """Unsigned 64 x 64 -> 128 bits."""
    a_lo, a_hi = a & _LOW, a >> _32
    b_lo, b_hi = b & _LOW, b >> _32
    low = a_lo * b_lo
    middle = a_hi * b_lo + (low >> _32)
    cross = a_lo * b_hi + (middle & _LOW)
    return (low & _LOW) | (cross << _32), a_hi * b_hi + (middle >> _32) + (cross >> _32)


@compiled
def scale(lo, hi, factor):  # type: ignore[no-untyped-def]
    """(lo, hi) * factor modulo 2**128 for a signed 64-bit factor."""
    size = np.uint64(factor if factor >= 0 else -factor)
    p_lo, p_hi = multiply(np.uint64(lo), size)
    p_hi += np.uint64(hi) * size
    if factor >= 0:
        return np.int64(p_lo), np.int64(p_hi)
    return negate(np.int64(p_lo), np.int64(p_hi))


@inner
def to_float(lo, hi):  # type: ignore[no-untyped-def]
    """A signed 128-bit number as float64; exact while it fits 53 bits."""
    if hi == (lo >> np.int64(63)):
        return np.float64(lo)
    if hi < 0:
        n_lo, n_hi = negate(lo, hi)
        return -(np.float64(np.uint64(n_hi)) * _TWO_64 + np.float64(np.uint64(n_lo)))
    return np.float64(hi) * _TWO_64 + np.float64(np.uint64(lo))


@inner
def deviation(count, s_lo, s_hi, q_lo, q_hi):  # type: ignore[no-untyped-def]
    """Population standard deviation from exact sums.

    Shifted form: with an integer m near the mean, sum (x-m)^2 = q - 2 m s + n m^2 is an exact
    integer, and what is left to subtract is at most a quarter. While q and s fit 62 bits, 64-bit
    arithmetic that wraps around gives the same integer, because the result is small.
    """
    n = np.float64(count)
    m = np.int64(np.rint(to_float(s_lo, s_hi) / n))
    if q_hi == 0 and 0 <= q_lo < _FITS and s_hi == s_lo >> np.int64(63):
        squares = np.float64(q_lo - 2 * m * s_lo + count * m * m)
        rest = np.float64(s_lo - count * m) / n
    else:
        a_lo, a_hi = scale(s_lo, s_hi, -2 * m)
        size = np.uint64(m if m >= 0 else -m)
        b_lo, b_hi = multiply(size, size)
        b_lo, b_hi = scale(np.int64(b_lo), np.int64(b_hi), count)
        t_lo, t_hi = add(q_lo, q_hi, a_lo, a_hi)
        t_lo, t_hi = add(t_lo, t_hi, b_lo, b_hi)
        squares = to_float(t_lo, t_hi)
        r_lo, r_hi = scale(np.int64(count), np.int64(0), -m)
        r_lo, r_hi = add(s_lo, s_hi, r_lo, r_hi)
        rest = to_float(r_lo, r_hi) / n
    variance = squares / n - rest * rest
    return np.sqrt(variance) if variance > 0.0 else 0.0


# Sketches: bit maps (linear counting) and registers (HyperLogLog), eight to a word.


@inline
def _place(hashed, bits, registers):  # type: ignore[no-untyped-def]
    """What an event keeps of a value's hash: 1 + the bit, or register << RANK_BITS | rank."""
    h = _mix(hashed)
    place = np.int64(h & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))
    if registers == 0:
        return place + 1
    rest = h >> np.uint64(bits)
    rank = np.int64(65) - bits
    if rest != 0:
        rank = _ones((rest & (~rest + np.uint64(1))) - np.uint64(1)) + 1
    return (place << np.int64(RANK_BITS)) | rank


@inner
def _raise(into, a, place):  # type: ignore[no-untyped-def]
    """Raise one register of the sketch at into[a] to a rank."""
    rank, register = place & _RANK_MASK, place >> np.int64(RANK_BITS)
    word = a + (register >> 3)
    shift = np.uint64((register & 7) * 8)
    now = np.uint64(into[word])
    known = (now >> shift) & np.uint64(255)
    if np.uint64(rank) > known:
        into[word] = np.int64(now + ((np.uint64(rank) - known) << shift))


@inline
def _larger_bytes(x, y):  # type: ignore[no-untyped-def]
    """The larger byte of each pair in two words whose bytes are all under 128."""
    a, b = np.uint64(x), np.uint64(y)
    m = ((a | _HIGH_BITS) - b) & _HIGH_BITS
    m |= m - (m >> np.uint64(7))
    return np.int64((a & m) | (b & ~m))


@compiled
def cardinality(sums, a, bits, ranks):  # type: ignore[no-untyped-def]
    """Estimate of 2**bits registers at sums[a]: the improved raw estimator of Ertl 2017.

    ``ranks`` is scratch. Only operations that IEEE 754 rounds exactly.
    """
    most = 65 - bits
    for k in range(RANKS):
        ranks[k] = 0
    for w in range(a, a + (np.int64(1) << bits) // 8):
        word = np.uint64(sums[w])
        if word == 0:
            ranks[0] += 8
        else:
            for _ in range(8):
                ranks[np.int64(word & np.uint64(255))] += 1
                word >>= np.uint64(8)
    m = np.float64(np.int64(1) << bits)
    if ranks[0] == np.int64(1) << bits:
        return 0.0
    # tau: what registers at their highest rank hide
    z = 0.0
    x = 1.0 - np.float64(ranks[most]) / m
    if 0.0 < x < 1.0:
        y, z, before = 1.0, 1.0 - x, -1.0
        while z != before:
            x = np.sqrt(x)
            before = z
            y *= 0.5
            z -= (1.0 - x) * (1.0 - x) * y
        z = z / 3.0
    z *= m
    for k in range(most - 1, 0, -1):
        z = 0.5 * (z + np.float64(ranks[k]))
    # sigma: what empty registers tell
    x = np.float64(ranks[0]) / m
    y, s, before = 1.0, x, -1.0
    while s != before:
        x *= x
        before = s
        s += x * y
        y += y
    z += m * s
    return _ALPHA * m * m / z


@inner
def numbers(lay):  # type: ignore[no-untyped-def]
    """The layout's numbers as a tuple: the compiler knows that no write to an array changes it."""
    return (
        lay[0], lay[1], lay[2], lay[3], lay[4], lay[5], lay[6], lay[7], lay[8], lay[9], lay[10],
        lay[11], lay[12], lay[13], lay[14], lay[15], lay[16], lay[17], lay[18], lay[19], lay[20],
        lay[21], lay[22], lay[23], lay[24], lay[25],
    )  # fmt: skip


# Accumulators: rows of TILE_WORDS in any array, the header included.


@inner
def _clear(into, a, dims):  # type: ignore[no-untyped-def]
    for w in range(1, dims[TILE_WORDS]):
        into[a + w] = 0
    for v in range(dims[CHANNELS]):
        at = a + dims[CHANNELS_AT] + v * CHANNEL_WORDS
        into[at + LEAST] = NO_LEAST
        into[at + MOST] = NO_MOST


@inner
def _copy(into, a, words, b, size):  # type: ignore[no-untyped-def]
    for w in range(size):
        into[a + w] = words[b + w]


@inner
def _merge(into, a, words, b, dims):  # type: ignore[no-untyped-def]
    """Add the tile at words[b] to the accumulators at into[a]."""
    for w in range(1, dims[CHANNELS_AT]):
        into[a + w] += words[b + w]
    for v in range(dims[CHANNELS]):
        to = a + dims[CHANNELS_AT] + v * CHANNEL_WORDS
        at = b + dims[CHANNELS_AT] + v * CHANNEL_WORDS
        into[to + SUM_LO], into[to + SUM_HI] = add(
            into[to + SUM_LO], into[to + SUM_HI], words[at + SUM_LO], words[at + SUM_HI]
        )
        into[to + SQ_LO], into[to + SQ_HI] = add(
            into[to + SQ_LO], into[to + SQ_HI], words[at + SQ_LO], words[at + SQ_HI]
        )
        into[to + LEAST] = min(into[to + LEAST], words[at + LEAST])
        into[to + MOST] = max(into[to + MOST], words[at + MOST])
    for w in range(dims[MAPS_AT], dims[REGISTERS_AT]):
        into[a + w] |= words[b + w]
    for w in range(dims[REGISTERS_AT], dims[TILE_WORDS]):
        into[a + w] = _larger_bytes(into[a + w], words[b + w])


@inline
def _holds(flags, flag):  # type: ignore[no-untyped-def]
    return flag == 0 or flags & flag != 0


@inner
def _add(into, a, words, b, end, lay, dims):  # type: ignore[no-untyped-def]
    """Add the events at words[b:end] to the accumulators at into[a]."""
    size = dims[EVENT_WORDS]
    flag_word, shift = dims[FLAGS_WORD], dims[FLAGS_SHIFT]
    into[a + 1] += (end - b) // size
    for c in range(1, dims[COUNTS]):
        flag, n = lay[dims[COUNT_ROWS] + c], np.int64(0)
        for e in range(b, end, size):
            n += (words[e + flag_word] >> shift) & flag != 0
        into[a + 1 + c] += n
    for v in range(dims[CHANNELS]):
        row = dims[CHANNEL_ROWS] + v * CHANNEL_ROW
        source, flag = lay[row + CHANNEL_SOURCE], lay[row + CHANNEL_FLAG]
        to = a + dims[CHANNELS_AT] + v * CHANNEL_WORDS
        s_lo, s_hi = into[to + SUM_LO], into[to + SUM_HI]
        q_lo, q_hi = into[to + SQ_LO], into[to + SQ_HI]
        least, most = into[to + LEAST], into[to + MOST]
        for e in range(b, end, size):
            if flag == 0 or (words[e + flag_word] >> shift) & flag != 0:
                x = words[e + source]
                s_lo, s_hi = add(s_lo, s_hi, x, x >> np.int64(63))
                magnitude = np.uint64(x if x >= 0 else -x)
                if magnitude <= _LOW:
                    q_lo, q_hi = add(q_lo, q_hi, np.int64(magnitude * magnitude), np.int64(0))
                else:
                    lo, hi = multiply(magnitude, magnitude)
                    q_lo, q_hi = add(q_lo, q_hi, np.int64(lo), np.int64(hi))
                least, most = min(least, x), max(most, x)
        into[to + SUM_LO], into[to + SUM_HI] = s_lo, s_hi
        into[to + SQ_LO], into[to + SQ_HI] = q_lo, q_hi
        into[to + LEAST], into[to + MOST] = least, most
    for d in range(dims[SKETCHES]):
        row = dims[SKETCH_ROWS] + d * SKETCH_ROW
        m, flag = lay[row + SKETCH_MARK], lay[row + SKETCH_FLAG]
        word, right, mask = lay[m + MARK_WORD], lay[m + MARK_SHIFT], lay[m + MARK_MASK]
        to, mapped = a + lay[row], lay[row + SKETCH_SIZE] > 0
        for e in range(b, end, size):
            place = (words[e + word] >> right) & mask
            if place != 0 and (flag == 0 or (words[e + flag_word] >> shift) & flag != 0):
                if mapped:
                    bit = place - 1
                    into[to + (bit >> 6)] |= np.int64(1) << (bit & np.int64(63))
                else:
                    _raise(into, to, place)


@inner
def _take(event, amounts, hashes, flags, row, lay, dims):  # type: ignore[no-untyped-def]
    """Write a row as an event without a start; everything else of it is final."""
    for w in range(dims[EVENT_WORDS]):
        event[w] = 0
    for v in range(dims[VALUES]):
        event[1 + v] = amounts[row, v]
    event[dims[FLAGS_WORD]] |= flags[row] << dims[FLAGS_SHIFT]
    for d in range(dims[MARKED]):
        if hashes[row, d] != 0:
            m = dims[MARKS] + d * MARK_ROW
            place = _place(hashes[row, d], lay[m + MARK_BITS], lay[m + MARK_REGISTERS])
            event[lay[m + MARK_WORD]] |= place << lay[m + MARK_SHIFT]


# Spans: the oldest second in each.


@inner
def _set_edges(now, edges, lay, dims):  # type: ignore[no-untyped-def]
    """Find the oldest second in each window at a time (s).

    Rows come in about the order of time, so most hops are those of the row before.
    """
    for w in range(dims[SPANS]):
        hop = lay[dims[HOPS] + w]
        if now < edges[HOP, w] or now >= edges[HOP, w] + hop:
            edges[HOP, w] = (now // hop) * hop
            edges[OLDEST, w] = edges[HOP, w] - (lay[dims[REACHES] + w] - 1) * hop


@inner
def _zone(second, edges, lay, dims):  # type: ignore[no-untyped-def]
    """Hop of the finest window that still holds a second; 0 when every window has left it."""
    w = 0
    while w < dims[SPANS] and second < edges[OLDEST, w]:
        w += 1
    return lay[dims[HOPS] + w] if w < dims[SPANS] else np.int64(0)


# Entries of a key.


@compiled
def _compact(arena, first, end, edges, tile, lay):  # type: ignore[no-untyped-def]
    """Merge entries in place as far as the edges allow; returns the new first word.

    From the newest to the oldest, so the result never reaches beyond what has been read.
    """
    dims = numbers(lay)
    i = kept = run = first
    start, events = NEVER, 0  # of the run of equal starts; a tile counts as no events
    while i < end:
        header = arena[i]
        hop = _zone(header >> START_BITS, edges, lay, dims)
        if hop == 0:
            break
        began = ((header >> START_BITS) // hop) * hop
        whole = header & TILE != 0
        size = dims[TILE_WORDS] if whole else dims[EVENT_WORDS]
        if kept == first or began != start:
            run, start, events = kept, began, 0 if whole else 1
            _copy(arena, kept, arena, i, size)
            arena[kept] = (began << START_BITS) | (header & LOW_BITS)
            kept += size
        elif events == 0:
            if whole:
                _merge(arena, run, arena, i, dims)
            else:
                _add(arena, run, arena, i, i + size, lay, dims)
        elif not whole and events + 1 < dims[FEW]:
            events += 1
            _copy(arena, kept, arena, i, size)
            arena[kept] = (began << START_BITS) | (header & LOW_BITS)
            kept += size
        else:
            _clear(tile, 0, dims)
            if whole:
                _merge(tile, 0, arena, i, dims)
            else:
                _add(tile, 0, arena, i, i + size, lay, dims)
            _add(tile, 0, arena, run, kept, lay, dims)
            tile[0] = (began << START_BITS) | TILE
            _copy(arena, run, tile, 0, dims[TILE_WORDS])
            kept, events = run + dims[TILE_WORDS], 0
        i += size
    shift = end - kept
    if shift > 0:
        for w in range(kept - 1, first - 1, -1):
            arena[w + shift] = arena[w]
    return first + shift


@inner
def _sum_back(words, i, end, oldest, into, a, lay, dims):  # type: ignore[no-untyped-def]
    """Add entries from words[i] on while they are young enough; returns the first that is not."""
    while i < end and words[i] >> START_BITS >= oldest:
        if words[i] & TILE != 0:
            _merge(into, a, words, i, dims)
            i += dims[TILE_WORDS]
        else:
            begin = i
            while i < end and words[i] >> START_BITS >= oldest and words[i] & TILE == 0:
                i += dims[EVENT_WORDS]
            _add(into, a, words, begin, i, lay, dims)
    return i


@inner
def _read(arena, first, end, edges, sums, lay, dims):  # type: ignore[no-untyped-def]
    """Sum a key's entries up, from the newest back: windows nest.

    A span that adds nothing to a finer one shares its accumulators.
    """
    i, a, size = first, np.int64(0), dims[TILE_WORDS]
    _clear(sums, a, dims)
    for w in range(dims[SPANS]):
        if i < end and arena[i] >> START_BITS >= edges[OLDEST, w]:
            if w > 0:
                _copy(sums, a + size, sums, a, size)
                a += size
            i = _sum_back(arena, i, end, edges[OLDEST, w], sums, a, lay, dims)
        edges[SUMS, w] = a


@inner
def _refresh(arena, first, end, edges, sums, base, lay, dims):  # type: ignore[no-untyped-def]
    """The same for kept accumulators: only spans whose edge has moved are summed again.

    The header of an accumulator is the edge that it is right for. Hops divide each other, so
    behind the first edge that stands still all others do.
    """
    i, a, w, size = first, base, 0, dims[TILE_WORDS]
    while w < dims[SPANS] and sums[a] != edges[OLDEST, w]:
        if w == 0:
            _clear(sums, a, dims)
        else:
            _copy(sums, a, sums, a - size, size)
        i = _sum_back(arena, i, end, edges[OLDEST, w], sums, a, lay, dims)
        sums[a] = edges[OLDEST, w]
        a += size
        w += 1
    for x in range(dims[SPANS]):
        edges[SUMS, x] = base + x * size


# What is read from accumulators.


@inner
def _figures(sums, a, wanted, tables, ranks, figures, k, lay, dims):  # type: ignore[no-untyped-def]
    """Every statistic of the accumulators at sums[a] from figures[k] on.

    What costs much is computed only where it is wanted.
    """
    for c in range(dims[COUNTS]):
        figures[k + c] = np.float64(sums[a + 1 + c])
    k += dims[COUNTS]
    wanted += dims[COUNTS]
    for v in range(dims[CHANNELS]):
        at = a + dims[CHANNELS_AT] + v * CHANNEL_WORDS
        n = sums[a + 1 + lay[dims[CHANNEL_ROWS] + v * CHANNEL_ROW + CHANNEL_COUNT]]
        s_lo, s_hi = sums[at + SUM_LO], sums[at + SUM_HI]
        total = to_float(s_lo, s_hi)
        figures[k + SUM] = total
        if n > 0:
            figures[k + MEAN] = total / np.float64(n)
            figures[k + MIN] = np.float64(sums[at + LEAST])
            figures[k + MAX] = np.float64(sums[at + MOST])
            if lay[wanted + STD] != 0:
                figures[k + STD] = deviation(n, s_lo, s_hi, sums[at + SQ_LO], sums[at + SQ_HI])
        else:
            for x in range(MEAN, STATS):
                figures[k + x] = np.nan
        k += STATS
        wanted += STATS
    for d in range(dims[SKETCHES]):
        row = dims[SKETCH_ROWS] + d * SKETCH_ROW
        size = lay[row + SKETCH_SIZE]
        if lay[wanted + d] != 0:
            if size > 0:
                ones = np.int64(0)
                for x in range(a + lay[row], a + lay[row] + size):
                    ones += _ones(sums[x])
                figures[k + d] = tables[lay[row + SKETCH_TABLE] + ones]
            else:
                figures[k + d] = cardinality(sums, a + lay[row], -size, ranks)


@inner
def _difference(sums, a, b, k, lay, dims):  # type: ignore[no-untyped-def]
    """Count, sum or mean of the span at sums[a] without the shorter one at sums[b]."""
    if k < dims[COUNTS]:
        value = np.float64(sums[a + 1 + k] - sums[b + 1 + k])
    else:
        v = (k - dims[COUNTS]) // STATS
        w = dims[CHANNELS_AT] + v * CHANNEL_WORDS
        less_lo, less_hi = negate(sums[b + w + SUM_LO], sums[b + w + SUM_HI])
        lo, hi = add(sums[a + w + SUM_LO], sums[a + w + SUM_HI], less_lo, less_hi)
        value = to_float(lo, hi)
        if k - dims[COUNTS] - v * STATS == MEAN:
            count = 1 + lay[dims[CHANNEL_ROWS] + v * CHANNEL_ROW + CHANNEL_COUNT]
            n = sums[a + count] - sums[b + count]
            return value / np.float64(n) if n > 0 else np.nan
    return value


@inner
def _emit(  # type: ignore[no-untyped-def]
    sums, edges, arena, tail, clock, since, plan, figures, tables, ranks, out, row, lay, dims
):
    """Write a row's outputs; ``tail`` is where the key's begins, -1 for an unknown key."""
    size = figures.shape[0] // dims[SPANS]
    k, wanted = 0, dims[WANTED]
    for w in range(dims[SPANS]):
        a = edges[SUMS, w]
        # Windows nest: as many events are the same events.
        if lay[wanted] != 0 and sums[a + 1] == sums[edges[SUMS, w - 1] + 1]:
            for x in range(k, k + size):
                figures[x] = figures[x - size]
        else:
            _figures(sums, a, wanted + 1, tables, ranks, figures, k, lay, dims)
        k += size
        wanted += 1 + size
    for c in range(plan.shape[0]):
        what = plan[c, PLAN_WHAT]
        if what >= 0:
            out[row, c] = figures[what]
        elif what == SINCE:
            out[row, c] = since
        elif what == DIFFERENCE:
            a, b = edges[SUMS, plan[c, PLAN_SECOND]], edges[SUMS, plan[c, PLAN_THIRD]]
            out[row, c] = _difference(sums, a, b, plan[c, PLAN_FIRST], lay, dims)
        elif tail < 0 or arena[tail + plan[c, PLAN_FIRST]] == NEVER:
            out[row, c] = np.nan
        elif what == SINCE_LAST:
            out[row, c] = np.float64(clock - arena[tail + plan[c, PLAN_FIRST]]) / 1000.0
        else:
            out[row, c] = np.float64(arena[tail + plan[c, PLAN_SECOND]])


# Last events, in the tail of a key's block: the newest by event time, then by arrival, first.


@inner
def _forget(arena, tail, dims):  # type: ignore[no-untyped-def]
    for w in range(tail, tail + dims[TAIL_WORDS]):
        arena[w] = NEVER


@compiled
def _remember(arena, tail, time, flags, amounts, row, lay):  # type: ignore[no-untyped-def]
    dims = numbers(lay)
    for r in range(dims[LASTS], dims[LASTS_END], LAST_ROW):
        if not _holds(flags, lay[r + LAST_FLAG]):
            continue
        width = lay[r + LAST_WIDTH]
        begin = tail + lay[r + LAST_WORD]
        end = begin + lay[r + LAST_DEPTH] * width
        at = begin
        while at < end and arena[at] > time:
            at += width
        if at < end:
            for w in range(end - 1, at + width - 1, -1):
                arena[w] = arena[w - width]
            arena[at] = time
            for v in range(1, width):
                arena[at + v] = amounts[row, lay[lay[r + LAST_SOURCES] + v - 1]]


# Slots and blocks.


@inline
def _home(slots, key):  # type: ignore[no-untyped-def]
    """Index of the slot where a key belongs unless another took it."""
    return np.int64(((_mix(key) >> _32) * np.uint64(slots.shape[0])) >> _32)


@inner
def find(slots, key):  # type: ignore[no-untyped-def]
    """Index of a key's slot, or of the empty slot where it belongs."""
    at = _home(slots, key)
    while slots[at, KEY] != key and slots[at, KEY] != 0:
        at += 1
        if at == slots.shape[0]:
            at = np.int64(0)
    return at


@inner
def _fetch_slot(slots, at):  # type: ignore[no-untyped-def]
    """Have a slot on its way from memory."""
    prefetch(slots, at * SLOT_WORDS)
    prefetch(slots, at * SLOT_WORDS + SLOT_WORDS - 1)


@inner
def _fetch_block(slots, arena, at, lay, dims):  # type: ignore[no-untyped-def]
    """Have the newest entries of a slot's key on their way, and its tail."""
    end = _block_end(slots[at, PLACE], lay, dims)
    prefetch(arena, end - (slots[at, SIZE] & USED_MASK))
    if dims[TAIL_WORDS] > 0:
        prefetch(arena, end)


@inner
def _fetch_listed(slots, arena, order, i, lay, dims):  # type: ignore[no-untyped-def]
    """Have on its way what comes after place i of a list of slots."""
    if i + SLOTS_AHEAD < order.shape[0]:
        _fetch_slot(slots, order[i + SLOTS_AHEAD])
    if i + BLOCKS_AHEAD < order.shape[0]:
        _fetch_block(slots, arena, order[i + BLOCKS_AHEAD], lay, dims)


@compiled
def clocks_of(slots, keys, out):  # type: ignore[no-untyped-def]
    """The clock of each key in ms; NEVER for one that is not known."""
    for i in range(keys.shape[0]):
        if i + SLOTS_AHEAD < keys.shape[0]:
            _fetch_slot(slots, _home(slots, keys[i + SLOTS_AHEAD]))
        at = find(slots, keys[i])
        out[i] = slots[at, CLOCK] if slots[at, KEY] == keys[i] else NEVER


@inner
def crowded(slots, top):  # type: ignore[no-untyped-def]
    """Whether one more key would make probing slow."""
    return (top[TOP_KEYS] + 1) * 4 > slots.shape[0] * 3


@inner
def _block_end(place, lay, dims):  # type: ignore[no-untyped-def]
    """Where a block's entries end and its tail begins."""
    return (place >> CLASS_BITS) + lay[dims[CLASSES] + (place & CLASS_MASK)] - dims[TAIL_WORDS]


@compiled
def reserve(arena, free, top, words, least, lay):  # type: ignore[no-untyped-def]
    """Place of a block of at least so many words and that class; -1 when the arena is full."""
    dims = numbers(lay)
    size_class = least
    while lay[dims[CLASSES] + size_class] < words:
        size_class += 1
    size = lay[dims[CLASSES] + size_class]
    block = free[size_class]
    if block >= 0:
        free[size_class] = arena[block]
        top[TOP_FREE] -= size
    else:
        block = top[TOP_USED]
        if block + size > arena.shape[0]:
            return np.int64(-1)
        top[TOP_USED] = block + size
    return (block << CLASS_BITS) | size_class


@compiled
def _enlarge(slots, at, arena, free, top, need, lay):  # type: ignore[no-untyped-def]
    """Move a key to a block with room for so many more words; False when the arena is full."""
    dims = numbers(lay)
    used, old, tail = slots[at, SIZE] & USED_MASK, slots[at, PLACE], dims[TAIL_WORDS]
    size_class = old & CLASS_MASK
    new = reserve(arena, free, top, used + need + tail, size_class + 1, lay)
    if new < 0:
        return False
    _copy(
        arena,
        _block_end(new, lay, dims) - used,
        arena,
        _block_end(old, lay, dims) - used,
        used + tail,
    )
    arena[old >> CLASS_BITS] = free[size_class]
    free[size_class] = old >> CLASS_BITS
    top[TOP_FREE] += lay[dims[CLASSES] + size_class]
    slots[at, PLACE] = new
    return True


@compiled
def _make_room(slots, at, arena, free, top, need, edges, tile, lay):  # type: ignore[no-untyped-def]
    """Room for so many more words in a key's block; False when the arena is full.

    Compacting looks at every entry, so it is done when it surely frees some or, in the long run,
    once in a few times that the block grows.
    """
    dims = numbers(lay)
    begin, end = slots[at, PLACE] >> CLASS_BITS, _block_end(slots[at, PLACE], lay, dims)
    used = slots[at, SIZE] & USED_MASK
    oldest = p = end - used
    while p < end:
        oldest = p
        p += dims[TILE_WORDS] if arena[p] & TILE != 0 else dims[EVENT_WORDS]
    expired = _zone(arena[oldest] >> START_BITS, edges, lay, dims) == 0
    if expired or (slots[at, PLACE] & CLASS_MASK) % COMPACT_EACH == COMPACT_EACH - 1:
        kept = end - _compact(arena, end - used, end, edges, tile, lay)
        slots[at, SIZE] -= used - kept
        free_words = end - begin - kept
        # Compacting again soon would cost more than a larger block.
        if free_words >= need and free_words * 8 >= end - begin:
            return True
    return _enlarge(slots, at, arena, free, top, need, lay)


@compiled
def _sum_up(arena, first, p, q, event, tile, lay):  # type: ignore[no-untyped-def]
    """Make the events at arena[p:q], and one more, a tile that ends at q; the newer move along."""
    dims = numbers(lay)
    whole = dims[TILE_WORDS]
    _clear(tile, 0, dims)
    tile[0] = (event[0] & ~LOW_BITS) | TILE
    _add(tile, 0, event, 0, dims[EVENT_WORDS], lay, dims)
    _add(tile, 0, arena, p, q, lay, dims)
    _copy(arena, first - (whole - (q - p)), arena, first, p - first)
    _copy(arena, q - whole, tile, 0, whole)


@inner
def _insert(slots, at, arena, free, top, second, edges, event, tile, lay, dims):  # type: ignore[no-untyped-def]
    """Put an event among a key's entries: DONE, EXPIRED if every window has left it, or FULL."""
    hop = _zone(second, edges, lay, dims)
    if hop == 0:
        return EXPIRED
    start = (second // hop) * hop
    event[0] = (start << START_BITS) | (event[0] & LOW_BITS)
    size, whole = dims[EVENT_WORDS], dims[TILE_WORDS]
    while True:
        end = _block_end(slots[at, PLACE], lay, dims)
        first = end - (slots[at, SIZE] & USED_MASK)
        p = first
        while p < end and arena[p] >> START_BITS > start:
            p += whole if arena[p] & TILE != 0 else size
        q = p
        while q < end and arena[q] >> START_BITS == start and arena[q] & TILE == 0:
            q += size
        if q < end and arena[q] >> START_BITS == start:
            _add(arena, q, event, 0, size, lay, dims)
            return DONE
        few = q - p < (dims[FEW] - 1) * size
        need = size if few else whole - (q - p)
        if first - need >= slots[at, PLACE] >> CLASS_BITS:
            if few:
                _copy(arena, first - need, arena, first, p - first)
                _copy(arena, p - need, event, 0, size)
            else:
                _sum_up(arena, first, p, q, event, tile, lay)
            slots[at, SIZE] += need
            return DONE
        if not _make_room(slots, at, arena, free, top, need, edges, tile, lay):
            return FULL


@compiled
def process(  # type: ignore[no-untyped-def]
    slots, arena, sums, free, top, lay, plan, tables, edges, figures, ranks, event, tile, start,
    keys, times, offsets, modes, amounts, hashes, flags, out, newest, clocks,
):  # fmt: skip
    """Run rows from ``start`` on in log order; returns the first row not done.

    Less than the number of rows n means that slots, arena or kept accumulators must grow before
    that row. ``out`` holds values of rows that read, then, from its row n on, of rows that read
    after their update; ``newest`` is filled for the first and ``clocks`` for the second.
    ``sums`` [kept * spans * TILE_WORDS] holds accumulators; ``edges``, ``figures``, ``ranks``,
    ``event`` and ``tile`` are scratch.
    """
    dims = numbers(lay)
    kept_words = dims[SPANS] * dims[TILE_WORDS]
    for i in range(start, keys.shape[0]):
        if crowded(slots, top) or (top[TOP_KEPT] + 1) * kept_words > sums.shape[0]:
            return i
        if i + SLOTS_AHEAD < keys.shape[0]:
            _fetch_slot(slots, _home(slots, keys[i + SLOTS_AHEAD]))
        if i + BLOCKS_AHEAD < keys.shape[0]:
            _fetch_block(slots, arena, find(slots, keys[i + BLOCKS_AHEAD]), lay, dims)
        key, time, mode = keys[i], times[i], modes[i]
        if key == 0:
            if mode & READ:
                newest[i] = -1
                for c in range(plan.shape[0]):
                    out[i, c] = np.nan
            continue
        at = find(slots, key)
        known = slots[at, KEY] == key
        clock, since, tail, used, base = time, np.nan, np.int64(-1), np.int64(0), np.int64(0)
        newest[i] = -1
        if known:
            clock = max(slots[at, CLOCK], time)
            since = np.float64(clock - slots[at, CLOCK]) / 1000.0
            newest[i] = slots[at, NEWEST]
            tail = _block_end(slots[at, PLACE], lay, dims)
            used = slots[at, SIZE] & USED_MASK
            base = (slots[at, SIZE] >> USED_BITS) * kept_words
        _set_edges(clock // 1000, edges, lay, dims)
        row, phase = i, READ
        while True:
            if mode & phase:
                if base > 0:
                    _refresh(arena, tail - used, tail, edges, sums, base, lay, dims)
                else:
                    _read(arena, tail - used, tail, edges, sums, lay, dims)
                _emit(
                    sums, edges, arena, tail, clock, since, plan, figures, tables, ranks, out, row,
                    lay, dims,
                )  # fmt: skip
            if phase == READ_AFTER or not mode & UPDATE:
                break
            if not known:
                place = reserve(arena, free, top, np.int64(0), np.int64(0), lay)
                if place < 0:
                    return i
                slots[at, KEY], slots[at, CLOCK], slots[at, NEWEST] = key, NEVER, -1
                slots[at, PLACE], slots[at, SIZE] = place, 0
                _forget(arena, _block_end(place, lay, dims), dims)
                top[TOP_KEYS] += 1
            second = time // 1000
            _take(event, amounts, hashes, flags, i, lay, dims)
            done = _insert(slots, at, arena, free, top, second, edges, event, tile, lay, dims)
            if done == FULL:
                return i
            slots[at, CLOCK] = clock
            slots[at, NEWEST] = offsets[i]
            tail = _block_end(slots[at, PLACE], lay, dims)
            used = slots[at, SIZE] & USED_MASK
            if dims[TAIL_WORDS] > 0:
                _remember(arena, tail, time, flags[i], amounts, i, lay)
            if done == EXPIRED:
                top[TOP_OLD] += 1
            elif base > 0:
                for w in range(dims[SPANS]):
                    a = base + w * dims[TILE_WORDS]
                    # A reader ahead of the key's clock left an edge that comes true later.
                    if edges[OLDEST, w] <= sums[a] <= second:
                        _add(sums, a, event, 0, dims[EVENT_WORDS], lay, dims)
            elif used >= dims[KEEP]:
                slots[at, SIZE] += top[TOP_KEPT] << USED_BITS
                base = top[TOP_KEPT] * kept_words
                top[TOP_KEPT] += 1
                for w in range(dims[SPANS]):
                    sums[base + w * dims[TILE_WORDS]] = NEVER
            if not mode & READ_AFTER:
                break
            row, phase, since = keys.shape[0] + i, READ_AFTER, 0.0
            clocks[i] = clock
    return keys.shape[0]


# Snapshots and growth.


@compiled
def select(slots, first, stop, out):  # type: ignore[no-untyped-def]
    """Note the slots whose keys' top BUCKET_BITS bits are in [first, stop); returns how many."""
    count = 0
    for at in range(slots.shape[0]):
        bucket = np.int64(np.uint64(slots[at, KEY]) >> _BUCKET_SHIFT)
        if slots[at, KEY] != 0 and first <= bucket < stop:
            out[count] = at
            count += 1
    return count


@compiled
def canonical_sizes(slots, order, arena, lay, edges, tile, out):  # type: ignore[no-untyped-def]
    """Bring every key of ``order`` (slot indices) into its one form and note its words."""
    dims = numbers(lay)
    for i in range(order.shape[0]):
        _fetch_listed(slots, arena, order, i, lay, dims)
        at = order[i]
        end = _block_end(slots[at, PLACE], lay, dims)
        used = slots[at, SIZE] & USED_MASK
        _set_edges(slots[at, CLOCK] // 1000, edges, lay, dims)
        first = _compact(arena, end - used, end, edges, tile, lay)
        slots[at, SIZE] -= used - (end - first)
        _sort_events(arena, first, end, lay)
        out[i] = end - first + dims[TAIL_WORDS]


@compiled
def _sort_events(arena, first, end, lay):  # type: ignore[no-untyped-def]
    """Order the events of each start by their words: how they came changes no value."""
    dims = numbers(lay)
    size = dims[EVENT_WORDS]
    p = first
    while p < end:
        if arena[p] & TILE != 0:
            p += dims[TILE_WORDS]
            continue
        q, start = p + size, arena[p] >> START_BITS
        while q < end and arena[q] & TILE == 0 and arena[q] >> START_BITS == start:
            q += size
        gap = (q - p) // size // 2
        while gap > 0:
            for i in range(p + gap * size, q, size):
                j = i
                while j - gap * size >= p and _later(arena, j - gap * size, j, size):
                    for w in range(size):
                        x = arena[j + w]
                        arena[j + w] = arena[j + w - gap * size]
                        arena[j + w - gap * size] = x
                    j -= gap * size
            gap //= 2
        p = q


@inner
def _later(words, a, b, size):  # type: ignore[no-untyped-def]
    w = 0
    while w < size - 1 and words[a + w] == words[b + w]:
        w += 1
    return words[a + w] > words[b + w]


@compiled
def gather(slots, order, arena, lay, out):  # type: ignore[no-untyped-def]
    """Copy the words of every key of ``order`` one after the other."""
    dims = numbers(lay)
    to = 0
    for i in range(order.shape[0]):
        _fetch_listed(slots, arena, order, i, lay, dims)
        end = _block_end(slots[order[i], PLACE], lay, dims)
        used = slots[order[i], SIZE] & USED_MASK
        _copy(out, to, arena, end - used, used + dims[TAIL_WORDS])
        to += used + dims[TAIL_WORDS]


@compiled
def scatter(slots, arena, free, top, lay, start, keys, clocks, newest, ends, words):  # type: ignore[no-untyped-def]
    """Insert keys with their words from ``start`` on; returns the first key not done.

    Returns -1 when a key is already there.
    """
    dims = numbers(lay)
    for i in range(start, keys.shape[0]):
        if crowded(slots, top):
            return i
        at = find(slots, keys[i])
        if slots[at, KEY] == keys[i]:
            return np.int64(-1)
        size = ends[i + 1] - ends[i]
        place = reserve(arena, free, top, size, np.int64(0), lay)
        if place < 0:
            return i
        slots[at, KEY], slots[at, CLOCK], slots[at, NEWEST] = keys[i], clocks[i], newest[i]
        slots[at, PLACE], slots[at, SIZE] = place, size - dims[TAIL_WORDS]
        _copy(arena, _block_end(place, lay, dims) + dims[TAIL_WORDS] - size, words, ends[i], size)
        top[TOP_KEYS] += 1
    return keys.shape[0]


@compiled
def rehash(old, new):  # type: ignore[no-untyped-def]
    """Move every used slot into a larger table."""
    for i in range(old.shape[0]):
        if i + SLOTS_AHEAD < old.shape[0]:
            _fetch_slot(new, _home(new, old[i + SLOTS_AHEAD, KEY]))
        if old[i, KEY] != 0:
            at = find(new, old[i, KEY])
            for w in range(SLOT_WORDS):
                new[at, w] = old[i, w]


@compiled
def blocks(slots, out):  # type: ignore[no-untyped-def]
    """Note where each used slot's block lies, and behind it the slot: SLOT_BITS bits."""
    n = 0
    for at in range(slots.shape[0]):
        if slots[at, KEY] != 0:
            out[n] = (slots[at, PLACE] >> CLASS_BITS << SLOT_BITS) | at
            n += 1


@compiled
def sort_digit(values, out, shift, counts):  # type: ignore[no-untyped-def]
    """Sort by SORT_BITS bits above ``shift``, stably; ``counts`` [2 ** SORT_BITS] is scratch."""
    counts[:] = 0
    for i in range(values.shape[0]):
        counts[(values[i] >> shift) & SORT_MASK] += 1
    before = np.int64(0)
    for c in range(counts.shape[0]):
        before, counts[c] = before + counts[c], before
    for i in range(values.shape[0]):
        digit = (values[i] >> shift) & SORT_MASK
        out[counts[digit]] = values[i]
        counts[digit] += 1


@compiled
def pack(slots, order, arena, free, top, lay):  # type: ignore[no-untyped-def]
    """Close the gaps that free blocks leave; ``order`` lists slots by the place of their block."""
    dims = numbers(lay)
    to, tail = np.int64(0), dims[TAIL_WORDS]
    for i in range(order.shape[0]):
        if i + SLOTS_AHEAD < order.shape[0]:
            _fetch_slot(slots, order[i + SLOTS_AHEAD])
        at = order[i]
        old, used = slots[at, PLACE], slots[at, SIZE] & USED_MASK
        size_class = old & CLASS_MASK
        if (used + tail) * 2 < lay[dims[CLASSES] + size_class]:
            size_class = 0
            while lay[dims[CLASSES] + size_class] < used + tail:
                size_class += 1
        new = (to << CLASS_BITS) | size_class
        _copy(
            arena,
            _block_end(new, lay, dims) - used,
            arena,
            _block_end(old, lay, dims) - used,
            used + tail,
        )
        slots[at, PLACE] = new
        to += lay[dims[CLASSES] + size_class]
    for c in range(free.shape[0]):
        free[c] = -1
    top[TOP_USED], top[TOP_FREE] = to, 0
