"""A client of raypipe's HTTP interface, blocking or async.

>>> from raypipe.client import Client
>>> with Client("http://127.0.0.1:8000", "rp_live_...") as raypipe:  # doctest: +SKIP
...     decision = raypipe.decide({"event_time": 1_760_000_000_000, ...})
...     print(decision.action, [reason.code for reason in decision.reasons])

What the server refuses is raised as the error of raypipe.errors that its problem names: Conflict,
InputError with all violations, Unauthenticated, Unavailable and so on. A call that meets a lost
connection, 429 or 503 is sent again, and counts once however often that happens.
"""

from raypipe.client.aio import AsyncClient
from raypipe.client.answers import (
    Decision,
    DecisionDetail,
    Exceptional,
    KeyFeatures,
    Outcome,
    Reason,
    Sent,
    TableRows,
)
from raypipe.client.retries import Retries
from raypipe.client.sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "Decision",
    "DecisionDetail",
    "Exceptional",
    "KeyFeatures",
    "Outcome",
    "Reason",
    "Retries",
    "Sent",
    "TableRows",
]
