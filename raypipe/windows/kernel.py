"""The window kernel: keyed tiles, read and updated in log order.

A tile is as coarse as the finest window that still covers it needs, so a key holds few of them; a
tile that left every finer window lies wholly inside or outside each coarser one, because hops
divide each other and a key's clock never runs back. All accumulators are integers, so neither
order, partitioning nor compaction changes a bit.

One file on purpose: numba's cache notices a change of the file that holds a function, not of those
that hold what it calls.

Numba compiles this module; the functions take plain arrays. ``state.py`` owns them.
A tile is one row of int64 words: start (s), count, then for each value column sum (two words),
sum of squares (two words), minimum, maximum, then the words of each distinct sketch.
"""

from __future__ import annotations

import numpy as np
from numba import njit

SLOT_WORDS = 7
KEY, BLOCK, LENGTH, CLASS, CLOCK, NEWEST, HOT = range(SLOT_WORDS)
"""A slot: key hash (0 is empty), first tile, number of tiles, size class, clock (ms), offset of
the newest event, place of its kept accumulators (-1: none)."""

HOT_TILES = 16
"""From so many tiles on, a key keeps one accumulator per span between reads."""

TOP_WORDS = 4
TOP_TILES, TOP_KEYS, TOP_OLD, TOP_HOT = range(TOP_WORDS)
"""Counters: used tiles, keys, events too old for any window, kept accumulators."""

TILE_START, TILE_COUNT, TILE_VALUES = 0, 1, 2
VALUE_WORDS = 6
SUM_LO, SUM_HI, SQ_LO, SQ_HI, LEAST, MOST = range(VALUE_WORDS)

READ, UPDATE, READ_AFTER = 1, 2, 4
"""What a row asks for: the value before it, to count it, the value after it."""

STATS = 5
SUM, MEAN, MIN, MAX, STD = range(STATS)
"""What is computed of each value column for each span."""

PLAN_WORDS = 3
PLAN_SPAN, PLAN_MINUS, PLAN_STAT = range(PLAN_WORDS)
"""An output: its span, the span to subtract (-1: none), and its place among the span's figures:
0 is the count, then STATS for each value column, then an estimate for each sketch; -1 is the time
since the last event."""

# The numpy error model leaves out a check for zero at each division; no divisor here can be zero.
compiled = njit(cache=True, nogil=True, error_model="numpy")
inline = njit(cache=True, inline="always", error_model="numpy")
# A call passes each array as nine words, which costs more than most bodies here: half of the time
# went into calls before LLVM was told to inline these.
inner = njit(cache=True, nogil=True, error_model="numpy", forceinline=True)

_TWO_64 = 18446744073709551616.0
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_FITS = np.int64(2**62)

NO_LEAST = np.int64(2**62)
NO_MOST = np.int64(-(2**62))
NEVER = np.int64(-(2**62))


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


@inner
def _clear(tiles, i, values):  # type: ignore[no-untyped-def]
    for w in range(tiles.shape[1]):
        tiles[i, w] = 0
    for v in range(values):
        at = TILE_VALUES + v * VALUE_WORDS
        tiles[i, at + LEAST] = NO_LEAST
        tiles[i, at + MOST] = NO_MOST


@inline
def _copy(into, i, tiles, j):  # type: ignore[no-untyped-def]
    for w in range(tiles.shape[1]):
        into[i, w] = tiles[j, w]


@inner
def _merge(into, i, tiles, j, values):  # type: ignore[no-untyped-def]
    """Add tile j to accumulator i. Indices, not row views: a view costs more than the sum."""
    into[i, TILE_COUNT] += tiles[j, TILE_COUNT]
    for v in range(values):
        at = TILE_VALUES + v * VALUE_WORDS
        into[i, at + SUM_LO], into[i, at + SUM_HI] = add(
            into[i, at + SUM_LO], into[i, at + SUM_HI], tiles[j, at + SUM_LO], tiles[j, at + SUM_HI]
        )
        into[i, at + SQ_LO], into[i, at + SQ_HI] = add(
            into[i, at + SQ_LO], into[i, at + SQ_HI], tiles[j, at + SQ_LO], tiles[j, at + SQ_HI]
        )
        into[i, at + LEAST] = min(into[i, at + LEAST], tiles[j, at + LEAST])
        into[i, at + MOST] = max(into[i, at + MOST], tiles[j, at + MOST])
    for w in range(TILE_VALUES + values * VALUE_WORDS, tiles.shape[1]):
        into[i, w] |= tiles[j, w]


