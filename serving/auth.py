"""From the Authorization header to a credential with the scope that a route needs."""

from __future__ import annotations

from typing import Protocol

from raypipe.errors import Forbidden, Unauthenticated
from raypipe.tenancy.keys import Credential, Scope


class Verifier(Protocol):
    """Knows API keys; a serving.credentials.Credentials does."""

    def fresh(self, text: str) -> Credential | None:
        """The credential behind a key text if that is known without waiting."""

    async def verify(self, text: str) -> Credential | None:
        """The credential behind a key text, or None."""


class Keys(Verifier, Protocol):
    """A verifier that needs the worker, and one for reads while the worker is away."""

    @property
    def remembered(self) -> Verifier:
        """Knows what was verified lately; raises Unavailable for anything else."""


async def authorize(header: str | None, scope: Scope, keys: Verifier) -> Credential:
    """The caller's credential.

    Raises Unauthenticated without a valid key, Forbidden when the key lacks ``scope``.
    """
    return permit(await keys.verify(shown_key(header)), scope)


def shown_key(header: str | None) -> str:
    """The key text in an Authorization header; raises Unauthenticated without one."""
    scheme, _, text = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not text:
        raise Unauthenticated(
            "the request carries no API key",
            hint="Send 'Authorization: Bearer <key>'; the local key is in <home>/api-key.",
        )
    return text.strip()


def permit(credential: Credential | None, scope: Scope) -> Credential:
    """The credential that a key was found to have; raises as ``authorize``."""
    if credential is None:
        raise Unauthenticated(
            "the API key is not known or was revoked",
            hint="Check for a truncated copy; keys start with 'rp_'.",
        )
    if scope not in credential.scopes:
        raise Forbidden(
            f"key {credential.key_id} lacks the scope '{scope}'",
            hint="Use a key that was created with this scope.",
        )
    return credential
