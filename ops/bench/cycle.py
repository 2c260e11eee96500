"""What an empty cycle costs over a bare fork, measured in turns in one process.

A bare fork is os.fork, os._exit in the child, os.waitpid. An empty cycle is all that the
supervisor does: the channel, the fork, the child's first steps, the messages, the watching,
the end of the tree. Goal: less than 5 ms more. The empty job is `dict`, which needs no import:
what a job's own import costs is the job's affair, and shown apart.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable

from supervisor.clock import Clock
from supervisor.plan import JobPlan
from supervisor.wait import call

ROUNDS = 200
GOAL_MS = 5.0


def main() -> int:
    """Measure; return 0 when the goal is met."""
    clock = Clock()
    gc.collect()
    gc.freeze()  # as the supervisor does
    empty = JobPlan(name="empty", target="builtins:dict")
    imported = JobPlan(name="imported", target="ops.bench.jobs:called")
    seen: dict[str, list[float]] = {"bare fork": [], "empty cycle": [], "with an import": []}
    for _ in range(ROUNDS):
        seen["bare fork"].append(_timed(_bare_fork))
        seen["empty cycle"].append(_timed(lambda: _cycle(empty, clock)))
        seen["with an import"].append(_timed(lambda: _cycle(imported, clock)))
    medians_ms = {name: statistics.median(times) * 1000 for name, times in seen.items()}
    bare_ms = medians_ms["bare fork"]
    for name, median_ms in medians_ms.items():
        print(f"{name:<15} {median_ms:6.2f} ms (median of {ROUNDS}), {median_ms / bare_ms:.1f} times a bare fork")
    more_ms = medians_ms["empty cycle"] - bare_ms
    good = more_ms < GOAL_MS
    print(f"an empty cycle costs {more_ms:.2f} ms more (goal: below {GOAL_MS:g}): " + ("met" if good else "NOT met"))
    return 0 if good else 1


def _timed(what: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    what()
    return time.perf_counter() - started_s


def _bare_fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _cycle(job: JobPlan, clock: Clock) -> None:
    run = call(job, {}, clock)
    assert run.evidence.result is not None
    assert run.evidence.result["ok"]
