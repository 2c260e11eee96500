"""The one loop: tick, start, watch, end, report.

Start reading at `Supervisor.run`. Whatever is heavy happens in a worker; the loop waits.
"""

import gc
import logging
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from supervisor import libc, log, orphans, report, tree
from supervisor.clock import Clock, rfc3339
from supervisor.life import State
from supervisor.messages import Message
from supervisor.output import Lines
from supervisor.plan import JobPlan, Plan
from supervisor.process import Worker
from supervisor.run import Run
from supervisor.schedule import Schedule
from supervisor.signals import Signals
from supervisor.start import helper_pids
from supervisor.verdict import judge
from supervisor.wait import wait

EX_OK = 0
EX_CYCLE_NOT_OK = 1
EX_BREAKER = 70

# A wait is bounded: poll(2) counts on a clock that stands still while the machine is suspended.
WAIT_MAX_S = 60.0


@dataclass(slots=True)
class Post:
    """One job at its work: its schedule, and its worker where it has one."""

    job: JobPlan
    schedule: Schedule
    lines: Lines
    worker: Worker | None = None
    cycles: int = 0
    missed_ticks: int = 0
    all_ok: bool = True

    @property
    def busy(self) -> bool:
        """Whether a cycle of the job runs now."""
        return self.worker is not None and self.worker.state is not State.IDLE


