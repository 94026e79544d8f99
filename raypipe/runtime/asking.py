"""One question to a server over HTTP, its problems as the errors that they were."""

from __future__ import annotations

from typing import Any

from raypipe.errors import Unavailable, Violation, error_of

TIMEOUT_S = 30.0


def ask(base: str, key: str, method: str, path: str, **given: Any) -> Any:
    """The JSON of an answer.

    Args:
        given: for httpx: ``params``, ``json``.

    Raises the error that a problem document names, Unavailable when nobody answers.
    """
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    try:
        # trust_env=False: a proxy of the environment has no business on this machine's loopback.
        with httpx.Client(base_url=base, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.request(method, path, headers=headers, **given)
            found: Any = answer.json()
    except (httpx.HTTPError, ValueError) as e:
        raise Unavailable(
            f"{base} does not answer: {type(e).__name__}: {e}", hint="`raypipe status` shows it."
        ) from e
    if answer.is_success:
        return found
    raise error_of(found.get("code", ""))(
        found.get("detail", f"HTTP {answer.status_code}"),
        hint=found.get("hint", ""),
        violations=tuple(Violation(v["pointer"], v["detail"]) for v in found.get("errors", ())),
    )
