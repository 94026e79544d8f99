"""The client against a real server that refuses, drops and delays as it is told."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raypipe import errors
from raypipe.client import AsyncClient, Client, Outcome, Retries, Sent, answers
from raypipe.client.refusals import Failed
from raypipe.client.retries import Attempts
from serving import schemas

Answer = tuple[int, dict[str, str], bytes] | str
QUICK = Retries(base_s=0.001)

DECISION = {
    "decision_id": "dec_1",
    "event_id": "e-1",
    "action": "review",
    "score": 0.5,
    "reasons": [{"code": "HEAT", "feature": "heat", "contribution": 1.5}],
    "model": "fault@1",
    "policy": "p",
    "definition_hash": "d",
    "degraded": False,
    "event_offset": 3,
    "event_time": 1,
    "received_at": 2,
    "decided_at": 3,
    "replayed": False,
    "of_a_later_server": [1],
}
TAKEN = {"accepted": 2, "duplicates": 0, "refused": 0, "first_offset": 0, "exceptions": []}


def ok(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def problem(status: int, code: str, **more: Any) -> Answer:
    body = {"type": "x", "title": "t", "status": status, "detail": "why", "code": code}
    retry = more.pop("retry_after", None)
    headers = {"Content-Type": "application/problem+json"}
    return (
        status,
        headers | ({} if retry is None else {"Retry-After": retry}),
        json.dumps(body | {"request_id": "req-7", "hint": "so"} | more).encode(),
    )


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Gives its answers one after the other; "drop" ends the connection, "hang" says nothing."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {k.lower(): v for k, v in handler.headers.items()}
        self.asked.append(Asked(handler.command, handler.path, headers, body))
        answer = self.answers.pop(0)
        if answer == "hang":
            self.released.wait(30)
        if isinstance(answer, str):
            handler.close_connection = True
            return
        status, given, content = answer
        handler.send_response(status)
        for name, value in given.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Server]:
    scripted = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            scripted.take(self)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    scripted.url = f"http://127.0.0.1:{http.server_port}"
    yield scripted
    scripted.released.set()
    http.shutdown()
    thread.join()
    http.server_close()


Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "async"])
def ask(request: pytest.FixtureRequest, server: Server) -> Ask:
    """Calls a method of either client."""

    def blocking(
        method: str, *given: Any, client: dict[str, Any] | None = None, **named: Any
    ) -> Any:
        options = {"retries": QUICK, "trust_env": False} | (client or {})
        with Client(server.url, "rp_test", **options) as it:
            return getattr(it, method)(*given, **named)

    def awaited(
        method: str, *given: Any, client: dict[str, Any] | None = None, **named: Any
    ) -> Any:
        async def run() -> Any:
            options = {"retries": QUICK, "trust_env": False} | (client or {})
            async with AsyncClient(server.url, "rp_test", **options) as it:
                return await getattr(it, method)(*given, **named)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else awaited


def test_a_decision_comes_back_typed(server: Server, ask: Ask) -> None:
    server.answers = [ok(DECISION)]
    made = ask("decide", {"event_id": "e-1", "heat": 3}, explain=True)
    assert (made.action, made.score, made.reasons[0].code) == ("review", 0.5, "HEAT")
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/decisions?explain=true")
    assert asked.headers["authorization"] == "Bearer rp_test"
    assert asked.headers["content-type"] == "application/json"
    assert json.loads(asked.body) == {"event_id": "e-1", "heat": 3}


@pytest.mark.parametrize(
    "trouble",
    [
        ["drop"],
        [problem(503, "unavailable")],
        [problem(429, "overloaded", retry_after="0")],
        [(503, {}, b"<html>no server</html>")],
        ["drop", problem(503, "unavailable"), "drop", problem(429, "overloaded")],
    ],
)
def test_trouble_that_passes_is_met_by_the_same_request_again(
    server: Server, ask: Ask, trouble: list[Answer]
) -> None:
    server.answers = [*trouble, ok(DECISION)]
    assert ask("decide", {"heat": 3}).action == "review"
    bodies = {a.body for a in server.asked}
    assert len(server.asked) == len(trouble) + 1
    (body,) = bodies  # with the same random event id, so that it counts once
    assert len(json.loads(body)["event_id"]) >= 32


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(409, "conflict"), errors.Conflict),
        (problem(401, "unauthenticated"), errors.Unauthenticated),
        (problem(403, "forbidden"), errors.Forbidden),
        (problem(400, "malformed_body"), errors.MalformedBody),
        (problem(500, "internal"), errors.RaypipeError),
        (problem(404, "of_a_later_server"), errors.NotFound),
        ((404, {}, b"nothing here"), errors.NotFound),
        ((418, {}, b""), errors.RaypipeError),
    ],
)
def test_what_is_refused_is_raised_as_what_it_is_and_not_sent_again(
    server: Server, ask: Ask, answer: Answer, kind: type[errors.RaypipeError]
) -> None:
    server.answers = [answer]
    with pytest.raises(kind) as raised:
        ask("decide", {"heat": 3})
    assert type(raised.value) is kind
    assert len(server.asked) == 1
    if b"request_id" in answer[2]:
        assert (raised.value.detail, raised.value.hint) == ("why", "so")
        assert raised.value.__notes__ == ["request_id req-7"]


def test_a_bad_event_names_every_place(server: Server, ask: Ask) -> None:
    places = [{"pointer": "/cost", "detail": "is text"}, {"pointer": "/heat", "detail": "missing"}]
    server.answers = [problem(422, "invalid_event", errors=places)]
    with pytest.raises(errors.InputError) as raised:
        ask("decide", {})
    assert [(v.pointer, v.reason) for v in raised.value.violations] == [
        ("/cost", "is text"),
        ("/heat", "missing"),
    ]


def test_trouble_that_stays_is_raised_after_the_last_try(server: Server, ask: Ask) -> None:
    server.answers = [problem(503, "unavailable")] * 3
    with pytest.raises(errors.Unavailable, match="why"):
        ask("decide", {}, client={"retries": Retries(tries=3, base_s=0.001)})
    assert len(server.asked) == 3
    server.answers = ["drop"]
    with pytest.raises(errors.Unavailable, match="doesn't answer"):
        ask("decide", {}, client={"retries": Retries(tries=1)})


def test_a_server_that_says_nothing_is_left_at_the_timeout(server: Server, ask: Ask) -> None:
    server.answers = ["hang"] * 5
    started = time.monotonic()
    with pytest.raises(errors.Unavailable):
        ask("decide", {}, timeout_s=0.2)
    assert time.monotonic() - started < 20  # far below what the server would take
    assert len(server.asked) == 1


def test_a_wait_longer_than_the_call_may_take_is_not_begun(server: Server, ask: Ask) -> None:
    server.answers = [problem(503, "unavailable", retry_after="3600")]
    with pytest.raises(errors.Unavailable):
        ask("decide", {})
    assert len(server.asked) == 1


def test_a_batch_keeps_order_and_gives_each_row_its_outcome(server: Server, ask: Ask) -> None:
    bad = json.loads(problem(422, "invalid_event")[2])
    server.answers = [
        ok({"decided": 1, "failed": 1, "results": [
            {"status": 200, "decision": DECISION},
            {"status": 422, "problem": bad},
        ]}, 207),
        ok({"decided": 1, "failed": 0, "results": [{"status": 200, "decision": DECISION}]}),
    ]  # fmt: skip
    found: list[Outcome] = ask("decide_batch", [{"event_id": "a"}, {}, {"event_id": "c"}], rows=2)
    assert [o.decision is None for o in found] == [False, True, False]
    assert found[0].get().action == "review"
    with pytest.raises(errors.InputError, match="why"):
        found[1].get()
    first, second = ([json.loads(x) for x in a.body.splitlines()] for a in server.asked)
    assert [e.get("event_id") for e in (first[0], second[0])] == ["a", "c"]
    assert first[1]["event_id"]
    assert {a.path for a in server.asked} == {"/v1/decisions:batch"}


def test_events_go_in_chunks_that_count_once_each(server: Server, ask: Ask) -> None:
    exceptions = [{"row": 1, "outcome": "refused", "reasons": ["/x: bad"]}]
    server.answers = [
        ok(TAKEN),
        "drop",
        ok(TAKEN | {"accepted": 1, "refused": 1, "exceptions": exceptions}, 207),
        ok(TAKEN | {"accepted": 0, "duplicates": 1}),
    ]
    sent: Sent = ask(
        "send_events", ({"event_id": str(n)} for n in range(5)), rows=2, kind="reading"
    )
    assert (sent.accepted, sent.duplicates, sent.refused) == (3, 1, 1)
    assert [(e.row, e.outcome, e.reasons) for e in sent.exceptions] == [
        (3, "refused", ("/x: bad",))
    ]
    keys = [a.headers["idempotency-key"] for a in server.asked]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3
    assert {a.path for a in server.asked} == {"/v1/events?type=reading"}
    rows = [[json.loads(x)["event_id"] for x in a.body.splitlines()] for a in server.asked]
    assert rows == [["0", "1"], ["2", "3"], ["2", "3"], ["4"]]


def test_a_chunk_is_bounded_in_bytes_and_a_named_call_has_its_names_keys(
    server: Server, ask: Ask
) -> None:
    server.answers = [ok(TAKEN)] * 3
    ask("send_events", [{"text": "x" * 2**20}] * 3, key="load")
    assert [len(a.body.splitlines()) for a in server.asked] == [1, 1, 1]
    keys = [a.headers["idempotency-key"] for a in server.asked]
    assert keys == ["load-0", "load-1", "load-2"]


def test_reads_quote_what_they_ask_for(server: Server, ask: Ask) -> None:
    detail = {k: v for k, v in DECISION.items() if k != "replayed"} | {
        "model_sha256": "m", "policy_sha256": "p", "rule_hits": ["on_error"], "experiment": None,
        "features": {"heat": None}, "feature_bytes": "AACAPw==", "profile_times": [-1],
    }  # fmt: skip
    key = {
        "entity": "sensor", "key": "a/b c", "as_of": 1, "values": {"n": 2.0, "m": None},
        "degraded": False, "age_ms": None, "definition_hash": "d",
    }  # fmt: skip
    rows = {
        "table": "heat", "span_ms": 60_000, "as_of": 1, "watermark": None,
        "rows": [{"start": 0, "final": True}], "definition_hash": "d",
    }  # fmt: skip
    server.answers = [ok(detail), ok(key), ok(rows)]
    assert ask("decision", "dec_1", explain=True).feature_bytes == b"\x00\x00\x80\x3f"
    assert ask("features", "sensor", "a/b c").values == {"n": 2.0, "m": None}
    assert ask("table", "heat", since=5).rows == [{"start": 0, "final": True}]
    assert [a.path for a in server.asked] == [
        "/v1/decisions/dec_1?explain=true",
        "/v1/features/sensor/a%2Fb%20c",
        "/v1/tables/heat?since=5",
    ]


def test_a_server_that_is_no_raypipe_is_told_so(server: Server, ask: Ask) -> None:
    server.answers = [(200, {}, b"<html>welcome</html>")]
    with pytest.raises(errors.InputError, match="no raypipe"):
        ask("decision", "dec_1")


def test_nobody_at_the_address_is_unavailable() -> None:
    with (
        Client("http://127.0.0.1:9", "k", retries=QUICK, trust_env=False) as client,
        pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:9"),
    ):
        client.decide({})


def test_pauses_grow_are_spread_and_respect_retry_after() -> None:
    failed = Failed(errors.Unavailable("x"), again=True)

    def pauses(draw: float, after_s: float = 0.0) -> list[float]:
        attempts = Attempts(Retries(6, 0.1, 0.5), 100.0, lambda: 0.0, lambda: draw)
        return [attempts.pause_s(Failed(failed.error, True, after_s)) for _ in range(5)]

    assert pauses(1.0) == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    assert pauses(0.5) == pytest.approx([0.05, 0.1, 0.2, 0.25, 0.25])
    assert pauses(1.0, 2.0) == [2.0] * 5
    with pytest.raises(errors.UsageError):
        Retries(tries=0)


def test_retry_after_may_be_a_date(server: Server, ask: Ask) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    server.answers = [
        problem(503, "unavailable", retry_after=past),
        problem(503, "unavailable", retry_after="soon"),
        problem(503, "unavailable", retry_after=soon),
    ]
    with pytest.raises(errors.Unavailable):
        ask("decide", {})
    assert len(server.asked) == 3


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, str]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {n: str(inspect.signature(f)) for n, f in public if n[0] != "_"}

    of_async = calls(AsyncClient)
    assert calls(Client) == of_async | {"close": of_async.pop("aclose")}


@pytest.mark.parametrize(
    "name", ["Decision", "DecisionDetail", "KeyFeatures", "Reason", "TableRows"]
)
def test_the_clients_types_have_the_servers_fields(name: str) -> None:
    ours = getattr(answers, name).__struct_fields__
    assert set(ours) <= set(getattr(schemas, name).__struct_fields__)


def test_two_threads_share_a_client(server: Server) -> None:
    server.answers = [ok(DECISION)] * 20
    with Client(server.url, "k", trust_env=False) as client:
        threads = [
            threading.Thread(target=lambda: [client.decide({}) for _ in range(5)]) for _ in range(4)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(server.asked) == 20
    assert len({json.loads(a.body)["event_id"] for a in server.asked}) == 20
