"""How a cycle ended, from what was seen of it."""

import pytest

from supervisor.memory import LOOK_MAX_S, LOOK_MIN_S, next_look_s, recycle_reason
from supervisor.verdict import Evidence, judge, of_the_job, signal_name

DONE = {"kind": "result", "ok": True, "summary": {}, "saw_stopping": False, "peak_rss_bytes": 1}
SAW = DONE | {"saw_stopping": True}
RAISED = {
    "kind": "result",
    "ok": False,
    "error": {"type": "ValueError", "message": "boom", "traceback": "here"},
    "peak_rss_bytes": 1,
}


@pytest.mark.parametrize(
    ("seen", "outcome", "error_type"),
    [
        (Evidence(result=DONE, wait_status=0), "ok", None),
        (Evidence(result=DONE), "ok", None),  # a kept worker lives on
        (Evidence(result=RAISED, wait_status=0), "failed", "ValueError"),
        (Evidence(result=SAW, wait_status=0), "stopped", None),
        (Evidence(cause="ceiling", wait_status=9), "ceiling", "CeilingExceeded"),
        (Evidence(cause="timeout", wait_status=15), "timeout", "CycleTimeout"),
        (Evidence(cause="stopped", wait_status=15), "stopped", "Stopped"),
        (Evidence(cause="protocol", wait_status=9), "crashed", "ProtocolError"),
        (Evidence(cause="silent", wait_status=9), "crashed", "WorkerDied"),
        (Evidence(wait_status=0), "crashed", "WorkerDied"),
        (Evidence(wait_status=3 << 8), "crashed", "WorkerDied"),
        (Evidence(wait_status=11), "crashed", "WorkerDied"),
        (Evidence(), "crashed", "WorkerDied"),
        # The work was done before the supervisor acted.
        (Evidence(result=DONE, cause="ceiling", wait_status=9), "ok", None),
        (Evidence(result=DONE, cause="stopped", wait_status=15), "ok", None),
        # It was done, but too late, and that is what must be known.
        (Evidence(result=DONE, cause="timeout", wait_status=0), "timeout", "CycleTimeout"),
        (Evidence(result=RAISED, cause="timeout", wait_status=0), "timeout", "CycleTimeout"),
    ],
)
def test_outcome(seen, outcome, error_type):
    found, error = judge(seen)
    assert found == outcome
    assert (error or {}).get("type") == error_type


def test_a_signal_is_named_and_no_cause_is_guessed():
    _, error = judge(Evidence(wait_status=11))
    assert "SIGSEGV" in error["message"]
    _, error = judge(Evidence(wait_status=3 << 8))
    assert "exit code 3" in error["message"]


def test_signals_without_a_name_have_their_number():
    assert signal_name(9) == "SIGKILL"
    assert signal_name(40) == "SIG40"


def test_last_words_end_where_the_job_ends():
    words = (
        "Current thread 0x1 (most recent call first):\n"
        '  File "/home/job.py", line 3 in grows\n'
        '  File "/x/supervisor/inside.py", line 205 in _call\n'
        '  File "/x/supervisor/loop.py", line 93 in run\n'
        "\n"
        "Thread 0x2 (most recent call first):\n"
        '  File "/home/other.py", line 9 in waits\n'
    )
    kept = of_the_job(words)
    assert "job.py" in kept
    assert "other.py" in kept
    assert "loop.py" not in kept


def test_looks_come_sooner_the_nearer_the_ceiling_is():
    waits = [next_look_s(rss, 500_000_000) for rss in range(0, 600_000_000, 10_000_000)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == LOOK_MIN_S
    assert next_look_s(0, 10**12) == LOOK_MAX_S


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"outcome": "failed"}, "failure"),
        ({"outcome": "stopped"}, None),
        ({"outcome": "stopped", "cycles_per_worker": 1}, "fresh"),
        ({"cycles_per_worker": 1}, "fresh"),
        ({"cycles_served": 5}, "count"),
        ({"rss_bytes": 101}, "rss"),
        ({"cycles_per_worker": 0, "cycles_served": 10**6}, None),
    ],
)
def test_why_a_worker_is_not_kept(changes, reason):
    usual = {"outcome": "ok", "cycles_served": 1, "cycles_per_worker": 5, "rss_bytes": 100, "recycle_rss_bytes": 100}
    assert recycle_reason(**usual | changes) == reason
