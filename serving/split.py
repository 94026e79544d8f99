"""Which model decides about a key: by a hash, so that each key keeps its model."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from serving.release import Challenger

CHAMPION = "champion"
"""The arm of all keys that no challenger has."""

_STEPS = 1 << 64


class Split:
    """Shares of the keys for challengers, tried in their order, the rest for the champion.

    Each challenger draws by a hash of its own among the keys that those before it have left, so
    that one that is added at the end takes keys from the champion alone, and one that is removed
    hands its keys to the others in their shares and moves few of theirs.
    """

    def __init__(self, salt: str, challengers: Sequence[Challenger]) -> None:
        self._draws: list[tuple[bytes, int]] = []
        left = 1.0
        for challenger in challengers:
            share = min(challenger.share / left, 1.0) if left > 0 else 0.0
            seed = blake2b(f"{salt}\0{challenger.model}".encode(), digest_size=32).digest()
            self._draws.append((seed, round(share * _STEPS)))
            left -= challenger.share

    def arm(self, tenant: str, key: str) -> int:
        """The place of a key's challenger in the given order; -1 for the champion.

        >>> half = Split("s", [Challenger("m@2", 0.5)])
        >>> [half.arm("t", f"k{i}") for i in range(8)]
        [-1, -1, 0, 0, -1, 0, 0, -1]
        """
        if not self._draws:
            return -1
        # The length keeps ("a", "bc") and ("ab", "c") apart.
        subject = f"{len(tenant)}:{tenant}{key}".encode()
        for place, (seed, limit) in enumerate(self._draws):
            drawn = int.from_bytes(blake2b(subject, digest_size=8, key=seed).digest(), "little")
            if drawn < limit:
                return place
        return -1
