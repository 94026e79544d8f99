"""Published policies in the lake: ``policies/<name>/<version>/``, immutable once written."""

from __future__ import annotations

from raypipe.lake import Place
from raypipe.policy.reading import parse_policy
from raypipe.policy.rules import RuleSet
from raypipe.policy.spec import PolicySpec
from raypipe.project import Project
from raypipe.published import Manifest, Shelf

POLICIES = Shelf("policies", "policy", parse_policy)


def publish(
    lake: Place, spec: PolicySpec, source: bytes, project: Project, now_ms: int
) -> tuple[Manifest, bool]:
    """Write a version as a whole or not at all; its manifest, and whether it is new.

    The same policy again is the same version, whatever its comments and spaces.

    Raises:
        DeclarationError: it does not fit the project.
        Conflict: this version is another policy.
    """
    RuleSet(spec, project)
    return POLICIES.publish(lake, spec, source, project.name, now_ms)


def load_policy(lake: Place, reference: str, project: Project) -> RuleSet:
    """A published policy, checked and compiled: ``.bind(features)`` it to a model's features.

    Args:
        reference: ``name@version``, or ``name`` for the highest version.

    Raises:
        NotFound: there is none.
        IntegrityError: its bytes were changed.
        DeclarationError: it does not fit the project.
    """
    return RuleSet(POLICIES.read(lake, reference), project)