class Supervisor:
    """Runs the jobs of a plan until it is told to stop, or each of them once."""

    def __init__(
        self,
        plan: Plan,
        *,
        once: bool = False,
        full: bool = False,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        on_report: Callable[[report.Report], None] = lambda report: None,
        on_progress: Callable[[str, int, Message], None] = lambda job, rss, said: None,
    ) -> None:
        self._plan = plan
        self._once = once
        self._full = full
        self._clock = clock or Clock()
        self._chance = chance
        self._on_report = on_report
        self._on_progress = on_progress
        self._stop_asked = 0
        self._broken = False
        self._orphans = orphans.Orphans()
        start_s = self._clock.now_s()
        self._posts = [
            # Several jobs do not all start in one second: each has its share of the interval.
            Post(
                job,
                Schedule(
                    job.interval_s,
                    start_s if once else start_s + job.interval_s * index / len(plan.jobs),
                    job.max_failures,
                ),
                Lines(job.name),
            )
            for index, job in enumerate(plan.jobs)
        ]

    def run(self) -> int:
        """Run until all is done; return the exit code."""
        gc.collect()
        libc.trim_heap()
        gc.freeze()  # a collection in a forked child leaves the pages that it shares with us alone
        with Signals() as signals:
            while not self._finished():
                self._start_what_is_due()
                wait(self._workers(), [signals.fileno()], self._patience_s())
                self._obey(signals.take())
                self._report_what_ended()
                self._end_orphans()
        return self._exit_code()

    def _finished(self) -> bool:
        if self._workers():
            return False
        return self._stop_asked > 0 or (self._once and all(post.cycles for post in self._posts))

    def _workers(self) -> list[Worker]:
        return [post.worker for post in self._posts if post.worker]

    def _start_what_is_due(self) -> None:
        now_s = self._clock.now_s()
        if self._stop_asked:
            return
        free = self._plan.max_workers - sum(post.busy for post in self._posts)
        for post in sorted(self._posts, key=lambda post: post.schedule.due_s):
            if free > 0 and not post.busy and post.schedule.due_s <= now_s:
                if self._once and post.cycles:
                    continue
                self._start(post, now_s)
                free -= post.busy

    def _start(self, post: Post, now_s: float) -> None:
        post.missed_ticks = post.schedule.begin(now_s)
        job = post.job
        try:
            post.worker = post.worker or self._new_worker(post)
        except OSError as error:
            post.schedule.end(now_s, ok=False, chance=self._chance())
            log.say(
                "no_worker",
                logging.ERROR,
                f"{job.name}: no process could be started ({error}); it is tried again",
                job=job.name,
                error=str(error),
            )
            post.all_ok = False
            post.cycles += self._once
            return
        post.cycles += 1
        run = Run(
            number=post.cycles,
            id=tree.random_uuid(),
            full=self._full,
            started_at=self._clock.wall(),
            started_s=now_s,
            deadline_s=now_s + job.cycle_timeout_s,
        )
        post.lines.begin(run.number)
        post.worker.assign(run)

    def _new_worker(self, post: Post) -> Worker:
        def on_progress(said: Message) -> None:
            rss_bytes = post.worker.rss_bytes if post.worker else 0
            self._on_progress(post.job.name, rss_bytes, said)

        return Worker(
            post.job,
            self._plan.state_dir,
            self._clock,
            on_output=post.lines.feed,
            on_progress=on_progress,
        )

    def _patience_s(self) -> float:
        """Return how long nothing can happen that the kernel would not wake us for."""
        limits = [worker.deadline_s() for worker in self._workers()]
        if not self._stop_asked:
            # A job that is busy, or waits for its turn, is started when a worker ends.
            free = sum(post.busy for post in self._posts) < self._plan.max_workers
            limits += [post.schedule.due_s for post in self._posts if free and not post.busy]
        return min([WAIT_MAX_S, *(limit - self._clock.now_s() for limit in limits)])

    def _obey(self, signals: list[int]) -> None:
        for number in signals:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(signal.Signals(number).name)
            elif number == signal.SIGUSR1:
                for post in self._posts:
                    post.schedule.ask()

    def _stop(self, why: str) -> None:
        self._stop_asked += 1
        log.say("stopping", text=f"stopping ({why})", reason=why, hurry=self._stop_asked > 1)
        for post in self._posts:
            if post.worker and self._stop_asked == 1:
                post.worker.drain(post.job.grace_s)
            elif post.worker:
                post.worker.hurry()

    def _report_what_ended(self) -> None:
        for post in self._posts:
            worker = post.worker
            if worker is None:
                continue
            ended, worker.ended = worker.ended, []
            if worker.state is State.GONE:
                post.worker = None
                post.lines.end()
                self._end_orphans()
            for run in ended:
                self._report(post, run)

    def _end_orphans(self) -> None:
        self._orphans.end({worker.pid for worker in self._workers()} | helper_pids())

    def _report(self, post: Post, run: Run) -> None:
        now_s = self._clock.now_s()
        outcome, _ = judge(run.evidence)
        if outcome != "stopped":
            post.schedule.end(now_s, ok=outcome == "ok", chance=self._chance())
        post.all_ok = post.all_ok and outcome == "ok"
        next_at = None
        if not self._once and not self._stop_asked:
            wait_s = max(0.0, post.schedule.due_s - now_s)
            next_at = rfc3339(self._clock.wall() + timedelta(seconds=wait_s))
        own_rss_bytes = tree.rss_bytes(os.getpid())
        self._on_report(
            report.build(
                run,
                post.job,
                supervisor_rss_bytes=own_rss_bytes,
                resident_after_bytes=own_rss_bytes
                + (tree.tree_rss_bytes(post.worker.pid) if post.worker else 0),
                missed_ticks=post.missed_ticks,
                next_at=next_at,
            )
        )
        if post.schedule.broken and not self._once and not self._stop_asked:
            self._broken = True
            log.say(
                "breaker",
                logging.CRITICAL,
                f"{post.job.name}: {post.schedule.failures} cycles failed in a row "
                "(SUPERVISOR_MAX_FAILURES): giving up",
                job=post.job.name,
                failures=post.schedule.failures,
            )
            self._stop("breaker")

    def _exit_code(self) -> int:
        if self._broken:
            return EX_BREAKER
        if self._once and not all(post.all_ok for post in self._posts):
            return EX_CYCLE_NOT_OK
        return EX_OK
