"""Ticks, back-off, breaker: pure, so time is a number here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.schedule import BACK_OFF_FIRST_S, Schedule, back_off_s


def test_ticks_do_not_drift_with_late_starts():
    schedule = Schedule(interval_s=60, first_s=0)
    starts = []
    for late_s in (0.0, 0.4, 3.0, 0.1):
        now_s = schedule.due_s + late_s
        assert schedule.begin(now_s) == 0
        schedule.end(now_s + 1, ok=True, chance=0)
        starts.append(schedule.tick_s)
    assert starts == [60, 120, 180, 240]


def test_missed_ticks_are_one_run_and_counted():
    schedule = Schedule(interval_s=10, first_s=0)
    assert schedule.begin(0) == 0
    schedule.end(35, ok=True, chance=0)  # the ticks at 10, 20 and 30 passed meanwhile
    assert schedule.due_s == 10
    assert schedule.begin(35) == 2
    schedule.end(36, ok=True, chance=0)
    assert schedule.due_s == 40


def test_a_night_of_suspend_is_one_run():
    schedule = Schedule(interval_s=1800, first_s=0)
    schedule.begin(0)
    schedule.end(5, ok=True, chance=0)
    assert schedule.begin(8 * 3600 + 1) == 15
    assert schedule.tick_s == 8 * 3600 + 1800


def test_a_run_that_was_asked_for_takes_no_tick_away():
    schedule = Schedule(interval_s=60, first_s=0)
    schedule.begin(0)
    schedule.end(1, ok=True, chance=0)
    schedule.ask()
    schedule.ask()
    assert schedule.due_s < 0
    assert schedule.begin(30) == 0
    schedule.end(31, ok=True, chance=0)
    assert schedule.due_s == 60


def test_failures_come_again_sooner_and_then_later_and_later():
    schedule = Schedule(interval_s=1800, first_s=0)
    schedule.begin(0)
    waits = []
    now_s = 1.0
    for _ in range(12):
        schedule.end(now_s, ok=False, chance=0.999999)
        waits.append(schedule.due_s - now_s)
        now_s = schedule.due_s
        schedule.begin(now_s)
    assert waits[0] == pytest.approx(BACK_OFF_FIRST_S, rel=0.01)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(1800, rel=0.01)


def test_success_ends_the_back_off():
    schedule = Schedule(interval_s=60, first_s=0)
    schedule.begin(0)
    schedule.end(1, ok=False, chance=0)
    schedule.begin(schedule.due_s)
    schedule.end(8, ok=True, chance=0)
    assert schedule.failures == 0
    assert schedule.due_s == 60


def test_the_breaker_counts_failures_in_a_row():
    schedule = Schedule(interval_s=60, first_s=0, max_failures=3)
    broken = []
    for ok in (False, False, True, False, False, False):
        schedule.end(0, ok=ok, chance=0)
        broken.append(schedule.broken)
    assert broken == [False, False, False, False, False, True]


def test_without_a_limit_the_breaker_never_opens():
    schedule = Schedule(interval_s=60, first_s=0, max_failures=0)
    for _ in range(1000):
        schedule.end(0, ok=False, chance=0)
    assert not schedule.broken


@given(failures=st.integers(1, 10_000), interval_s=st.floats(0.1, 1e6), chance=st.floats(0, 1, exclude_max=True))
def test_a_back_off_is_between_nothing_and_the_interval(failures, interval_s, chance):
    assert 0 < back_off_s(failures, interval_s, chance) <= interval_s


@given(interval_s=st.floats(0.1, 1e5), steps=st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_no_tick_is_lost_or_counted_twice(interval_s, steps):
    schedule = Schedule(interval_s=interval_s, first_s=0)
    now_s, answered = 0.0, 0
    for step in steps:
        now_s += step
        if schedule.due_s <= now_s:
            answered += 1 + schedule.begin(now_s)
            schedule.end(now_s, ok=True, chance=0)
    assert answered == schedule._passed
    assert schedule.tick_s > now_s or schedule.tick_s == pytest.approx(now_s)
