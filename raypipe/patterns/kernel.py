"""The pattern kernel: rows of one pattern in log order move the partial matches of their keys.

Numba compiles this module; the functions take plain arrays, grouped in tuples. ``state.py`` owns
them, ``plan.py`` writes the ones that describe a pattern. One file on purpose: numba's cache
notices a change of the file that holds a function, not of those that hold what it calls.

A key has a slot; from it hangs a list of records, its partial matches by the order of their birth,
and, where the first step needs several events, a ring with the newest of them by time. Records and
rings come from pools with lists of free ones. Partial matches that wait for absence are also in a
heap by the time at which they are complete.

``process`` returns early when room is short, always between two rows; the caller makes room.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.windows.prefetch import prefetch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Code(IntEnum):
    """Operations of a condition's program."""

    COLUMN = 0
    REMEMBERED = 1
    COUNT = 2
    CONSTANT = 3
    FLAG = 4
    NOT = 5
    NEGATE = 6
    ADD = 7
    SUBTRACT = 8
    MULTIPLY = 9
    DIVIDE = 10
    LESS = 11
    LESS_EQUAL = 12
    MORE = 13
    MORE_EQUAL = 14
    EQUAL = 15
    DIFFER = 16
    WHERE = 17
    COALESCE = 18
    MINIMUM = 19
    MAXIMUM = 20
    IS_MISSING = 21
    ABSOLUTE = 22
    FLOOR = 23
    SQRT = 24
    HOUR_OF_DAY = 25
    DAY_OF_WEEK = 26
    DISTANCE_KM = 27


class Agg(IntEnum):
    """What is remembered of a column over a step's events. LAST is by event time."""

    LAST = 0
    FIRST = 1
    MOST = 2
    LEAST = 3
    SUM = 4


NONE = -1
"""No record, no ring."""

SLOT_WORDS = 3
KEY, HEAD, RING = range(SLOT_WORDS)
"""A slot: key hash (0 is empty), its oldest record, its ring."""

REC_WORDS = 9
R_KEY, R_NEXT, R_STEP, R_BIRTH, R_FIRST, R_FLOOR, R_LAST, R_EXPIRE, R_LISTED = range(REC_WORDS)
"""A record: key hash, the next younger one, the step that it stands at (NONE: free), offset of the
row that made it, time of its first event, time that events of its step must have reached, newest
time, watermark after which it is over, listed offsets. Then for each step its count, for each step
the offset of its last event, and the listed offsets: the first ``least`` of each step."""

RING_WORDS = 3
G_NEXT, G_COUNT, G_EXPIRE = range(RING_WORDS)
"""A ring: the next free one, its events, watermark after which it is over. Then times, offsets."""

HEAP_WORDS = 3
H_AT, H_BIRTH, H_REC = range(HEAP_WORDS)

TOP_WORDS = 9
(
    T_SLOTS, T_RECS, T_FREE_REC, T_LIVE, T_RINGS, T_FREE_RING, T_HEAP, T_OUT, T_DROPPED,
) = range(TOP_WORDS)  # fmt: skip
"""Counters: slots with a key, records ever used, first free one, records in use, rings ever used,
first free one, entries of the heap, matches to be taken, partial matches given up."""

PLAN_WORDS = 8
P_STEPS, P_WITHIN, P_PAST_LAST, P_STRICT, P_RING, P_PARTIALS, P_ABSENCE, P_FIRST = range(PLAN_WORDS)
"""A pattern: positive steps, ms, whether a match takes the key's others with it, whether every
event must match, events that the ring holds (0: none), most records of a key, whether the last
step asks for absence, remembered numbers of the first step (they lead)."""

STEP_WORDS = 7
S_BIT, S_LEAST, S_MOST, S_VETO, S_VETO_END, S_START, S_END = range(STEP_WORDS)
"""A positive step: bit of the rows that columns let pass, its counts, the negated steps after it,
its program. The words of a negated step are the bit and the program."""

