"""A view as the kernel reads it: one vector of numbers, and the estimates of its bit maps.

What a tile, an event and a tail hold follows from the declared aggregates alone, so equal
declarations have equal layouts; the definition hash in a snapshot vouches for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from raypipe.windows import kernel
from raypipe.windows.aggregates import SINGLE, Op
from raypipe.windows.spec import Column, Sketch, WindowView

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

KEEP_RATIO = 2
"""A key keeps accumulators between reads when its entries take so many times their room."""

CLASS_GROWTH = 1.2
_MOST_WORDS = 2**31

_WORD_BITS = 63
_STATS = {
    Op.SUM: kernel.SUM,
    Op.MEAN: kernel.MEAN,
    Op.MIN: kernel.MIN,
    Op.MAX: kernel.MAX,
    Op.STD: kernel.STD,
}

Last = tuple[int, int, list[int]]
"""Last events under one condition: first word in the tail, how many, their value columns."""


class Layout:
    """The layout of one view.

    Attributes:
        words: int64 vector, see kernel.py.
        plan: int64 [columns, PLAN_ROW], the outputs.
        tables: float64, linear-counting estimates for each number of bits set, by width.
        classes: number of size classes of blocks.
        figures: number of statistics of a span.
    """

    def __init__(self, view: WindowView) -> None:
        self._view = view
        self._flags = {f: 1 << i for i, f in enumerate(view.filters)}
        spanned = [c for c in view.columns if c.op not in SINGLE]
        flags = [self._flag(c) for c in spanned]
        self._counts = list(dict.fromkeys([0, *flags]))
        self._channels = list(
            dict.fromkeys(
                (view.summed_columns.index(c.aggregate.column), flag)
                for c, flag in zip(spanned, flags, strict=True)
                if c.op in _STATS
            )
        )
        names = [s.column for s in view.sketches]
        found = dict.fromkeys(
            (names.index(c.aggregate.column), flag)
            for c, flag in zip(spanned, flags, strict=True)
            if c.op is Op.DISTINCT
        )
        # Bit maps first: a tile holds them together, and so the registers.
        self._sketches = sorted(found, key=lambda s: view.sketches[s[0]].registers > 0)
        self.figures = len(self._counts) + kernel.STATS * len(self._channels) + len(self._sketches)
        self._lasts = self._last_events()
        estimates = _estimates(view.sketches)
        self.tables = np.array([x for t in estimates.values() for x in t] or [0.0])
        self.plan = np.array([self._planned(c) for c in view.columns], np.int64)
        self.words = self._written(estimates)
        self.classes = int(self.words[kernel.COUNT_ROWS] - self.words[kernel.CLASSES])

    def __getitem__(self, name: int) -> int:
        return int(self.words[name])

    def _flag(self, column: Column) -> int:
        return self._flags.get(self._view.filter(column.aggregate), 0)

    def _written(self, estimates: dict[int, list[float]]) -> Ints:
        view, spans = self._view, self._view.spans
        marks, flags, event_words = self._event()
        channels_at = 1 + len(self._counts)
        maps_at = channels_at + kernel.CHANNEL_WORDS * len(self._channels)
        sketch_words = [view.sketches[i].words for i, _ in self._sketches]
        mapped = [
            n
            for n, (i, _) in zip(sketch_words, self._sketches, strict=True)
            if not view.sketches[i].registers
        ]
        tail = sum(depth * (1 + len(columns)) for _, depth, columns in self._lasts.values())
        tile_words = maps_at + sum(sketch_words)
        head = {
            kernel.SPANS: len(spans),
            kernel.EVENT_WORDS: event_words,
            kernel.TILE_WORDS: tile_words,
            kernel.TAIL_WORDS: tail,
            kernel.FEW: -(-tile_words // event_words),
            kernel.KEEP: int(KEEP_RATIO * len(spans) * tile_words),
            kernel.FLAGS_WORD: flags[0],
            kernel.FLAGS_SHIFT: flags[1],
            kernel.VALUES: len(view.summed_columns),
            kernel.COUNTS: len(self._counts),
            kernel.CHANNELS: len(self._channels),
            kernel.CHANNELS_AT: channels_at,
            kernel.MAPS_AT: maps_at,
            kernel.REGISTERS_AT: maps_at + sum(mapped),
            kernel.SKETCHES: len(self._sketches),
            kernel.MARKED: len(marks),
        }
        rows: list[int] = []

        def put(name: int, words: Iterable[int]) -> None:
            head[name] = kernel.LAYOUT_WORDS + len(rows)
            rows.extend(words)

        put(kernel.HOPS, [s.hop for s in spans])
        put(kernel.REACHES, [s.length // s.hop for s in spans])
        put(kernel.CLASSES, _classes(tail, event_words))
        put(kernel.COUNT_ROWS, self._counts)
        put(
            kernel.CHANNEL_ROWS,
            _flat((1 + value, flag, self._counts.index(flag)) for value, flag in self._channels),
        )
        put(kernel.MARKS, _flat(marks))
        put(kernel.SKETCH_ROWS, _flat(self._sketch_rows(maps_at, head[kernel.MARKS], estimates)))
        sources = kernel.LAYOUT_WORDS + len(rows)
        rows.extend(c for _, _, columns in self._lasts.values() for c in columns)
        put(kernel.LASTS, ())
        for flag, (word, depth, columns) in self._lasts.items():
            rows += [word, depth, 1 + len(columns), flag, sources]
            sources += len(columns)
        put(kernel.LASTS_END, ())
        put(kernel.WANTED, self._wanted())
        return np.array([head[name] for name in range(kernel.LAYOUT_WORDS)] + rows, np.int64)

    def _event(self) -> tuple[list[list[int]], tuple[int, int], int]:
        """Where an event holds its marks and flags, and its words: first fit, header first."""
        words = 1 + len(self._view.summed_columns)
        room = [(0, 1, kernel.HEADER_BITS)]  # word, shift of the next bit, bits left

        def fit(bits: int) -> tuple[int, int]:
            nonlocal words
            for i, (word, shift, left) in enumerate(room):
                if bits <= left:
                    room[i] = (word, shift + bits, left - bits)
                    return word, shift
            room.append((words, bits, _WORD_BITS - bits))
            words += 1
            return words - 1, 0

        marks = []
        for s in self._view.sketches:
            size = (s.registers or s.bits).bit_length() - 1
            bits = size + kernel.RANK_BITS if s.registers else size + 1
            word, shift = fit(bits)
            marks.append([word, shift, (1 << bits) - 1, size, int(s.registers > 0)])
        return marks, fit(len(self._flags)), words

    def _sketch_rows(
        self, word: int, marks: int, estimates: dict[int, list[float]]
    ) -> Iterable[tuple[int, ...]]:
        tables = dict(
            zip(estimates, accumulate(map(len, estimates.values()), initial=0), strict=False)
        )
        for i, flag in self._sketches:
            sketch = self._view.sketches[i]
            size = -(sketch.registers.bit_length() - 1) if sketch.registers else sketch.words
            yield word, marks + i * kernel.MARK_ROW, flag, size, tables.get(sketch.bits, 0)
            word += sketch.words

    def _last_events(self) -> dict[int, Last]:
        """Last events by filter bit. The newest of all needs none for its time: it is the clock."""
        wanted: dict[int, tuple[int, list[int]]] = {}
        for c in self._view.columns:
            flag = self._flag(c)
            if c.op is Op.LAST or (c.op is Op.SINCE_LAST and (flag or c.step > 1)):
                depth, columns = wanted.get(flag, (0, []))
                if c.op is Op.LAST:
                    columns.append(self._view.value_columns.index(c.aggregate.column))
                wanted[flag] = (max(depth, c.step), list(dict.fromkeys(columns)))
        out, word = {}, 0
        for flag, (depth, columns) in wanted.items():
            out[flag] = (word, depth, columns)
            word += depth * (1 + len(columns))
        return out

    def _figure(self, c: Column) -> int:
        """The place of an output's statistic among those of its span."""
        flag, name = self._flag(c), c.aggregate.column
        if c.op is Op.COUNT:
            return self._counts.index(flag)
        figure = len(self._counts)
        if c.op in _STATS:
            channel = self._channels.index((self._view.summed_columns.index(name), flag))
            return figure + kernel.STATS * channel + _STATS[c.op]
        names = [s.column for s in self._view.sketches]
        figure += kernel.STATS * len(self._channels)
        return figure + self._sketches.index((names.index(name), flag))

    def _planned(self, c: Column) -> tuple[int, int, int, int]:
        flag = self._flag(c)
        if c.op not in SINGLE:
            figure = self._figure(c)
            if c.minus >= 0:
                return kernel.DIFFERENCE, figure, c.span, c.minus
            return c.span * self.figures + figure, 0, 0, 0
        if c.op is Op.SINCE_LAST and c.step == 1 and not flag:
            return kernel.SINCE, 0, 0, 0
        word, _, columns = self._lasts[flag]
        time = word + (c.step - 1) * (1 + len(columns))
        if c.op is Op.SINCE_LAST:
            return kernel.SINCE_LAST, time, 0, 0
        value = self._view.value_columns.index(c.aggregate.column)
        return kernel.LAST_VALUE, time, time + 1 + columns.index(value), 0

    def _wanted(self) -> list[int]:
        """For each span: whether the finer one computes all that this one needs; what is needed."""
        wanted = np.zeros((len(self._view.spans), 1 + self.figures), np.int64)
        for c in self._view.columns:
            if c.op not in SINGLE and c.minus < 0:
                wanted[c.span, 1 + self._figure(c)] = 1
        channels, first = len(self._channels), 1 + len(self._counts)
        costly = [
            *(first + kernel.STATS * v + kernel.STD for v in range(channels)),
            *range(first + kernel.STATS * channels, 1 + self.figures),
        ]
        for finer, coarser in pairwise(wanted):
            coarser[0] = int((finer[costly] >= coarser[costly]).all())
        out: list[int] = wanted.reshape(-1).tolist()
        return out


def _flat(rows: Iterable[Iterable[int]]) -> list[int]:
    return [x for row in rows for x in row]


def _classes(tail: int, event: int) -> list[int]:
    """Words of the blocks that keys have: room for one event, two, and then a fifth more each."""
    out, body = [], event
    while body < _MOST_WORDS:
        out.append(tail + body)
        body = max(body + event, math.ceil(body * CLASS_GROWTH / event) * event)
    return out


def _estimates(sketches: Iterable[Sketch]) -> dict[int, list[float]]:
    """Linear-counting estimates for 0 to all bits set, by width."""
    return {
        bits: [
            bits * math.log(bits / (bits - k)) if k < bits else bits * math.log(2 * bits)
            for k in range(bits + 1)
        ]
        for bits in dict.fromkeys(s.bits for s in sketches if s.bits)
    }
