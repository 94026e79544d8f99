"""The parts of the suites `decide` and `availability` that need no running system."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import availability, decide
from benchmarks.decisions import figures as named
from benchmarks.decisions.faults import REPLICA, WORKER, Done, Fault, Faults, kill, times
from benchmarks.decisions.processes import System, Tree
from benchmarks.decisions.rounds import Candidate, Medians, Sample, needs
from benchmarks.decisions.stages import table
from benchmarks.decisions.stored import Stored, read_log
from benchmarks.harness import WrongResult
from benchmarks.load import Load, Target
from raypipe.ledger import record as ledger
from raypipe.ledger.record import DecisionRecord
from raypipe.log.sqlite import SqliteLog
from tests.unit.serving_kit import NOW, READING
from tests.unit.serving_kit import body as reading


def load_of(latencies_ms: list[float], seconds: float) -> Load:
    found = np.array(latencies_ms) / 1e3
    return Load(found, np.zeros(len(found)), Counter(), seconds, client_s=0.5)


def field_of(p50_ms: dict[str, float]) -> Medians:
    """Every candidate with constant latencies, at every number of connections."""
    samples = {}
    for (name, ms), c in itertools.product(p50_ms.items(), (1, 8, 32)):
        load = load_of([ms] * 10, 10 * ms / 1e3 / c)
        samples[name, c] = [Sample(load, cpu_s=0.01)] * 3
    return Medians(samples)


def test_figures_have_the_agreed_names_and_directions() -> None:
    found = field_of(
        {
            named.OURS: 2.0,
            named.OURS_ALL: 2.5,
            named.BARE: 1.0,
            named.FEAST: 6.0,
            named.FEAST_ALL: 10.0,
            named.SERVE: 20.0,
            named.OURS_BESIDE: 4.0,
        }
    )
    figures = named.comparisons(found)
    assert figures["p50_ratio_bare_c1"] == figures["p99_ratio_bare_c8"] == pytest.approx(2.0)
    assert figures["qps_ratio_bare_c8"] == figures["qps_ratio_bare_c32"] == pytest.approx(0.5)
    assert figures["p50_gain_feast_stack_c1"] == pytest.approx(3.0)
    assert figures["qps_gain_feast_stack_c8"] == pytest.approx(3.0)
    assert figures["qps_gain_feast_stack_all_c8"] == pytest.approx(4.0)
    assert figures["qps_gain_default_serve_c8"] == pytest.approx(5.0)
    told = named.absolutes(found)
    assert told["p50_ms_c1"] == pytest.approx(2.0)
    assert told["bare_qps_c8"] == pytest.approx(8_000.0)
    assert told["feast_stack_all_reasons_cpu_us_c8"] == pytest.approx(1_000.0)


def test_medians_are_of_the_turns_and_not_of_all_requests() -> None:
    turns = [load_of([1.0] * 100, 1.0), load_of([5.0], 1.0), load_of([3.0], 1.0)]
    found = Medians({("x", 1): [Sample(load, 0.0) for load in turns]})
    assert found.ms("x", 1, 50) == pytest.approx(3.0)


def test_a_candidate_takes_as_many_requests_as_it_says_it_needs() -> None:
    nothing = Target("http://127.0.0.1:1/")
    candidate = Candidate("x", nothing, Tree([]), iter([]), lambda *_: "", (1, 8), share=0.1)
    assert candidate.requests(1_000, 8) == 300
    assert candidate.requests(10, 8) == 8  # each connection at least one
    whole = replace(candidate, share=1.0)
    assert needs(10, 2, whole.points) == 100 + 2 * sum(whole.requests(10, c) for c in whole.points)


def test_answers_are_judged_and_counted() -> None:
    judged = decide.Judged(known=True)
    assert judged(0, 200, b'{"action":"approve","reasons":[],"known":120}') == ""
    assert judged(1, 200, b'{"action":"review","reasons":[],"known":80}') == ""
    assert judged(2, 503, b"{}") == "status 503"
    assert judged(3, 200, b'{"action":"review","degraded":true}') == "no sound decision"
    assert judged(4, 200, b"{}") == "no sound decision"
    assert (judged.not_approved, judged.features / judged.answers) == (0.5, 100)


def test_cost_is_cpu_times_price() -> None:
    # A million decisions of 3.6 ms each are one core for one hour.
    assert named.cost_per_million(3_600.0, 0.05) == pytest.approx(0.05)


def test_the_table_adds_up_to_the_latency() -> None:
    stages = {"parse": 10.0, "reasons, where not approved": 500.0, "a commit alone": 200.0}
    lines = list(table(stages, 0.02, 1_000.0, 700.0))
    numbers = [float(line.split(" us ")[0]) for line in lines]
    assert sum(numbers[:4]) == numbers[4] == 1_000
    assert numbers[1] == 10
    assert numbers[3] == 780


def test_the_cpu_of_a_tree_has_its_children_and_never_falls() -> None:
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])\n"
    script += "sys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        tree = Tree([process.pid, os.getpid() + 10**7])
        seen = [tree.cpu_s()]
        while seen[-1] < 0.25 and len(seen) < 2_000:
            time.sleep(0.02)
            seen.append(tree.cpu_s())
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    assert seen[-1] >= 0.25
    seen.append(tree.cpu_s())
    assert seen == sorted(seen)
    assert tree.processes() == []


def decision(event_id: str, *, degraded: bool = False) -> DecisionRecord:
    return DecisionRecord(
        decision_id=ledger.decision_id("default", event_id),
        tenant="default",
        event_id=event_id,
        event_offset=0,
        event_time=NOW,
        received_at=NOW,
        decided_at=NOW,
        model="m@1",
        model_sha256="",
        policy="p",
        policy_sha256="",
        definition_hash="",
        features=b"",
        score=0.5,
        action="approve",
        degraded=degraded,
    )


def test_the_log_is_counted_as_it_is(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    rows = [
        {"tenant": "default", "received_at": NOW, **reading(event_id=i)}
        for i in ("bench-0", "bench-1", "bench-2", "other")
    ]
    events = pa.RecordBatch.from_pylist(rows, READING.arrow_schema)
    records = [decision("bench-0"), decision("bench-1", degraded=True), decision("other")]
    batches = [("reading", events), (ledger.LOG_KIND, ledger.to_batch(records))]
    log.append(0, batches, producer="test", seq=0)
    log.close()
    found = read_log(f"sqlite:///{tmp_path / 'log'}", "reading")
    assert found.events == {"bench-0": 1, "bench-1": 1, "bench-2": 1}
    assert found.decisions == {"bench-0": 1, "bench-1": 1}
    assert (found.double_counts(), found.degraded) == (0, 1)
    assert found.missing(["bench-0", "bench-2", "bench-3"]) == {"bench-2", "bench-3"}


def test_what_is_there_twice_is_counted_twice() -> None:
    stored = Stored(Counter("aab"), Counter("abb"))
    assert stored.double_counts() == 2
    with pytest.raises(WrongResult, match="more than once"):
        stored.check_once("ab")


@pytest.mark.parametrize(
    ("asked", "said"), [(["a", "b", "c"], "not stored"), (["a"], "not asked"), (["a", "b"], None)]
)
def test_what_is_lost_or_strange_is_a_wrong_result(asked: list[str], said: str | None) -> None:
    stored = Stored(Counter("ab"), Counter("ab"))
    if said is None:
        stored.check_once(asked)
    else:
        with pytest.raises(WrongResult, match=said):
            stored.check_once(asked)


def test_an_event_without_its_decision_is_lost() -> None:
    assert Stored(Counter("ab"), Counter("a")).missing("ab") == {"b"}


def system_of(home: Path, *pids: int, model: str = "fraud@1") -> System:
    return System("http://127.0.0.1:1", "key", home, Tree(pids), {"model": model})


def test_a_kill_takes_one_process_of_that_title_and_no_other(tmp_path: Path) -> None:
    titles = ["ray::WorkerActor", "ray::worker-0:WorkerActor.pid", "ray::IDLE", "WorkerActor"]
    processes = [
        subprocess.Popen(["bash", "-c", 'exec -a "$0" sleep 60', title]) for title in titles
    ]
    try:
        system = system_of(tmp_path, *(p.pid for p in processes))
        while any("bash" in c for p in system.tree.processes() for c in p.cmdline()):
            time.sleep(0.01)
        with pytest.raises(WrongResult, match="no process"):
            kill(system, REPLICA)
        kill(system, WORKER)
        assert processes[0].wait(10) == -9
        kill(system, WORKER, every=True)
        assert processes[1].wait(10) == -9
        assert [p.poll() for p in processes[2:]] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_every_fault_is_planned_and_the_kills_lie_between_the_changes(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "models" / "fraud" / version).mkdir(parents=True)
    planned = availability.plan(system_of(tmp_path), {}, "payments@1", kills=3)
    names = [f.name for f in planned]
    assert Counter(names) == {
        "kill a replica": 3,
        "kill the worker": 3,
        "promote a model": 1,
        "use a policy": 1,
        "rolling update": 1,
        "roll a release back": 1,
    }
    assert names[:4] == ["kill a replica", "promote a model", "kill the worker", "use a policy"]


def test_faults_are_spread_and_none_is_at_the_ends() -> None:
    found = times(9, 200.0)
    assert found == sorted(found)
    assert found[0] == 20.0
    assert found[-1] == pytest.approx(176.0)
    assert times(1, 10.0) == [1.0]


def test_a_fault_that_fails_is_told_of_and_the_others_still_happen() -> None:
    happened: list[str] = []

    def fails() -> None:
        raise WrongResult("no replica runs")

    planned = [Fault("a", fails), Fault("b", lambda: happened.append("b"))]
    faults = Faults(planned, 0.05)
    faults.start().join()
    assert happened == ["b"]
    assert str(faults.failure) == "no replica runs"
    assert [d.name for d in faults.done] == ["a", "b"]
    assert faults.done[0].ended_s <= faults.done[1].began_s


def test_a_fault_happens_when_it_is_ready_and_not_before() -> None:
    happened: list[str] = []

    def ready() -> bool:
        happened.append("asked")
        return len(happened) == 3

    Faults([Fault("a", lambda: happened.append("done"), ready)], 0.01).start().join()
    assert happened == ["asked", "asked", "asked", "done"]


def test_both_replicas_answer_when_each_has_been_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str | OSError] = ["r1", "r1", OSError("gone"), "r2"]

    def asked(url: str) -> str:
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return f"{url}/{found}"

    monkeypatch.setattr(availability, "_replica", asked)
    both = availability.Answering("http://here")
    assert [both() for _ in range(4)] == [False, False, False, True]


def test_an_answer_after_its_deadline_is_an_error_and_stalls_belong_to_their_fault() -> None:
    latencies = np.array([0.01, 0.9, 5.5, 0.02, np.nan])
    done = [Done("a", 0.5), Done("b", 2.5)]
    outcome = availability.Outcome(
        latencies, Counter({"status 503": 1}), Counter(), done, rate=1.0, deadline_ms=5_000
    )
    assert (outcome.late, outcome.errors) == (1, 2)
    assert outcome.worst_ms == pytest.approx(5_500)
    assert outcome.worst_after(0) == pytest.approx(900)
    assert outcome.worst_after(1) == pytest.approx(5_500)  # it was on its way
    told = availability.result(outcome, 5, 1.0, 5_000, 4.2, double_counts=0, lost=0)
    wanted = ("requests", "errors", "double_counts", "worst_stall_ms", "second_replica_s")
    assert [told.figures[n] for n in wanted] == [5, 2, 0, pytest.approx(5_500), 4.2]
    with pytest.raises(WrongResult, match="1 answered"):
        availability.result(outcome, 5, 1.0, 5_000, 4.2, double_counts=0, lost=1)


def test_without_any_answer_the_stall_has_no_end() -> None:
    outcome = availability.Outcome(
        np.array([np.nan]), Counter({"TimeoutError": 1}), Counter(), [], 1.0, 5_000
    )
    assert outcome.errors == 1
    assert math.isinf(outcome.worst_ms)
