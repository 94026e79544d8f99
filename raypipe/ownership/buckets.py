"""From a bucket of keys to the worker that owns it: the one place that knows.

Buckets are fixed, their owners are not for ever: to move some of them between workers is to change
what this module answers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.windows.hashing import BUCKETS, Ints, bucket, bucket_of

MOST_WORKERS = 64
"""Each then owns 16 buckets, so that keys spread evenly."""

NOBODY = -1
"""The owner of a key that isn't there."""

Workers = npt.NDArray[np.int32]


def owned(worker: int, workers: int) -> range:
    """The buckets of one of ``workers`` workers: contiguous, their numbers differ by one at most.

    >>> [owned(worker, 3) for worker in range(3)]
    [range(0, 342), range(342, 683), range(683, 1024)]
    """
    return range(-(-worker * BUCKETS // workers), -(-(worker + 1) * BUCKETS // workers))


def owner(key_hash: int, workers: int) -> int:
    """The owner of a key by its signed 64-bit hash; NOBODY for 0, which is no key."""
    if not key_hash:
        return NOBODY
    return bucket(key_hash) * workers // BUCKETS


def owners(key_hashes: Ints, workers: int) -> Workers:
    """The same of many keys [n]."""
    found: Workers = bucket_of(key_hashes) * np.int32(workers) // np.int32(BUCKETS)
    found[key_hashes == 0] = NOBODY
    return found