VETO_WORDS = 3
V_BIT, V_START, V_END = range(VETO_WORDS)

MEMORY_WORDS = 3
M_STEP, M_COLUMN, M_AGG = range(MEMORY_WORDS)

OUT_WORDS = 1
"""A match: the row that completed it (NONE: time did), then its record."""

KEPT, ENDED, MATCHED = range(3)


class Plan(NamedTuple):
    """One pattern: int64 [words], [steps, words], [negated steps, words], [operations, 2], float64
    [constants], int64 [remembered, words]."""

    words: Ints
    steps: Ints
    vetoes: Ints
    code: Ints
    constants: Floats
    memory: Ints


class State(NamedTuple):
    """One pattern's state; ``numbers`` are the remembered ones of each record, ``ring_numbers`` of
    each ring, entry by entry."""

    slots: Ints
    recs: Ints
    numbers: Floats
    rings: Ints
    ring_numbers: Floats
    heap: Ints
    top: Ints
    stack: Floats


class Rows(NamedTuple):
    """n rows for one pattern, in log order.

    ``keys`` are hashes (never 0), ``times`` ms, ``before`` and ``at`` the log's watermark before
    and with the row, ``masks`` a bit for each step whose columns' part holds, ``numbers`` float64
    [n, columns] that programs read.
    """

    keys: Ints
    times: Ints
    offsets: Ints
    before: Ints
    at: Ints
    masks: Ints
    numbers: Floats


class Out(NamedTuple):
    """Where matches go, and ``used`` uint8 [n]: rows that went into a partial match or a ring."""

    records: Ints
    numbers: Floats
    used: npt.NDArray[np.uint8]


_options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
compiled = njit(**_options, nogil=True)
# A call passes each array as nine words, which costs more than the body of what most rows need.
inner = njit(**_options, nogil=True, forceinline=True)

SLOTS_AHEAD, RECORDS_AHEAD = 16, 8
"""How many rows before its own a key's slot is fetched, and then its first record: with a million
keys a row would wait for both longer than it takes."""

_RADIANS = np.pi / 180.0
_EARTH_KM = 6371.0088
_DAY_MS = 86_400_000.0
_HOUR_MS = 3_600_000.0


@inner
def _mix(key):  # type: ignore[no-untyped-def]
    h = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(h >> np.uint64(32))


@inner
def _home(slots, key):  # type: ignore[no-untyped-def]
    """The slot where a key belongs unless another took it."""
    return _mix(key) & (slots.shape[0] - 1)


@inner
def find(slots, key):  # type: ignore[no-untyped-def]
    """The slot of a key, or the empty one where it belongs."""
    mask = slots.shape[0] - 1
    s = _home(slots, key)
    while slots[s, KEY] != 0 and slots[s, KEY] != key:
        s = (s + 1) & mask
    return s


@inner
def _distance_km(lat, lon, other_lat, other_lon):  # type: ignore[no-untyped-def]
    a, b = lat * _RADIANS, other_lat * _RADIANS
    north = np.sin((b - a) / 2.0)
    east = np.sin((other_lon - lon) * _RADIANS / 2.0)
    h = north * north + np.cos(a) * np.cos(b) * east * east
    return np.nan if np.isnan(h) else 2.0 * _EARTH_KM * np.arcsin(np.sqrt(min(h, 1.0)))


