"""Pattern files of a project: which there are, and whether they can run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType
from raypipe.patterns.plan import compile_pattern
from raypipe.patterns.reading import read_patterns
from raypipe.patterns.spec import Pattern
from raypipe.project import Project, load_project

if TYPE_CHECKING:
    from raypipe.config import Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a file, or a pattern of it, can't run; ``detail`` begins with the place."""

    file: str
    detail: str
    hint: str


def project_files(reference: str) -> list[Path]:
    """The pattern files of the project ``module:attribute``: ``patterns/PROJECT.yaml`` beside its
    module, if there is one."""
    project = load_project(reference)
    module = sys.modules[reference.partition(":")[0]]
    if not module.__file__:
        return []
    file = Path(module.__file__).parent / "patterns" / f"{project.name}.yaml"
    return [file] if file.is_file() else []


def pattern_files(settings: Settings) -> list[Path]:
    """The files that a worker's patterns come from: the setting `patterns`, a file or a folder of
    YAML files, else those of the project."""
    if settings.patterns is None:
        return project_files(settings.project)
    if settings.patterns.is_dir():
        return sorted(settings.patterns.glob("*.yaml"))
    return [settings.patterns]


def lint(files: Sequence[Path], events: Sequence[EventType]) -> tuple[list[Pattern], list[Finding]]:
    """The patterns of all files that can run over these event types, and why the rest can't."""
    good: list[Pattern] = []
    findings: list[Finding] = []
    for file in files:
        try:
            patterns = read_patterns(file)
        except DeclarationError as e:
            findings.append(Finding(str(file), e.detail, e.hint))
            continue
        for pattern in patterns:
            try:
                compile_pattern(pattern, events)
                if any(p.name == pattern.name for p in good):
                    pattern.fail("name", "the name is taken by another pattern", "Choose another.")
            except DeclarationError as e:
                findings.append(Finding(str(file), e.detail, e.hint))
            else:
                good.append(pattern)
    return good, findings


def runnable(files: Sequence[Path], project: Project) -> list[Pattern]:
    """The patterns of all files; raises DeclarationError with everything that is wrong."""
    patterns, findings = lint(files, project.events)
    if findings:
        raise DeclarationError(
            "\n".join(f"{f.detail}\n  {f.hint}".rstrip() for f in findings),
            hint="`raypipe patterns lint` checks files alone.",
        )
    return patterns
