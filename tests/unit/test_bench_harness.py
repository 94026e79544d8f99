from __future__ import annotations

import asyncio
import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import harness, load

ROOT = Path(harness.__file__).resolve().parents[1]


class _Ticks:
    """A clock that a candidate moves by what it costs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_candidates_run_in_turns_and_every_second_round_backwards() -> None:
    clock, order = _Ticks(), []

    def candidate(name: str, cost: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.now += cost

        return run

    samples = harness.alternate(
        {"ours": candidate("a", 1.0), "peer": candidate("b", 2.0)},
        repeats=3,
        warmup=1,
        clock=clock,
    )
    assert "".join(order) == "abbaabba"
    assert samples == {"ours": [1.0] * 3, "peer": [2.0] * 3}


def test_summary_has_median_and_quartiles() -> None:
    summary = harness.summarise([9.0, 1.0, 5.0, 3.0, 7.0])
    assert (summary.n, summary.median, summary.q1, summary.q3) == (5, 5.0, 3.0, 7.0)
    assert summary.iqr == 4.0
    assert harness.summarise([2.0]).iqr == 0.0
    with pytest.raises(ValueError, match="no samples"):
        harness.summarise([])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused_by_name(value: float) -> None:
    with pytest.raises(harness.WrongResult, match="ratio"):
        harness.Result("s", {"ratio": value})


def test_numpy_scalars_become_plain_numbers() -> None:
    result = harness.Result("s", {"x": np.float32(0.5), "n": np.int64(3)}, {"a": np.ones(2, "f4")})
    doc = json.loads(json.dumps(harness.document(result, quick=True, arguments=[])))
    assert doc["figures"] == {"x": 0.5, "n": 3}
    assert doc["samples"] == {"a": [1.0, 1.0]}


def test_check_raises_with_its_message() -> None:
    harness.check(True, "unseen")
    with pytest.raises(harness.WrongResult, match="counts differ"):
        harness.check(False, "counts differ")


def test_result_file_says_machine_and_versions_and_replaces_none(tmp_path: Path) -> None:
    result = harness.Result("s", {"x": 1.5}, {"ours": [1.0, 2.0]}, ["a remark"])
    doc = harness.document(result, quick=True, arguments=["--quick"])
    path = harness.save(doc, tmp_path)
    stored = json.loads(path.read_text())
    assert stored["figures"] == {"x": 1.5}
    assert stored["samples"] == {"ours": [1.0, 2.0]}
    assert stored["machine"]["cores_logical"] >= 1
    assert stored["versions"]["numpy"]
    later = harness.save({**doc, "date": "2030-01-01T00:00:00+00:00"}, tmp_path)
    assert later.name == "s-2030-01-01T000000Z.json"
    assert path.exists()


def test_table_shows_median_spread_figures_and_notes() -> None:
    text = harness.table(
        harness.Result("s", {"rows_per_s": 1234567.0, "rows": 5}, {"ours": [1.0, 2.0, 3.0]}, ["hm"])
    )
    assert "ours" in text
    assert "1,234,567" in text
    assert text.endswith("# hm")


def test_every_suite_has_a_summary_for_the_list() -> None:
    assert "harness" not in harness.suites()
    assert all(harness.suites().values())


def test_unknown_suite_is_a_usage_error_that_lists_the_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["nothing"]) == 2
    shown = capsys.readouterr().err
    assert "'nothing'" in shown
    assert all(name in shown for name in harness.suites())


def test_dashes_in_a_suite_name_are_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["stream-peers", "--help"])
    assert left.value.code == 0
    assert "python -m benchmarks stream_peers" in capsys.readouterr().out


NOISY = '''"""A suite that writes to stdout by all means."""
import subprocess
from benchmarks.harness import Result, check

def add_arguments(parser):
    parser.add_argument("--wrong", action="store_true")

def run(args):
    print("progress")
    subprocess.run(["echo", "a child's line"], check=True)
    check(not args.wrong, "sums differ")
    return Result("noisy", {"x": 1, "y": 0.5}, {"ours": [0.1, 0.2]})
'''


def _noisy(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "noisy.py").write_text(NOISY)
    program = (
        "import sys, benchmarks; benchmarks.__path__.append(sys.argv.pop(1));"
        "from benchmarks.__main__ import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), "noisy", "--results", str(tmp_path), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_is_one_object_alone_on_stdout_and_quick_saves_nothing(tmp_path: Path) -> None:
    run = _noisy(tmp_path, "--quick", "--json")
    assert run.returncode == 0, run.stderr
    doc = json.loads(run.stdout)
    assert (doc["suite"], doc["figures"], doc["quick"]) == ("noisy", {"x": 1, "y": 0.5}, True)
    assert "progress" in run.stderr
    assert "a child's line" in run.stderr
    assert not list(tmp_path.glob("*.json"))


def test_full_run_saves_its_result(tmp_path: Path) -> None:
    assert _noisy(tmp_path).returncode == 0
    (saved,) = tmp_path.glob("noisy-*.json")
    assert json.loads(saved.read_text())["samples"] == {"ours": [0.1, 0.2]}


def test_wrong_result_exits_1_without_figures(tmp_path: Path) -> None:
    run = _noisy(tmp_path, "--wrong", "--json")
    assert run.returncode == 1
    assert run.stdout == ""
    assert "sums differ" in run.stderr
    assert not list(tmp_path.glob("*.json"))


Handler = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def _server(handler: Handler) -> Iterator[str]:
    """A loopback HTTP server: handler(number of the request, its body, where to reply)."""
    seen = 0
    ready: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                seen += 1
                await handler(seen - 1, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        stop = asyncio.Event()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            ready.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    loop, stop, port = ready.get()
    try:
        yield f"http://127.0.0.1:{port}/v1/things"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _reply(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def _echo(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(_reply(200, body))


def test_closed_loop_sends_every_body_once_and_gets_its_own_answer() -> None:
    bodies = [b"body %d" % i for i in range(50)]
    seen: dict[int, bytes] = {}

    def verdict(index: int, status: int, body: bytes) -> str:
        seen[index] = body
        return load.success(index, status, body)

    with _server(_echo) as url:
        done = load.closed_loop(load.Target(url), bodies, connections=4, verdict=verdict)
    assert [seen[i] for i in range(50)] == bodies
    assert not done.errors
    assert (done.latencies > 0).all()
    assert done.percentile_ms(50) <= done.percentile_ms(99)
    assert done.rate > 0


def test_wrong_replies_and_broken_connections_are_counted_and_the_rest_goes_on() -> None:
    async def handler(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"bad":
            writer.write(_reply(503, b""))
        elif body == b"drop":
            writer.close()
        elif body == b"noise":
            writer.write(b"SSH-2.0-what\r\n\r\n")
        else:
            writer.write(_reply(200, body))

    bodies = [b"bad", b"drop", b"noise", b"fine", b"bad", b"fine"]
    with _server(handler) as url:
        done = load.closed_loop(load.Target(url), bodies, connections=1)
    assert done.errors["status 503"] == 2
    assert sum(n for e, n in done.errors.items() if e.startswith("ConnectionReset")) == 1
    assert sum(n for e, n in done.errors.items() if "not an HTTP/1.1 reply" in e) == 1
    assert [math.isfinite(x) for x in done.latencies] == [False, False, False, True, False, True]


def test_no_answer_within_the_limit_is_an_error() -> None:
    async def silent(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        pass

    with _server(silent) as url:
        done = load.closed_loop(load.Target(url, timeout_s=0.01), [b"x"], connections=1)
    assert done.errors == {"TimeoutError": 1}
    with pytest.raises(ValueError, match="TimeoutError"):
        done.percentile_ms(50)


def test_a_stalled_connection_is_given_up_and_the_rest_goes_over_another() -> None:
    async def silent_once(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if body != b"stall":
            writer.write(_reply(200, body))

    bodies = [b"stall", b"a", b"b", b"stall", b"c"]
    with _server(silent_once) as url:
        done = load.closed_loop(load.Target(url, timeout_s=0.05), bodies, connections=1)
    assert done.errors == {"TimeoutError": 2}
    assert [math.isfinite(x) for x in done.latencies] == [False, True, True, False, True]


def test_replies_in_pieces_and_closing_ones_are_read_whole() -> None:
    async def pieces(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        reply = _reply(200, body)
        for at in range(0, len(reply), 7):
            writer.write(reply[at : at + 7])
            await writer.drain()
            await asyncio.sleep(0.001)
        if number % 2:
            writer.close()

    async def closing(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_reply(200, body).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))

    bodies = [b"body %d" % i for i in range(6)]
    seen: dict[int, bytes] = {}

    def verdict(index: int, status: int, body: bytes) -> str:
        seen[index] = body
        return load.success(index, status, body)

    for handler in (pieces, closing):
        seen.clear()
        with _server(handler) as url:
            done = load.closed_loop(load.Target(url), bodies, connections=1, verdict=verdict)
        assert not done.errors or set(done.errors) <= {
            "ConnectionResetError: connection closed before the reply"
        }
        assert all(seen[i] == bodies[i] for i in seen)
        assert len(seen) + sum(done.errors.values()) == len(bodies)


def test_a_server_that_goes_away_for_good_fails_every_request_left() -> None:
    async def leaves(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_reply(200, body))

    with _server(leaves) as url:
        target = load.Target(url)
    with pytest.raises(OSError, match=r"Connect|connect|refused"):
        load.closed_loop(target, [b"x"], connections=1)


def test_no_bodies_are_no_load() -> None:
    done = load.closed_loop(load.Target("http://127.0.0.1:9/"), [], connections=4)
    assert (len(done.latencies), done.errors, done.seconds) == (0, {}, 0.0)


def test_open_loop_latency_counts_from_the_schedule_through_a_stall() -> None:
    arrived: list[float] = []
    released: list[float] = []
    rate, count = 2_000.0, 8

    async def stalls_once(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        arrived.append(time.monotonic())
        if number == 0:
            while time.monotonic() < arrived[0] + count / rate:
                await asyncio.sleep(0)  # busy until every later request was due
            released.append(time.monotonic())
        writer.write(_reply(200, body))

    with _server(stalls_once) as url:
        done = load.open_loop(load.Target(url), [b"x"] * count, rate=rate, connections=1)
    # Request i was due i/rate after request 0 and could not be answered before the release.
    for i in range(count):
        assert done.latencies[i] >= released[0] - arrived[0] - i / rate
    assert done.latencies[0] >= count / rate
    assert not done.errors


@pytest.mark.parametrize(
    ("data", "parsed"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", (200, b"hi", True)),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", (200, b"", False)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True)),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n3;x=y\r\nyou\r\n0\r\n\r\n",
            (200, b"hiyou", True),
        ),
    ],
)
def test_replies_are_parsed_whole_and_never_before(
    data: bytes, parsed: tuple[int, bytes, bool]
) -> None:
    assert load.parse_reply(data) == parsed
    assert [load.parse_reply(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("data", [b"ICY 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhi"])
def test_what_has_no_length_or_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an HTTP/1\.1 reply|neither a length nor chunks"):
        load.parse_reply(data)