@compiled
def _holds(code, constants, row, recs, remembered, stack, rec, start, end):  # type: ignore[no-untyped-def]
    """Run a program over a row's numbers and a record."""
    n = 0
    for i in range(start, end):
        op, arg = code[i, 0], code[i, 1]
        if op == Code.COLUMN:
            stack[n] = row[arg]
            n += 1
        elif op == Code.REMEMBERED:
            stack[n] = remembered[rec, arg]
            n += 1
        elif op == Code.COUNT:
            stack[n] = np.float64(recs[rec, REC_WORDS + arg])
            n += 1
        elif op == Code.CONSTANT:
            stack[n] = constants[arg]
            n += 1
        elif op <= Code.NEGATE:
            a = stack[n - 1]
            if op == Code.NEGATE:
                stack[n - 1] = -a
            else:
                flag = 1.0 if a != 0.0 and not np.isnan(a) else 0.0
                stack[n - 1] = flag if op == Code.FLAG else 1.0 - flag
        elif op <= Code.DIFFER:
            n -= 1
            a, b = stack[n - 1], stack[n]
            if op == Code.ADD:
                x = a + b
            elif op == Code.SUBTRACT:
                x = a - b
            elif op == Code.MULTIPLY:
                x = a * b
            elif op == Code.DIVIDE:
                x = a / b if b != 0.0 else np.nan
            elif op == Code.LESS:
                x = 1.0 if a < b else 0.0
            elif op == Code.LESS_EQUAL:
                x = 1.0 if a <= b else 0.0
            elif op == Code.MORE:
                x = 1.0 if a > b else 0.0
            elif op == Code.MORE_EQUAL:
                x = 1.0 if a >= b else 0.0
            elif op == Code.EQUAL:
                x = 1.0 if a == b else 0.0
            else:
                x = 1.0 if a < b or a > b else 0.0
            stack[n - 1] = x
        elif op == Code.WHERE:
            n -= 2
            c = stack[n - 1]
            stack[n - 1] = stack[n] if c != 0.0 and not np.isnan(c) else stack[n + 1]
        elif op == Code.DISTANCE_KM:
            n -= 3
            stack[n - 1] = _distance_km(stack[n - 1], stack[n], stack[n + 1], stack[n + 2])
        elif op <= Code.MAXIMUM:
            n -= 1
            a, b = stack[n - 1], stack[n]
            if op == Code.COALESCE:
                x = b if np.isnan(a) else a
            elif np.isnan(a) or np.isnan(b):
                x = np.nan
            elif op == Code.MINIMUM:
                x = a if a <= b else b
            else:
                x = a if a >= b else b
            stack[n - 1] = x
        else:
            a = stack[n - 1]
            if op == Code.IS_MISSING:
                x = 1.0 if np.isnan(a) else 0.0
            elif op == Code.ABSOLUTE:
                x = abs(a)
            elif op == Code.FLOOR:
                x = np.floor(a)
            elif op == Code.SQRT:
                x = np.sqrt(a) if a >= 0.0 else np.nan
            elif op == Code.HOUR_OF_DAY:
                x = (a - np.floor(a / _DAY_MS) * _DAY_MS) / _HOUR_MS
            else:
                day = np.floor(a / _DAY_MS) + 3.0
                x = day - np.floor(day / 7.0) * 7.0
            stack[n - 1] = x
    return stack[0] != 0.0 and not np.isnan(stack[0])


@inner
def _matches(plan, state, rows, r, rec, bit, start, end):  # type: ignore[no-untyped-def]
    if (rows.masks[r] >> bit) & 1 == 0:
        return False
    return start == end or _holds(
        plan.code,
        plan.constants,
        rows.numbers[r],
        state.recs,
        state.numbers,
        state.stack,
        rec,
        start,
        end,
    )


# The pools.


@inner
def _free_record(state, rec):  # type: ignore[no-untyped-def]
    state.recs[rec, R_STEP] = NONE
    state.recs[rec, R_BIRTH] = NONE
    state.recs[rec, R_NEXT] = state.top[T_FREE_REC]
    state.top[T_FREE_REC] = rec
    state.top[T_LIVE] -= 1