@inner
def _count_event(tiles, i, amounts, hashes, row, sketches, values):  # type: ignore[no-untyped-def]
    tiles[i, TILE_COUNT] += 1
    for v in range(values):
        at = TILE_VALUES + v * VALUE_WORDS
        a = amounts[row, v]
        tiles[i, at + SUM_LO], tiles[i, at + SUM_HI] = add(
            tiles[i, at + SUM_LO], tiles[i, at + SUM_HI], a, a >> np.int64(63)
        )
        size = np.uint64(a if a >= 0 else -a)
        q_lo, q_hi = multiply(size, size)
        tiles[i, at + SQ_LO], tiles[i, at + SQ_HI] = add(
            tiles[i, at + SQ_LO], tiles[i, at + SQ_HI], np.int64(q_lo), np.int64(q_hi)
        )
        tiles[i, at + LEAST] = min(tiles[i, at + LEAST], a)
        tiles[i, at + MOST] = max(tiles[i, at + MOST], a)
    word = TILE_VALUES + values * VALUE_WORDS
    for d in range(sketches.shape[0]):
        if hashes[row, d] != 0:
            bit = np.int64(_mix(hashes[row, d])) & (sketches[d] * 64 - 1)
            tiles[i, word + (bit >> 6)] |= np.int64(1) << (bit & np.int64(63))
        word += sketches[d]


