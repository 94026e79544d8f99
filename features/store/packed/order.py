"""Which of two rows of one key is the newer.

Views of window values say so themselves, by a tag: their `created` is the log offset, and a row
after more of the log is the newer whatever its event time. Any other view is ordered as Feast's
offline joins order it: by event time, then by `created`.
"""

from __future__ import annotations

NEWEST_BY = "newest_by"
"""Tag of a feature view."""

CREATED = "created"
"""Its value where `created` alone decides."""

NEVER = -(2**63)
"""`created` of a row that has none: before all others."""