@inner
def _new_record(plan, state, key, birth, first, expire):  # type: ignore[no-untyped-def]
    """A record at the first step without events; there is room for it."""
    rec = state.top[T_FREE_REC]
    if rec != NONE:
        state.top[T_FREE_REC] = state.recs[rec, R_NEXT]
    else:
        rec = state.top[T_RECS]
        state.top[T_RECS] += 1
    state.top[T_LIVE] += 1
    state.recs[rec, :] = 0
    state.recs[rec, R_KEY], state.recs[rec, R_NEXT] = key, NONE
    state.recs[rec, R_BIRTH], state.recs[rec, R_FIRST] = birth, first
    state.recs[rec, R_FLOOR], state.recs[rec, R_LAST] = first, first
    state.recs[rec, R_EXPIRE] = expire
    for v in range(plan.memory.shape[0]):
        state.numbers[rec, v] = 0.0 if plan.memory[v, M_AGG] == Agg.SUM else np.nan
    return rec


@inner
def _free_ring(state, s):  # type: ignore[no-untyped-def]
    ring = state.slots[s, RING]
    state.rings[ring, G_COUNT] = 0
    state.rings[ring, G_NEXT] = state.top[T_FREE_RING]
    state.top[T_FREE_RING] = ring
    state.slots[s, RING] = NONE


@inner
def _new_ring(state, s):  # type: ignore[no-untyped-def]
    ring = state.top[T_FREE_RING]
    if ring != NONE:
        state.top[T_FREE_RING] = state.rings[ring, G_NEXT]
    else:
        ring = state.top[T_RINGS]
        state.top[T_RINGS] += 1
    state.rings[ring, G_COUNT] = 0
    state.slots[s, RING] = ring
    return ring


@compiled
def _clear(state, s):  # type: ignore[no-untyped-def]
    """Give up all of a key."""
    rec = state.slots[s, HEAD]
    while rec != NONE:
        later = state.recs[rec, R_NEXT]
        _free_record(state, rec)
        rec = later
    state.slots[s, HEAD] = NONE
    if state.slots[s, RING] != NONE:
        _free_ring(state, s)


@compiled
def _unlink(state, s, gone):  # type: ignore[no-untyped-def]
    """Give up one record of a key."""
    rec = state.slots[s, HEAD]
    if rec == gone:
        state.slots[s, HEAD] = state.recs[gone, R_NEXT]
    else:
        while state.recs[rec, R_NEXT] != gone:
            rec = state.recs[rec, R_NEXT]
        state.recs[rec, R_NEXT] = state.recs[gone, R_NEXT]
    _free_record(state, gone)


# The heap of those that wait for absence.


@inner
def _earlier(heap, i, j):  # type: ignore[no-untyped-def]
    if heap[i, H_AT] != heap[j, H_AT]:
        return heap[i, H_AT] < heap[j, H_AT]
    return heap[i, H_BIRTH] < heap[j, H_BIRTH]


@inner
def _swap(heap, i, j):  # type: ignore[no-untyped-def]
    for w in range(HEAP_WORDS):
        heap[i, w], heap[j, w] = heap[j, w], heap[i, w]