@inline
def _set_edges(now, reaches, hops, edges):  # type: ignore[no-untyped-def]
    """Oldest second in each window at a time (s), in row 0; row 1 remembers the current hops.

    Rows come in about the order of time, so most hops are those of the row before.
    """
    for w in range(hops.shape[0]):
        if now < edges[1, w] or now >= edges[1, w] + hops[w]:
            edges[1, w] = (now // hops[w]) * hops[w]
            edges[0, w] = edges[1, w] - (reaches[w] - 1) * hops[w]


@inline
def _zone(second, edges, hops):  # type: ignore[no-untyped-def]
    """Hop of the finest window that still holds a second; 0 when every window has left it."""
    for w in range(hops.shape[0]):
        if second >= edges[0, w]:
            return hops[w]
    return np.int64(0)


@compiled
def _compact(arena, first, length, edges, hops, values):  # type: ignore[no-untyped-def]
    """Merge a key's tiles in place as far as the edges allow; returns how many remain."""
    kept = 0
    for i in range(length):
        start = arena[first + i, TILE_START]
        hop = _zone(start, edges, hops)
        if hop == 0:
            continue
        start = (start // hop) * hop
        if kept > 0 and arena[first + kept - 1, TILE_START] == start:
            _merge(arena, first + kept - 1, arena, first + i, values)
        else:
            if kept != i:
                _copy(arena, first + kept, arena, first + i)
            arena[first + kept, TILE_START] = start
            kept += 1
    return kept


@inner
def _figures(spans, w, values, sketches, tables, figures):  # type: ignore[no-untyped-def]
    """Every statistic of one span's accumulator."""
    n = spans[w, TILE_COUNT]
    figures[w, 0] = np.float64(n)
    for v in range(values):
        at, to = TILE_VALUES + v * VALUE_WORDS, 1 + v * STATS
        s_lo, s_hi = spans[w, at + SUM_LO], spans[w, at + SUM_HI]
        figures[w, to + SUM] = to_float(s_lo, s_hi)
        if n > 0:
            figures[w, to + MEAN] = figures[w, to + SUM] / np.float64(n)
            figures[w, to + MIN] = np.float64(spans[w, at + LEAST])
            figures[w, to + MAX] = np.float64(spans[w, at + MOST])
            figures[w, to + STD] = deviation(
                n, s_lo, s_hi, spans[w, at + SQ_LO], spans[w, at + SQ_HI]
            )
        else:
            figures[w, to + MEAN : to + STATS] = np.nan
    word, table = TILE_VALUES + values * VALUE_WORDS, 0
    for d in range(sketches.shape[0]):
        ones = np.int64(0)
        for k in range(sketches[d]):
            ones += _ones(spans[w, word + k])
        figures[w, 1 + values * STATS + d] = tables[table + ones]
        word += sketches[d]
        table += sketches[d] * 64 + 1


@inner
def _difference(spans, w, minus, stat):  # type: ignore[no-untyped-def]
    """Count, sum or mean of a span without a shorter one."""
    n = spans[w, TILE_COUNT] - spans[minus, TILE_COUNT]
    if stat == 0:
        return np.float64(n)
    at = TILE_VALUES + (stat - 1) // STATS * VALUE_WORDS
    less_lo, less_hi = negate(spans[minus, at + SUM_LO], spans[minus, at + SUM_HI])
    lo, hi = add(spans[w, at + SUM_LO], spans[w, at + SUM_HI], less_lo, less_hi)
    if (stat - 1) % STATS == SUM:
        return to_float(lo, hi)
    return to_float(lo, hi) / np.float64(n) if n > 0 else np.nan


@inner
def _emit(spans, values, sketches, plan, tables, figures, since, out, row):  # type: ignore[no-untyped-def]
    for w in range(spans.shape[0]):
        if w > 0 and spans[w, TILE_COUNT] == spans[w - 1, TILE_COUNT]:
            # Windows nest: as many events are the same events.
            for k in range(figures.shape[1]):
                figures[w, k] = figures[w - 1, k]
        else:
            _figures(spans, w, values, sketches, tables, figures)
    for c in range(plan.shape[0]):
        stat = plan[c, PLAN_STAT]
        if stat < 0:
            out[row, c] = since
        elif plan[c, PLAN_MINUS] < 0:
            out[row, c] = figures[plan[c, PLAN_SPAN], stat]
        else:
            out[row, c] = _difference(spans, plan[c, PLAN_SPAN], plan[c, PLAN_MINUS], stat)


@inner
def _read(arena, first, length, edges, values, spans):  # type: ignore[no-untyped-def]
    """Fill one accumulator per span in a single backward pass: windows nest."""
    i = first + length - 1
    for w in range(spans.shape[0]):
        if w == 0:
            _clear(spans, 0, values)
        else:
            _copy(spans, w, spans, w - 1)
        while i >= first and arena[i, TILE_START] >= edges[0, w]:
            _merge(spans, w, arena, i, values)
            i -= 1


@inner
def _refresh(arena, first, length, edges, values, spans):  # type: ignore[no-untyped-def]
    """The same for kept accumulators: only spans whose edge has moved are summed again.

    TILE_START of an accumulator holds the edge that it is right for. Hops divide each other, so
    behind the first edge that stands still all others do.
    """
    i = first + length - 1
    for w in range(spans.shape[0]):
        oldest = edges[0, w]
        if spans[w, TILE_START] == oldest:
            break
        if w == 0:
            _clear(spans, 0, values)
        else:
            _copy(spans, w, spans, w - 1)
        while i >= first and arena[i, TILE_START] >= oldest:
            _merge(spans, w, arena, i, values)
            i -= 1
        spans[w, TILE_START] = oldest


@inline
def find(slots, key):  # type: ignore[no-untyped-def]
    """Index of a key's slot, or of the empty slot where it belongs."""
    mask = slots.shape[0] - 1
    at = np.int64(_mix(key)) & mask
    while slots[at, KEY] != key and slots[at, KEY] != 0:
        at = (at + 1) & mask
    return at


@compiled
def reserve(arena, free, top, size_class):  # type: ignore[no-untyped-def]
    """First tile of a block of 2**size_class tiles, or -1 when the arena is full."""
    block = free[size_class]
    if block >= 0:
        free[size_class] = arena[block, TILE_START]
        return block
    block = top[TOP_TILES]
    if block + (np.int64(1) << size_class) > arena.shape[0]:
        return np.int64(-1)
    top[TOP_TILES] = block + (np.int64(1) << size_class)
    return block


@inner
def _insert(slots, at, arena, free, top, second, edges, hops, values):  # type: ignore[no-untyped-def]
    """The tile that takes an event: its index, -1 if every window has left it, -2 if full."""
    hop = _zone(second, edges, hops)
    if hop == 0:
        return np.int64(-1)
    start = (second // hop) * hop
    while True:
        first, length = slots[at, BLOCK], slots[at, LENGTH]
        p = first + length - 1
        while p >= first and arena[p, TILE_START] > start:
            p -= 1
        if p >= first and arena[p, TILE_START] == start:
            return p
        capacity = np.int64(1) << slots[at, CLASS]
        if length < capacity:
            for i in range(first + length, p + 1, -1):
                _copy(arena, i, arena, i - 1)
            _clear(arena, p + 1, values)
            arena[p + 1, TILE_START] = start
            slots[at, LENGTH] = length + 1
            return p + 1
        kept = _compact(arena, first, length, edges, hops, values)
        slots[at, LENGTH] = kept
        if kept <= (capacity * 3) // 4 and kept < capacity:
            continue
        block = reserve(arena, free, top, slots[at, CLASS] + 1)
        if block < 0:
            return np.int64(-2)
        for i in range(kept):
            _copy(arena, block + i, arena, first + i)
        arena[first, TILE_START] = free[slots[at, CLASS]]
        free[slots[at, CLASS]] = first
        slots[at, BLOCK] = block
        slots[at, CLASS] += 1


@compiled
def process(  # type: ignore[no-untyped-def]
    slots, arena, hot, free, top, reaches, hops, values, sketches, plan, tables, spans,
    start, keys, times, offsets, modes, amounts, hashes, out, newest, after, clocks,
):  # fmt: skip
    """Run rows from ``start`` on in log order; returns the first row not done.

    Less than the number of rows means that slots, arena or kept accumulators must grow before
    that row. ``out`` and ``newest`` are filled for rows that read, ``after`` and ``clocks`` for
    rows that read after their update. ``hot`` [keys, spans, words] holds kept accumulators.
    """
    edges = np.full((2, hops.shape[0]), NEVER, np.int64)
    figures = np.empty((hops.shape[0], 1 + values * STATS + sketches.shape[0]))
    for i in range(start, keys.shape[0]):
        if (top[TOP_KEYS] + 1) * 2 > slots.shape[0] or top[TOP_HOT] >= hot.shape[0]:
            return i
        key, time, mode = keys[i], times[i], modes[i]
        at = find(slots, key) if key != 0 else np.int64(-1)
        known = key != 0 and slots[at, KEY] == key
        clock = max(slots[at, CLOCK], time) if known else time
        _set_edges(clock // 1000, reaches, hops, edges)
        if mode & READ:
            since = np.float64(clock - slots[at, CLOCK]) / 1000.0 if known else np.nan
            newest[i] = slots[at, NEWEST] if known else -1
            if known and slots[at, HOT] >= 0:
                kept = hot[slots[at, HOT]]
                _refresh(arena, slots[at, BLOCK], slots[at, LENGTH], edges, values, kept)
                _emit(kept, values, sketches, plan, tables, figures, since, out, i)
            else:
                first, length = (slots[at, BLOCK], slots[at, LENGTH]) if known else (0, 0)
                _read(arena, first, length, edges, values, spans)
                _emit(spans, values, sketches, plan, tables, figures, since, out, i)
            if key == 0:
                out[i, :] = np.nan
        if not mode & UPDATE or key == 0:
            continue
        if not known:
            block = reserve(arena, free, top, 1)
            if block < 0:
                return i
            slots[at, KEY], slots[at, BLOCK], slots[at, LENGTH], slots[at, CLASS] = key, block, 0, 1
            slots[at, CLOCK], slots[at, NEWEST], slots[at, HOT] = NEVER, -1, -1
            top[TOP_KEYS] += 1
        second = time // 1000
        tile = _insert(slots, at, arena, free, top, second, edges, hops, values)
        if tile == -2:
            return i
        slots[at, CLOCK] = clock
        slots[at, NEWEST] = offsets[i]
        if tile < 0:
            top[TOP_OLD] += 1
        else:
            _count_event(arena, tile, amounts, hashes, i, sketches, values)
            if slots[at, HOT] >= 0:
                kept = hot[slots[at, HOT]]
                for w in range(hops.shape[0]):
                    # A reader ahead of the key's clock left an edge that comes true later.
                    if edges[0, w] <= kept[w, TILE_START] <= second:
                        _count_event(kept, w, amounts, hashes, i, sketches, values)
            elif slots[at, LENGTH] >= HOT_TILES:
                slots[at, HOT] = top[TOP_HOT]
                hot[top[TOP_HOT], :, TILE_START] = NEVER
                top[TOP_HOT] += 1
        if mode & READ_AFTER:
            _read(arena, slots[at, BLOCK], slots[at, LENGTH], edges, values, spans)
            _emit(spans, values, sketches, plan, tables, figures, 0.0, after, i)
            clocks[i] = clock
    return keys.shape[0]


@compiled
def canonical_lengths(slots, order, arena, reaches, hops, values, out):  # type: ignore[no-untyped-def]
    """Compact every key of ``order`` (slot indices) at its own clock and note its length."""
    edges = np.full((2, hops.shape[0]), NEVER, np.int64)
    for i in range(order.shape[0]):
        at = order[i]
        _set_edges(slots[at, CLOCK] // 1000, reaches, hops, edges)
        slots[at, LENGTH] = _compact(
            arena, slots[at, BLOCK], slots[at, LENGTH], edges, hops, values
        )
        out[i] = slots[at, LENGTH]


@compiled
def gather(slots, order, arena, out):  # type: ignore[no-untyped-def]
    """Copy the tiles of every key of ``order`` one after the other."""
    at = 0
    for i in range(order.shape[0]):
        first, length = slots[order[i], BLOCK], slots[order[i], LENGTH]
        out[at : at + length] = arena[first : first + length]
        at += length


@compiled
def scatter(slots, arena, free, top, start, keys, clocks, newest, counts, tiles):  # type: ignore[no-untyped-def]
    """Insert keys with their tiles from ``start`` on; returns the first key not done.

    Returns -1 when a key is already there.
    """
    position = np.int64(0)
    for i in range(start):
        position += counts[i]
    for i in range(start, keys.shape[0]):
        if (top[TOP_KEYS] + 1) * 2 > slots.shape[0]:
            return i
        at = find(slots, keys[i])
        if slots[at, KEY] == keys[i]:
            return np.int64(-1)
        size_class = np.int64(1)
        while (np.int64(1) << size_class) < counts[i]:
            size_class += 1
        block = reserve(arena, free, top, size_class)
        if block < 0:
            return i
        slots[at, KEY], slots[at, BLOCK], slots[at, LENGTH] = keys[i], block, counts[i]
        slots[at, CLASS], slots[at, CLOCK], slots[at, NEWEST] = size_class, clocks[i], newest[i]
        slots[at, HOT] = -1
        arena[block : block + counts[i]] = tiles[position : position + counts[i]]
        position += counts[i]
        top[TOP_KEYS] += 1
    return keys.shape[0]


@compiled
def rehash(old, new):  # type: ignore[no-untyped-def]
    """Move every used slot into a larger table."""
    for i in range(old.shape[0]):
        if old[i, KEY] != 0:
            new[find(new, old[i, KEY])] = old[i]
