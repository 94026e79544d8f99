"""The window kernel: keyed tiles, read and updated in log order.

A tile is as coarse as the finest window that still covers it needs, so a key holds few of them; a
tile that left every finer window lies wholly inside or outside each coarser one, because hops
divide each other and a key's clock never runs back. All accumulators are integers, so neither
order, partitioning nor compaction changes a bit.

Numba compiles this module; the functions take plain arrays. ``state.py`` owns them.
A tile is one row of int64 words: start (s), count, then for each value column sum (two words),
sum of squares (two words), minimum, maximum, then the words of each distinct sketch.
"""

from __future__ import annotations

import numpy as np
from numba import njit

SLOT_WORDS = 6
KEY, BLOCK, LENGTH, CLASS, CLOCK, NEWEST = range(SLOT_WORDS)
"""A slot: key hash (0 is empty), first tile, number of tiles, size class, clock (ms), offset."""

TILE_START, TILE_COUNT, TILE_VALUES = 0, 1, 2
VALUE_WORDS = 6
SUM_LO, SUM_HI, SQ_LO, SQ_HI, LEAST, MOST = range(VALUE_WORDS)

READ, UPDATE, READ_AFTER = 1, 2, 4
"""What a row asks for: the value before it, to count it, the value after it."""

PLAN_WORDS = 6
PLAN_OP, PLAN_SPAN, PLAN_MINUS, PLAN_WORD, PLAN_SIZE, PLAN_TABLE = range(PLAN_WORDS)
"""An output: operation, span, subtracted span, first word, sketch words, estimate table start."""

NO_LEAST = np.int64(2**62)
NO_MOST = np.int64(-(2**62))
NEVER = np.int64(-(2**62))

_COUNT, _SUM, _MEAN, _MIN, _MAX, _STD, _DISTINCT, _SINCE = range(8)
_TWO_64 = 18446744073709551616.0
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# The numpy error model leaves out a check for zero at each division; no divisor here can be zero.
_compiled = njit(cache=True, nogil=True, error_model="numpy")
_inline = njit(cache=True, inline="always", error_model="numpy")


@_inline
def _mix(x):  # type: ignore[no-untyped-def]
    h = np.uint64(x)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@_inline
