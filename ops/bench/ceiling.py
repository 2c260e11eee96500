"""How far a runaway gets over its ceiling, how fast it is gone, and what watching it costs.

A job writes new pages at 200 MB/s, at 1 GB/s and as fast as it can; its ceiling is 300 MB. Goal:
within 4 MB at 1 GB/s. The cost of watching is the supervisor's processor time over the cycle's time, less what an empty
cycle takes: while it grows and is ended, and for a job that holds half the ceiling (goal: below 1 %).
"""

import resource
import statistics
import time

from supervisor.clock import Clock
from supervisor.plan import JobPlan
from supervisor.wait import call

CEILING_BYTES = 300_000_000
ROUNDS = 9
RATES = {"200 MB/s": 2e8, "1 GB/s": 1e9, "full speed": 0.0}
GOAL_BYTES = 4_000_000
GOAL_SHARE = 0.01
STEADY_BYTES = 150_000_000
STEADY_S = 3.0


def main() -> int:
    """Measure; return 0 when both goals are met."""
    clock = Clock()
    print(f"{'rate':>10} {'over the ceiling, MB':>26} {'ms to dead':>18} {'achieved':>10} {'of a core':>10}")
    print(f"{'':>10} {'median':>12} {'worst':>13} {'median':>9} {'worst':>8}")
    empty = JobPlan(name="empty", target="builtins:dict")
    start_s = statistics.median(_used_s(empty, clock) for _ in range(2 * ROUNDS))
    worst_at_1_gb = 0.0
    for name, rate in RATES.items():
        job = JobPlan(name=name, target="ops.bench.jobs:grow", rss_ceiling_bytes=CEILING_BYTES)
        over, gone_ms, shares, rates = [], [], [], []
        for _ in range(ROUNDS):
            before_s, started_s = _own_s(), time.monotonic()
            run = call(job, {"bytes_per_s": rate}, clock)
            took_s = time.monotonic() - started_s
            seen = run.evidence
            assert seen.cause == "ceiling"
            assert seen.over_ceiling_bytes is not None
            assert seen.ended_in_s is not None
            over.append(seen.over_ceiling_bytes / 1e6)
            gone_ms.append(seen.ended_in_s * 1000)
            shares.append((_own_s() - before_s - start_s) / took_s)
            rates.append(run.peak_rss_bytes / (took_s - seen.ended_in_s) / 1e6)
        if rate == 1e9:
            worst_at_1_gb = max(over) * 1e6
        print(
            f"{name:>10} {statistics.median(over):>12.2f} {max(over):>13.2f} {statistics.median(gone_ms):>9.0f} "
            f"{max(gone_ms):>8.0f} {statistics.median(rates):>5.0f} MB/s {statistics.median(shares):>9.2%}"
        )
    job = JobPlan(name="steady", target="ops.bench.jobs:hold", rss_ceiling_bytes=CEILING_BYTES)
    before_s, started_s = _own_s(), time.monotonic()
    call(job, {"size_bytes": STEADY_BYTES, "seconds": STEADY_S}, clock)
    share = (_own_s() - before_s - start_s) / (time.monotonic() - started_s)
    print(f"a job that holds {STEADY_BYTES / 1e6:.0f} MB for {STEADY_S:g} s costs the supervisor {share:.2%} of a core")
    good = worst_at_1_gb < GOAL_BYTES and share < GOAL_SHARE
    print(
        f"at 1 GB/s at most {worst_at_1_gb / 1e6:.2f} MB over (goal: within 4), steady {share:.2%} (goal: below 1 %): "
        + ("met" if good else "NOT met")
    )
    return 0 if good else 1


def _used_s(job: JobPlan, clock: Clock) -> float:
    before_s = _own_s()
    call(job, {}, clock)
    return _own_s() - before_s


def _own_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
