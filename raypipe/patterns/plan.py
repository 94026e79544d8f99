"""A pattern checked against the event types and compiled: what the kernel and the inputs need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.events.schema import EventType, Kind
from raypipe.patterns import kernel
from raypipe.patterns.expressions import Compiled, Memory, Scope, compile_where
from raypipe.patterns.reasons import Reason
from raypipe.patterns.spec import Pattern
from raypipe.windows.conditions import Condition
from raypipe.yaml_nodes import nearest

_ANY_MORE = 2**62


@dataclass(frozen=True)
class Compilation:
    """One pattern ready to run.

    ``conditions`` are (event type, bit, what its columns must fulfil), ``columns`` what a row's
    numbers are by position.
    """

    pattern: Pattern
    plan: kernel.Plan
    conditions: tuple[tuple[str, int, Condition | None], ...]
    columns: tuple[str, ...]
    reason: Reason

    @property
    def record_words(self) -> int:
        """Words of a record."""
        positive = self.pattern.positive
        return kernel.REC_WORDS + 2 * len(positive) + sum(s.least for s in positive)

    def key(self, event: str) -> str:
        """The column that groups events of that type."""
        return dict(self.pattern.keys)[event]


def compile_pattern(pattern: Pattern, events: Sequence[EventType]) -> Compilation:
    """Check a pattern against the event types; raises DeclarationError with the nearest name."""
    known = {e.name: e for e in events}
    _check_events(pattern, known)
    scope, memory = Scope(pattern, known), Memory()
    compiled: dict[str, Compiled] = {}
    before = 0
    for step in pattern.steps:
        compiled[step.name] = compile_where(scope, step, before, memory)
        before += not step.negated
    reason = Reason(scope, memory)
    bits = {s.name: i for i, s in enumerate(pattern.steps)}
    conditions = tuple(
        (event, bits[step.name], compiled[step.name].columns)
        for step in pattern.steps
        for event in step.events
    )
    plan = _plan(pattern, compiled, bits, memory)
    return Compilation(pattern, plan, conditions, tuple(memory.columns), reason)


def _check_events(pattern: Pattern, known: Mapping[str, EventType]) -> None:
    for step in pattern.steps:
        for event in step.events:
            if event not in known:
                pattern.fail(
                    f"steps.{step.name}.event",
                    f"step {step.name!r} reads unknown event type {event!r}",
                    nearest(event, known),
                )
    for event, column in pattern.keys:
        fields = {f.name: f for f in known[event].all_fields}
        if column not in fields:
            pattern.fail(
                "group_by",
                f"groups by unknown column {event}.{column}",
                nearest(column, fields),
            )
        if fields[column].kind is not Kind.STRING:
            pattern.fail(
                "group_by", f"key {event}.{column} is no string but of kind {fields[column].kind}"
            )


def _plan(
    pattern: Pattern, compiled: Mapping[str, Compiled], bits: Mapping[str, int], memory: Memory
) -> kernel.Plan:
    # The ring keeps the first step's numbers: they lead.
    order = sorted(range(len(memory.remembered)), key=lambda i: memory.remembered[i].step)
    place = {old: new for new, old in enumerate(order)}
    for at, (code, argument) in enumerate(memory.code):
        if code == kernel.Code.REMEMBERED:
            memory.code[at] = (code, place[argument])
    memory.remembered[:] = [memory.remembered[i] for i in order]
    steps, vetoes = _steps(pattern, compiled, bits)
    ring = steps[0][kernel.S_LEAST]
    words = [0] * kernel.PLAN_WORDS
    words[kernel.P_STEPS] = len(steps)
    words[kernel.P_WITHIN] = pattern.within_ms
    words[kernel.P_PAST_LAST] = int(pattern.after_match == "skip_past_last")
    words[kernel.P_STRICT] = int(pattern.strict)
    words[kernel.P_RING] = ring if ring > 1 else 0
    words[kernel.P_PARTIALS] = pattern.partials
    words[kernel.P_ABSENCE] = int(pattern.awaits_absence)
    words[kernel.P_FIRST] = sum(m.step == 0 for m in memory.remembered)
    return kernel.Plan(
        np.array(words, np.int64),
        np.array(steps, np.int64),
        np.array(vetoes, np.int64).reshape(-1, kernel.VETO_WORDS),
        np.array(memory.code, np.int64).reshape(-1, 2),
        np.array(memory.constants, np.float64),
        np.array(
            [(m.step, memory.column(m.column), int(m.agg)) for m in memory.remembered], np.int64
        ).reshape(-1, kernel.MEMORY_WORDS),
    )


def _steps(
    pattern: Pattern, compiled: Mapping[str, Compiled], bits: Mapping[str, int]
) -> tuple[list[list[int]], list[list[int]]]:
    steps: list[list[int]] = []
    vetoes: list[list[int]] = []
    for step in pattern.steps:
        bit, (_, start, end) = bits[step.name], compiled[step.name]
        if step.negated:
            vetoes.append([bit, start, end])
            steps[-1][kernel.S_VETO_END] = len(vetoes)
        else:
            most = _ANY_MORE if step.most is None else step.most
            steps.append([bit, step.least, most, len(vetoes), len(vetoes), start, end])
    return steps, vetoes