def _ones(x):  # type: ignore[no-untyped-def]
    v = np.uint64(x)
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((v * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_inline
def _add(lo, hi, other_lo, other_hi):  # type: ignore[no-untyped-def]
    """(lo, hi) + (other_lo, other_hi) modulo 2**128, as int64 words."""
    s = np.uint64(lo) + np.uint64(other_lo)
    carry = np.int64(1) if s < np.uint64(lo) else np.int64(0)
    return np.int64(s), hi + other_hi + carry


@_inline
def _negate(lo, hi):  # type: ignore[no-untyped-def]
    return _add(~lo, ~hi, np.int64(1), np.int64(0))


@_inline
def _multiply(a, b):  # type: ignore[no-untyped-def]
    """Unsigned 64 x 64 -> 128 bits."""
    a_lo, a_hi = a & _LOW, a >> _32
    b_lo, b_hi = b & _LOW, b >> _32
    low = a_lo * b_lo
    middle = a_hi * b_lo + (low >> _32)
    cross = a_lo * b_hi + (middle & _LOW)
    return (low & _LOW) | (cross << _32), a_hi * b_hi + (middle >> _32) + (cross >> _32)


@_compiled
def _scale(lo, hi, factor):  # type: ignore[no-untyped-def]
    """(lo, hi) * factor modulo 2**128 for a signed 64-bit factor."""
    size = np.uint64(factor if factor >= 0 else -factor)
    p_lo, p_hi = _multiply(np.uint64(lo), size)
    p_hi += np.uint64(hi) * size
    if factor >= 0:
        return np.int64(p_lo), np.int64(p_hi)
    return _negate(np.int64(p_lo), np.int64(p_hi))


@_compiled
def _to_float(lo, hi):  # type: ignore[no-untyped-def]
    """A signed 128-bit number as float64; exact while it fits 53 bits."""
    if hi == (lo >> np.int64(63)):
        return np.float64(lo)
    if hi < 0:
        n_lo, n_hi = _negate(lo, hi)
        return -(np.float64(np.uint64(n_hi)) * _TWO_64 + np.float64(np.uint64(n_lo)))
    return np.float64(hi) * _TWO_64 + np.float64(np.uint64(lo))


@_compiled
def _deviation(count, s_lo, s_hi, q_lo, q_hi):  # type: ignore[no-untyped-def]
    """Population standard deviation from exact sums.

    Shifted form: with an integer m near the mean, sum (x-m)^2 = q - 2 m s + n m^2 is an exact
    integer, and what is left to subtract is at most a quarter.
    """
    n = np.float64(count)
    m = np.int64(np.rint(_to_float(s_lo, s_hi) / n))
    a_lo, a_hi = _scale(s_lo, s_hi, -2 * m)
    size = np.uint64(m if m >= 0 else -m)
    b_lo, b_hi = _multiply(size, size)
    b_lo, b_hi = _scale(np.int64(b_lo), np.int64(b_hi), count)
    t_lo, t_hi = _add(q_lo, q_hi, a_lo, a_hi)
    t_lo, t_hi = _add(t_lo, t_hi, b_lo, b_hi)
    r_lo, r_hi = _scale(np.int64(count), np.int64(0), -m)
    r_lo, r_hi = _add(s_lo, s_hi, r_lo, r_hi)
    rest = _to_float(r_lo, r_hi) / n
    variance = _to_float(t_lo, t_hi) / n - rest * rest
    return np.sqrt(variance) if variance > 0.0 else 0.0


@_compiled
def _clear(tiles, i, values):  # type: ignore[no-untyped-def]
    for w in range(tiles.shape[1]):
        tiles[i, w] = 0
    for v in range(values):
        at = TILE_VALUES + v * VALUE_WORDS
        tiles[i, at + LEAST] = NO_LEAST
        tiles[i, at + MOST] = NO_MOST


@_inline
def _copy(into, i, tiles, j):  # type: ignore[no-untyped-def]
    for w in range(tiles.shape[1]):
        into[i, w] = tiles[j, w]


@_compiled
def _merge(into, i, tiles, j, values):  # type: ignore[no-untyped-def]
    """Add tile j to accumulator i. Indices, not row views: a view costs more than the sum."""
    into[i, TILE_COUNT] += tiles[j, TILE_COUNT]
    for v in range(values):
        at = TILE_VALUES + v * VALUE_WORDS
        into[i, at + SUM_LO], into[i, at + SUM_HI] = _add(
            into[i, at + SUM_LO], into[i, at + SUM_HI], tiles[j, at + SUM_LO], tiles[j, at + SUM_HI]
        )
        into[i, at + SQ_LO], into[i, at + SQ_HI] = _add(
            into[i, at + SQ_LO], into[i, at + SQ_HI], tiles[j, at + SQ_LO], tiles[j, at + SQ_HI]
        )
        into[i, at + LEAST] = min(into[i, at + LEAST], tiles[j, at + LEAST])
        into[i, at + MOST] = max(into[i, at + MOST], tiles[j, at + MOST])
    for w in range(TILE_VALUES + values * VALUE_WORDS, tiles.shape[1]):
        into[i, w] |= tiles[j, w]


@_compiled
def _count_event(tiles, i, amounts, hashes, row, sketches, values):  # type: ignore[no-untyped-def]
    tiles[i, TILE_COUNT] += 1
    for v in range(values):
        at = TILE_VALUES + v * VALUE_WORDS
        a = amounts[row, v]
        tiles[i, at + SUM_LO], tiles[i, at + SUM_HI] = _add(
            tiles[i, at + SUM_LO], tiles[i, at + SUM_HI], a, a >> np.int64(63)
        )
        size = np.uint64(a if a >= 0 else -a)
        q_lo, q_hi = _multiply(size, size)
        tiles[i, at + SQ_LO], tiles[i, at + SQ_HI] = _add(
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


@_inline
def _zone(second, now, reaches, hops):  # type: ignore[no-untyped-def]
    """Hop of the finest window that still holds a second; 0 when every window has left it."""
    for w in range(hops.shape[0]):
        if second // hops[w] > now // hops[w] - reaches[w]:
            return hops[w]
    return np.int64(0)


@_compiled
def compact(arena, first, length, now, reaches, hops, values):  # type: ignore[no-untyped-def]
    """Merge a key's tiles in place as far as its clock (s) allows; returns how many remain."""
    kept = 0
    for i in range(length):
        start = arena[first + i, TILE_START]
        hop = _zone(start, now, reaches, hops)
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


@_compiled
def _emit(spans, plan, tables, since, out, row):  # type: ignore[no-untyped-def]
    for c in range(plan.shape[0]):
        op = plan[c, PLAN_OP]
        if op == _SINCE:
            out[row, c] = since
            continue
        w = plan[c, PLAN_SPAN]
        minus = plan[c, PLAN_MINUS]
        at = plan[c, PLAN_WORD]
        n = spans[w, TILE_COUNT]
        if minus >= 0:
            n -= spans[minus, TILE_COUNT]
        if op == _COUNT:
            out[row, c] = np.float64(n)
        elif op in (_SUM, _MEAN):
            lo, hi = spans[w, at + SUM_LO], spans[w, at + SUM_HI]
            if minus >= 0:
                less_lo, less_hi = _negate(spans[minus, at + SUM_LO], spans[minus, at + SUM_HI])
                lo, hi = _add(lo, hi, less_lo, less_hi)
            if op == _SUM:
                out[row, c] = _to_float(lo, hi)
            else:
                out[row, c] = _to_float(lo, hi) / np.float64(n) if n > 0 else np.nan
        elif op == _MIN:
            out[row, c] = np.float64(spans[w, at + LEAST]) if n > 0 else np.nan
        elif op == _MAX:
            out[row, c] = np.float64(spans[w, at + MOST]) if n > 0 else np.nan
        elif op == _STD:
            if n > 0:
                out[row, c] = _deviation(
                    n,
                    spans[w, at + SUM_LO],
                    spans[w, at + SUM_HI],
                    spans[w, at + SQ_LO],
                    spans[w, at + SQ_HI],
                )
            else:
                out[row, c] = np.nan
        else:
            ones = np.int64(0)
            for k in range(plan[c, PLAN_SIZE]):
                ones += _ones(spans[w, at + k])
            out[row, c] = tables[plan[c, PLAN_TABLE] + ones]


@_compiled
def _read(arena, first, length, now, reaches, hops, values, spans):  # type: ignore[no-untyped-def]
    """Fill one accumulator per span in a single backward pass: windows nest."""
    i = first + length - 1
    for w in range(hops.shape[0]):
        if w == 0:
            _clear(spans, 0, values)
        else:
            _copy(spans, w, spans, w - 1)
        oldest = (now // hops[w] - reaches[w] + 1) * hops[w]
        while i >= first and arena[i, TILE_START] >= oldest:
            _merge(spans, w, arena, i, values)
            i -= 1


@_inline
def find(slots, key):  # type: ignore[no-untyped-def]
    """Index of a key's slot, or of the empty slot where it belongs."""
    mask = slots.shape[0] - 1
    at = np.int64(_mix(key)) & mask
    while slots[at, KEY] != key and slots[at, KEY] != 0:
        at = (at + 1) & mask
    return at


@_compiled
def reserve(arena, free, top, size_class):  # type: ignore[no-untyped-def]
    """First tile of a block of 2**size_class tiles, or -1 when the arena is full."""
    block = free[size_class]
    if block >= 0:
        free[size_class] = arena[block, TILE_START]
        return block
    block = top[0]
    if block + (np.int64(1) << size_class) > arena.shape[0]:
        return np.int64(-1)
    top[0] = block + (np.int64(1) << size_class)
    return block


@_compiled
def _insert(slots, at, arena, free, top, second, now, reaches, hops, values):  # type: ignore[no-untyped-def]
    """The tile that takes an event: its index, -1 if every window has left it, -2 if full."""
    hop = _zone(second, now, reaches, hops)
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
        kept = compact(arena, first, length, now, reaches, hops, values)
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


@_compiled
def process(  # type: ignore[no-untyped-def]
    slots,
    arena,
    free,
    top,
    reaches,
    hops,
    values,
    sketches,
    plan,
    tables,
    spans,
    start,
    keys,
    times,
    offsets,
    modes,
    amounts,
    hashes,
    out,
    newest,
    after,
    clocks,
):
    """Run rows from ``start`` on in log order; returns the first row not done.

    Less than the number of rows means that the slots or the arena must grow before that row.
    ``out`` and ``newest`` are filled for rows that read, ``after`` and ``clocks`` for rows that
    read after their update. ``top`` counts used tiles, keys and events too old for any window.
    """
    for i in range(start, keys.shape[0]):
        if (top[1] + 1) * 2 > slots.shape[0]:
            return i
        key, time, mode = keys[i], times[i], modes[i]
        at = find(slots, key) if key != 0 else np.int64(-1)
        known = key != 0 and slots[at, KEY] == key
        clock = max(slots[at, CLOCK], time) if known else time
        now = clock // 1000
        if mode & READ:
            since = np.float64(clock - slots[at, CLOCK]) / 1000.0 if known else np.nan
            first, length = (slots[at, BLOCK], slots[at, LENGTH]) if known else (0, 0)
            _read(arena, first, length, now, reaches, hops, values, spans)
            _emit(spans, plan, tables, since, out, i)
            newest[i] = slots[at, NEWEST] if known else -1
            if key == 0:
                out[i, :] = np.nan
        if not mode & UPDATE or key == 0:
            continue
        if not known:
            block = reserve(arena, free, top, 1)
            if block < 0:
                return i
            slots[at, KEY], slots[at, BLOCK], slots[at, LENGTH], slots[at, CLASS] = key, block, 0, 1
            slots[at, CLOCK], slots[at, NEWEST] = NEVER, -1
            top[1] += 1
        tile = _insert(slots, at, arena, free, top, time // 1000, now, reaches, hops, values)
        if tile == -2:
            return i
        slots[at, CLOCK] = clock
        slots[at, NEWEST] = offsets[i]
        if tile >= 0:
            _count_event(arena, tile, amounts, hashes, i, sketches, values)
        else:
            top[2] += 1
        if mode & READ_AFTER:
            _read(arena, slots[at, BLOCK], slots[at, LENGTH], now, reaches, hops, values, spans)
            _emit(spans, plan, tables, 0.0, after, i)
            clocks[i] = clock
    return keys.shape[0]


@_compiled
def canonical_lengths(slots, order, arena, reaches, hops, values, out):  # type: ignore[no-untyped-def]
    """Compact every key of ``order`` (slot indices) at its own clock and note its length."""
    for i in range(order.shape[0]):
        slot = slots[order[i]]
        slot[LENGTH] = compact(
            arena, slot[BLOCK], slot[LENGTH], slot[CLOCK] // 1000, reaches, hops, values
        )
        out[i] = slot[LENGTH]


@_compiled
def gather(slots, order, arena, out):  # type: ignore[no-untyped-def]
    """Copy the tiles of every key of ``order`` one after the other."""
    at = 0
    for i in range(order.shape[0]):
        first, length = slots[order[i], BLOCK], slots[order[i], LENGTH]
        out[at : at + length] = arena[first : first + length]
        at += length


@_compiled
def scatter(slots, arena, free, top, start, keys, clocks, newest, counts, tiles):  # type: ignore[no-untyped-def]
    """Insert keys with their tiles from ``start`` on; returns the first key not done.

    Returns -1 when a key is already there.
    """
    position = np.int64(0)
    for i in range(start):
        position += counts[i]
    for i in range(start, keys.shape[0]):
        if (top[1] + 1) * 2 > slots.shape[0]:
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
        arena[block : block + counts[i]] = tiles[position : position + counts[i]]
        position += counts[i]
        top[1] += 1
    return keys.shape[0]


@_compiled
def rehash(old, new):  # type: ignore[no-untyped-def]
    """Move every used slot into a larger table."""
    for i in range(old.shape[0]):
        if old[i, KEY] != 0:
            new[find(new, old[i, KEY])] = old[i]