@compiled
def wait(state, rec):  # type: ignore[no-untyped-def]
    """Let a record fire when its time is up; there is room for it."""
    heap, i = state.heap, state.top[T_HEAP]
    heap[i, H_AT], heap[i, H_BIRTH] = state.recs[rec, R_EXPIRE], state.recs[rec, R_BIRTH]
    heap[i, H_REC] = rec
    state.top[T_HEAP] += 1
    while i > 0 and _earlier(heap, i, (i - 1) // 2):
        _swap(heap, i, (i - 1) // 2)
        i = (i - 1) // 2


@compiled
def _pop(state):  # type: ignore[no-untyped-def]
    """The record at the head of the heap, NONE if it is gone already."""
    heap = state.heap
    rec, birth = heap[0, H_REC], heap[0, H_BIRTH]
    state.top[T_HEAP] -= 1
    n = state.top[T_HEAP]
    _swap(heap, 0, n)
    i = 0
    while True:
        least = i
        for child in range(2 * i + 1, min(2 * i + 3, n)):
            if _earlier(heap, child, least):
                least = child
        if least == i:
            break
        _swap(heap, i, least)
        i = least
    return rec if state.recs[rec, R_BIRTH] == birth else NONE


# A row and a record.


@inner
def _emit(state, out, row, rec):  # type: ignore[no-untyped-def]
    o = state.top[T_OUT]
    out.records[o, 0] = row
    for w in range(state.recs.shape[1]):
        out.records[o, OUT_WORDS + w] = state.recs[rec, w]
    for v in range(state.numbers.shape[1]):
        out.numbers[o, v] = state.numbers[rec, v]
    state.top[T_OUT] += 1


@inner
def _remember(plan, state, rec, v, x, first, newest):  # type: ignore[no-untyped-def]
    agg = plan.memory[v, M_AGG]
    known = state.numbers[rec, v]
    if agg == Agg.LAST:
        if newest:
            state.numbers[rec, v] = x
    elif agg == Agg.FIRST:
        if first:
            state.numbers[rec, v] = x
    elif np.isnan(x):
        pass
    elif agg == Agg.SUM:
        state.numbers[rec, v] = known + x
    elif np.isnan(known) or (x > known if agg == Agg.MOST else x < known):
        state.numbers[rec, v] = x


@inner
def _count(plan, state, rows, out, r, rec, i):  # type: ignore[no-untyped-def]
    """Take a row into step i of a record; what becomes of the record."""
    recs, steps = state.recs, plan.words[P_STEPS]
    t, offset, known = rows.times[r], rows.offsets[r], recs[rec, REC_WORDS + i]
    newest = t >= recs[rec, R_LAST]
    recs[rec, REC_WORDS + i] = known + 1
    if newest:
        recs[rec, R_LAST] = t
        recs[rec, REC_WORDS + steps + i] = offset
    if known < plan.steps[i, S_LEAST]:
        recs[rec, REC_WORDS + 2 * steps + recs[rec, R_LISTED]] = offset
        recs[rec, R_LISTED] += 1
    for v in range(plan.memory.shape[0]):
        if plan.memory[v, M_STEP] == i:
            x = rows.numbers[r, plan.memory[v, M_COLUMN]]
            _remember(plan, state, rec, v, x, known == 0, newest)
    out.used[r] = 1
    return _reached(plan, state, rec, i, known + 1)


@inner
def _reached(plan, state, rec, i, count):  # type: ignore[no-untyped-def]
    if i + 1 < plan.words[P_STEPS] or count != plan.steps[i, S_LEAST]:
        return KEPT
    if plan.words[P_ABSENCE] == 0:
        return MATCHED
    wait(state, rec)
    return KEPT


@inner
def _move(plan, state, rows, out, r, rec):  # type: ignore[no-untyped-def]
    """What a row does to a record."""
    recs = state.recs
    if recs[rec, R_EXPIRE] < rows.before[r]:
        return ENDED
    t = rows.times[r]
    if t - recs[rec, R_FIRST] > plan.words[P_WITHIN] or t < recs[rec, R_FLOOR]:
        return KEPT
    i, last = recs[rec, R_STEP], recs[rec, R_LAST]
    count = recs[rec, REC_WORDS + i]
    if count >= plan.steps[i, S_LEAST] and t >= last:
        for q in range(plan.steps[i, S_VETO], plan.steps[i, S_VETO_END]):
            veto = plan.vetoes[q]
            if _matches(plan, state, rows, r, rec, veto[V_BIT], veto[V_START], veto[V_END]):
                return ENDED
        if i + 1 < plan.words[P_STEPS]:
            step = plan.steps[i + 1]
            if _matches(plan, state, rows, r, rec, step[S_BIT], step[S_START], step[S_END]):
                recs[rec, R_STEP] = i + 1
                recs[rec, R_FLOOR] = last
                return _count(plan, state, rows, out, r, rec, i + 1)
    step = plan.steps[i]
    if count < step[S_MOST] and _matches(
        plan, state, rows, r, rec, step[S_BIT], step[S_START], step[S_END]
    ):
        return _count(plan, state, rows, out, r, rec, i)
    return ENDED if plan.words[P_STRICT] and t >= last else KEPT


# A row that matches the first step.


@inner
def _into_ring(plan, state, rows, out, s, r):  # type: ignore[no-untyped-def]
    """Put a row into its key's ring; whether the ring is now a complete first step."""
    size, width = plan.words[P_RING], plan.words[P_FIRST]
    ring = state.slots[s, RING]
    if ring == NONE:
        ring = _new_ring(state, s)
    g, numbers = state.rings[ring], state.ring_numbers[ring]
    times, offsets = g[RING_WORDS : RING_WORDS + size], g[RING_WORDS + size :]
    if g[G_COUNT] and g[G_EXPIRE] < rows.before[r]:
        g[G_COUNT] = 0
    t, n = rows.times[r], g[G_COUNT]
    if n == size and t < times[0]:
        return False
    at = n
    while at > 0 and times[at - 1] > t:
        at -= 1
    if n == size:
        at -= 1
        for i in range(at):
            times[i], offsets[i] = times[i + 1], offsets[i + 1]
            for v in range(width):
                numbers[i * width + v] = numbers[(i + 1) * width + v]
    else:
        for i in range(n, at, -1):
            times[i], offsets[i] = times[i - 1], offsets[i - 1]
            for v in range(width):
                numbers[i * width + v] = numbers[(i - 1) * width + v]
        g[G_COUNT] = n + 1
    times[at], offsets[at] = t, rows.offsets[r]
    for v in range(width):
        numbers[at * width + v] = rows.numbers[r, plan.memory[v, M_COLUMN]]
    expire = max(t, rows.at[r]) + plan.words[P_WITHIN]
    g[G_EXPIRE] = expire if n == 0 else max(expire, g[G_EXPIRE])
    out.used[r] = 1
    return g[G_COUNT] == size and times[size - 1] - times[0] <= plan.words[P_WITHIN]


@compiled
def _of_ring(plan, state, s, birth, watermark):  # type: ignore[no-untyped-def]
    """A record whose first step is what the ring holds."""
    size, width, steps = plan.words[P_RING], plan.words[P_FIRST], plan.words[P_STEPS]
    ring = state.slots[s, RING]
    times = state.rings[ring, RING_WORDS : RING_WORDS + size]
    offsets = state.rings[ring, RING_WORDS + size :]
    expire = max(times[0], watermark) + plan.words[P_WITHIN]
    rec = _new_record(plan, state, state.slots[s, KEY], birth, times[0], expire)
    state.recs[rec, R_LAST] = times[size - 1]
    state.recs[rec, R_LISTED] = size
    state.recs[rec, REC_WORDS] = size
    state.recs[rec, REC_WORDS + steps] = offsets[size - 1]
    for i in range(size):
        state.recs[rec, REC_WORDS + 2 * steps + i] = offsets[i]
        for v in range(width):
            x = state.ring_numbers[ring, i * width + v]
            _remember(plan, state, rec, v, x, i == 0, True)
    return rec


@compiled
def _append(plan, state, s, rec):  # type: ignore[no-untyped-def]
    """Hang a new record behind a key's others. Of too many, the youngest of the same step makes
    room, which the new one can replace but for its start; without one, the oldest."""
    count, tail, same = 0, NONE, NONE
    other = state.slots[s, HEAD]
    while other != NONE:
        if state.recs[other, R_STEP] == state.recs[rec, R_STEP]:
            same = other
        count += 1
        tail = other
        other = state.recs[other, R_NEXT]
    if count >= plan.words[P_PARTIALS]:
        gone = same if same != NONE else state.slots[s, HEAD]
        _unlink(state, s, gone)
        state.top[T_DROPPED] += 1
        tail = state.slots[s, HEAD]
        while tail != NONE and state.recs[tail, R_NEXT] != NONE:
            tail = state.recs[tail, R_NEXT]
    if tail == NONE:
        state.slots[s, HEAD] = rec
    else:
        state.recs[tail, R_NEXT] = rec


@inner
def _begin(plan, state, rows, out, s, r):  # type: ignore[no-untyped-def]
    """Let a row begin a partial match of its own, or complete one with the ring."""
    offset = rows.offsets[r]
    if plan.words[P_RING]:
        if not _into_ring(plan, state, rows, out, s, r):
            return
        rec = _of_ring(plan, state, s, offset, rows.at[r])
        fate = _reached(plan, state, rec, 0, plan.words[P_RING])
    else:
        t = rows.times[r]
        expire = max(t, rows.at[r]) + plan.words[P_WITHIN]
        rec = _new_record(plan, state, rows.keys[r], offset, t, expire)
        fate = _count(plan, state, rows, out, r, rec, 0)
    if fate == KEPT:
        _append(plan, state, s, rec)
    else:
        _emit(state, out, r, rec)
        _free_record(state, rec)
        if plan.words[P_PAST_LAST]:
            _clear(state, s)


@inner
def _take(plan, state, rows, out, r):  # type: ignore[no-untyped-def]
    """Let a row move its key's records, oldest first, and begin one."""
    slots, recs, key = state.slots, state.recs, rows.keys[r]
    first = plan.steps[0]
    starts = _matches(plan, state, rows, r, 0, first[S_BIT], first[S_START], first[S_END])
    s = find(slots, key)
    if slots[s, KEY] == 0:
        if not starts:
            return
        slots[s, KEY], slots[s, HEAD], slots[s, RING] = key, NONE, NONE
        state.top[T_SLOTS] += 1
    before, rec = NONE, slots[s, HEAD]
    while rec != NONE:
        later = recs[rec, R_NEXT]
        fate = _move(plan, state, rows, out, r, rec)
        if fate == MATCHED:
            _emit(state, out, r, rec)
            if plan.words[P_PAST_LAST]:
                _clear(state, s)
                return
        if fate == KEPT:
            before = rec
        else:
            if before == NONE:
                slots[s, HEAD] = later
            else:
                recs[before, R_NEXT] = later
            _free_record(state, rec)
        rec = later
    if starts:
        _begin(plan, state, rows, out, s, r)
    elif plan.words[P_STRICT] and slots[s, RING] != NONE:
        ring = slots[s, RING]
        n = state.rings[ring, G_COUNT]
        if rows.times[r] >= state.rings[ring, RING_WORDS + n - 1]:
            _free_ring(state, s)


@compiled
def _fire(plan, state, out):  # type: ignore[no-untyped-def]
    """The next record that waited for absence is complete."""
    rec = _pop(state)
    if rec == NONE:
        return
    _emit(state, out, NONE, rec)
    s = find(state.slots, state.recs[rec, R_KEY])
    if plan.words[P_PAST_LAST]:
        _clear(state, s)
    else:
        _unlink(state, s, rec)


@inner
def _short(plan, state, out):  # type: ignore[no-untyped-def]
    """Whether one row more may find no room."""
    top, most = state.top, plan.words[P_PARTIALS] + 1
    return (
        out.records.shape[0] - top[T_OUT] < most
        or state.heap.shape[0] - top[T_HEAP] < most
        or (top[T_FREE_REC] == NONE and top[T_RECS] == state.recs.shape[0])
        or (top[T_FREE_RING] == NONE and top[T_RINGS] == state.rings.shape[0])
        or (top[T_SLOTS] + 1) * 2 > state.slots.shape[0]
    )


@inner
def _fetch_ahead(state, keys, r):  # type: ignore[no-untyped-def]
    """Have on its way from memory what the rows after row r read."""
    if r + SLOTS_AHEAD < keys.shape[0]:
        prefetch(state.slots, _home(state.slots, keys[r + SLOTS_AHEAD]) * SLOT_WORDS)
    if r + RECORDS_AHEAD < keys.shape[0]:
        rec = state.slots[find(state.slots, keys[r + RECORDS_AHEAD]), HEAD]
        prefetch(state.recs, rec * state.recs.shape[1])
        prefetch(state.recs, (rec + 1) * state.recs.shape[1] - 1)


@compiled
def process(plan, state, rows, out, start, watermark):  # type: ignore[no-untyped-def]
    """Take rows from ``start`` on; the row to go on with, n + 1 when all is done.

    Before a row, and after the last one, what the watermark has completed fires.
    """
    n = rows.keys.shape[0]
    for r in range(start, n + 1):
        due = rows.before[r] if r < n else watermark
        while state.top[T_HEAP] > 0 and state.heap[0, H_AT] <= due:
            if state.top[T_OUT] == out.records.shape[0]:
                return r
            _fire(plan, state, out)
        if r < n:
            _fetch_ahead(state, rows.keys, r)
            if _short(plan, state, out):
                return r
            _take(plan, state, rows, out, r)
    return n + 1


@inner
def _waits(plan, state, rec):  # type: ignore[no-untyped-def]
    i = plan.words[P_STEPS] - 1
    return (
        plan.words[P_ABSENCE] != 0
        and state.recs[rec, R_STEP] == i
        and state.recs[rec, REC_WORDS + i] >= plan.steps[i, S_LEAST]
    )


@compiled
def sweep(plan, state, watermark):  # type: ignore[no-untyped-def]
    """Free what the watermark has left behind; the number of keys that still have something.

    The heap is made anew of those that still wait. Slots stay; ``rehash`` leaves the idle ones out.
    """
    keys = 0
    for s in range(state.slots.shape[0]):
        if state.slots[s, KEY] == 0:
            continue
        rec = state.slots[s, HEAD]
        while rec != NONE:
            later = state.recs[rec, R_NEXT]
            if state.recs[rec, R_EXPIRE] < watermark and not _waits(plan, state, rec):
                _unlink(state, s, rec)
            rec = later
        ring = state.slots[s, RING]
        if ring != NONE and state.rings[ring, G_EXPIRE] < watermark:
            _free_ring(state, s)
        keys += state.slots[s, HEAD] != NONE or state.slots[s, RING] != NONE
    waiting(plan, state)
    return keys


@compiled
def waiting(plan, state):  # type: ignore[no-untyped-def]
    """Make the heap of the records that wait for absence."""
    state.top[T_HEAP] = 0
    for rec in range(state.top[T_RECS]):
        if state.recs[rec, R_STEP] != NONE and _waits(plan, state, rec):
            wait(state, rec)


@compiled
def rehash(slots, larger):  # type: ignore[no-untyped-def]
    """Move the keys that have something into empty slots; how many they are."""
    keys = 0
    for s in range(slots.shape[0]):
        if s + SLOTS_AHEAD < slots.shape[0]:
            prefetch(larger, _home(larger, slots[s + SLOTS_AHEAD, KEY]) * SLOT_WORDS)
        if slots[s, KEY] != 0 and (slots[s, HEAD] != NONE or slots[s, RING] != NONE):
            place = find(larger, slots[s, KEY])
            for w in range(SLOT_WORDS):
                larger[place, w] = slots[s, w]
            keys += 1
    return keys


@njit(cache=True, nogil=True)
def walk(state, slots, counts):  # type: ignore[no-untyped-def]
    """The records of some slots, slot by slot; ``counts`` [slots] becomes how many each has."""
    order, n = np.empty(state.top[T_LIVE], np.int64), 0
    for s in range(slots.shape[0]):
        rec = slots[s, HEAD]
        while rec != NONE:
            order[n] = rec
            counts[s] += 1
            n += 1
            rec = state.recs[rec, R_NEXT]
    return order
