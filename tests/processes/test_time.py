"""The real loop, with real workers, on a clock that the test moves."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta

from supervisor.clock import Clock
from supervisor.loop import Supervisor
from supervisor.plan import JobPlan, Plan

HOUR_S = 3600.0


class Moved(Clock):
    """Real seconds, with what a suspended machine or a set clock adds."""

    def __init__(self):
        self.ahead_s = 0.0
        self.wall_ahead = timedelta()

    def now_s(self):
        return time.monotonic() + self.ahead_s

    def wall(self):
        return datetime.now(UTC) + self.wall_ahead


def run(clock, jobs, count, meanwhile, tmp_path, chance=0.5):
    """Run until there are `count` reports; `meanwhile(n)` is called behind each."""
    reports = []

    def on_report(report):
        reports.append(report)
        meanwhile(len(reports))
        if len(reports) == count:
            os.kill(os.getpid(), signal.SIGTERM)

    plan = Plan(jobs=tuple(jobs), state_dir=str(tmp_path), max_workers=4)
    before = {number: signal.getsignal(number) for number in (1, 2, 10, 12, 15, 17)}
    try:
        assert Supervisor(plan, clock=clock, on_report=on_report, chance=lambda: chance).run() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return reports


def quick(**fields):
    return JobPlan(name=fields.pop("name", "quick"), target=fields.pop("target", "gc:enable"), **fields)


def test_a_night_of_suspend_is_one_cycle_and_the_missed_ticks_are_counted(tmp_path):
    clock = Moved()

    def suspend(count):
        if count == 1:
            clock.ahead_s += 8 * HOUR_S + 60

    reports = run(clock, [quick(interval_s=1800.0)], 2, suspend, tmp_path)
    assert [report["missed_ticks"] for report in reports] == [0, 15]
    assert [report["outcome"] for report in reports] == ["ok", "ok"]


def test_steps_of_the_wall_clock_change_no_tick(tmp_path):
    clock = Moved()

    def step(count):
        clock.wall_ahead += timedelta(days=-2 if count % 2 else 5)

    started_s = time.monotonic()
    reports = run(clock, [quick(interval_s=0.2)], 6, step, tmp_path)
    assert 1.0 <= time.monotonic() - started_s < 10
    assert sum(report["missed_ticks"] for report in reports) == 0
    assert all(0 <= report["duration_s"] < 5 for report in reports)
    assert len({report["started_at"][:10] for report in reports}) > 1  # people see the clock they set


def test_several_jobs_start_spread_over_their_interval(tmp_path):
    clock = Moved()
    seen = []

    def note(_):
        seen.append(clock.now_s())

    begun_s = clock.now_s()
    jobs = [quick(name=name, interval_s=2.0) for name in ("a", "b", "c", "d")]
    reports = run(clock, jobs, 4, note, tmp_path)
    assert [report["job"] for report in reports] == ["a", "b", "c", "d"]
    for index, moment_s in enumerate(seen):
        assert moment_s - begun_s >= index * 0.5


def test_failures_back_off_and_the_interval_bounds_it(tmp_path):
    clock = Moved()
    starts = []

    def skip(_):
        starts.append(clock.now_s())
        clock.ahead_s += 9.9  # of the wait of 10 s that the first failure brings at full chance

    run(clock, [quick(interval_s=1800.0, target="gc:not_there")], 2, skip, tmp_path, chance=1.0)
    assert 10.0 <= starts[1] - starts[0] < 19
