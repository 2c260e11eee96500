"""The one loop: tick, start, watch, end, report.

Start reading at `Supervisor.run`. Whatever is heavy happens in a worker; the loop waits.
"""

import contextlib
import gc
import logging
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from supervisor import libc, log, orphans, report, tree
from supervisor.clock import Clock, rfc3339
from supervisor.exporter import Exporter
from supervisor.life import State
from supervisor.messages import Message
from supervisor.output import Lines
from supervisor.plan import JobPlan, Plan
from supervisor.process import Worker
from supervisor.reload import Reload
from supervisor.run import Run, begin
from supervisor.schedule import Schedule
from supervisor.signals import Signals
from supervisor.start import helper_pids
from supervisor.state import StateFile, of_post, progress
from supervisor.systemd import Notifier
from supervisor.verdict import judge
from supervisor.wait import wait

EX_OK = 0
EX_CYCLE_NOT_OK = 1
EX_BREAKER = 70
EX_TEMPFAIL = 75

# A wait is bounded: poll(2) counts on a clock that stands still while the machine is suspended.
WAIT_MAX_S = 60.0
WORDS_PATIENCE_S = 0.1  # a worker's handler needs a moment to write its traceback down


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
    progress: Message | None = None  # what the running cycle said last
    last: dict[str, Any] | None = None  # how the last one ended
    wanted: bool = True  # false: its job is not in the plan any more

    def take(self, job: JobPlan, now_s: float) -> None:
        """Go on with changed settings: from the next cycle on, in a fresh worker."""
        old = self.schedule
        if (job.interval_s, job.max_failures) != (old.interval_s, old.max_failures):
            # From the last tick on: who changes the interval now and then must not put a job off for ever.
            first_s = max(now_s, old.tick_s - old.interval_s + job.interval_s)
            self.schedule = replace(
                old, interval_s=job.interval_s, first_s=first_s, max_failures=job.max_failures, _passed=0
            )
        self.job = job

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
        env_file: str | None = None,
        notifier: Notifier | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        on_report: Callable[[report.Report], None] = lambda report: None,
        on_progress: Callable[[str, int, int, Message], None] = lambda job, rss, ceiling, said: None,
        state_file: StateFile | None = None,
        holds: Callable[[], bool] = lambda: True,
    ) -> None:
        self._plan = plan
        self._once = once
        self._full = full
        self._notifier = notifier or Notifier({})
        self._clock = clock or Clock()
        self._chance = chance
        self._on_report = on_report
        self._on_progress = on_progress
        self._state_file = state_file
        self._holds = holds  # whether the state directory is still ours
        self._lost = False
        self._began_at = rfc3339(self._clock.wall())
        self._stop_asked = 0
        self._broken = False
        self._orphans = orphans.Orphans()
        self._reload = Reload(env_file, self._clock)
        self._exporter = Exporter(self._clock)
        self._look_around_s: float | None = None  # when to log what SIGUSR2 asked for
        self._posts: list[Post] = []
        self._take_up(plan)

    def _take_up(self, plan: Plan) -> None:
        """Make the posts those of `plan`: what a job had so far goes on."""
        before = {post.job.name: post for post in self._posts}
        now_s = self._clock.now_s()
        posts = []
        for index, planned in enumerate(plan.jobs):
            job = replace(planned, cycles_per_worker=1) if self._once else planned  # nobody waits for a next cycle
            post = before.pop(job.name, None)
            # Several jobs do not all start in one second: each has its share of the interval.
            first_s = now_s if self._once else now_s + job.interval_s * index / len(plan.jobs)
            if post is None:
                post = Post(job, Schedule(job.interval_s, first_s, job.max_failures), Lines(job.name))
            elif post.job != job:
                post.take(job, now_s)
            post.wanted = True  # it may have been taken out, and is put back while its last cycle runs
            posts.append(post)
        for post in before.values():
            post.wanted = False  # its worker may still be at its last cycle
        self._posts = posts + [post for post in before.values() if post.worker]
        self._plan = plan

    def run(self) -> int:
        """Run until all is done; return the exit code."""
        gc.collect()
        libc.trim_heap()
        gc.freeze()  # a collection in a forked child leaves the pages that it shares with us alone
        with Signals() as signals:
            self._notifier.send("READY=1")
            try:
                while not self._finished():
                    self._start_what_is_due()
                    self._tell_systemd()
                    self._keep_state()
                    wait(self._workers(), [signals.fileno()], self._patience_s())
                    self._obey(signals.take())
                    self._report_what_ended()
                    self._take_new_settings()
                    self._exporter.take(self._plan)
                    if self._stop_asked and (errand := self._exporter.errand.worker):
                        errand.drain()  # also one that began after the stop was asked for
                    self._look_around()
                    self._end_orphans()
            except BaseException:
                # A defect of ours. With a live worker the interpreter would wait for it at its end, for ever, and nobody
                # would start the service anew.
                for worker in self._workers():
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
                raise
            self._keep_state()  # nothing runs any more: who finds it so knows that we ended by ourselves
        return self._exit_code()

    def _finished(self) -> bool:
        if self._workers():
            return False
        return self._stop_asked > 0 or (self._once and all(post.cycles for post in self._posts))

    def _workers(self) -> list[Worker]:
        workers = [*(post.worker for post in self._posts), self._reload.errand.worker, self._exporter.errand.worker]
        return [worker for worker in workers if worker]

    def _start_what_is_due(self) -> None:
        now_s = self._clock.now_s()
        if self._stop_asked:
            return
        if any(post.schedule.due_s <= now_s for post in self._posts) and not self._holds():
            self._lost = True
            text = f"{self._plan.state_dir} was removed or replaced while the service ran: it ends, and a new start makes it anew"
            log.say("state", logging.CRITICAL, text, code="StateDirLost", error=text)
            self._stop("the state directory is lost")
            return
        free = self._plan.max_workers - sum(post.busy for post in self._posts)
        for post in sorted(self._posts, key=lambda post: post.schedule.due_s):
            if free > 0 and self._is_waiting(post) and post.schedule.due_s <= now_s:
                self._start(post, now_s)
                free -= post.busy

    def _is_waiting(self, post: Post) -> bool:
        return post.wanted and not post.busy and not (self._once and post.cycles)

    def _start(self, post: Post, now_s: float) -> None:
        post.missed_ticks = post.schedule.begin(now_s)
        job = post.job
        try:
            post.worker = post.worker or self._new_worker(post)
        except OSError as error:
            post.schedule.end(now_s, ok=False, chance=self._chance())
            text = f"{job.name}: no process could be started ({error}); it is tried again"
            log.say("no_worker", logging.ERROR, text, code="NoWorker", job=job.name, error=str(error))
            for idle in [one.worker for one in self._posts if one.worker and not one.busy][:1]:
                idle.retire_when_idle()  # what it holds may be what is wanting: a descriptor, a process, memory
            post.all_ok = False
            post.cycles += self._once
            return
        post.cycles += 1
        post.progress = None
        run = begin(job, self._clock, number=post.cycles, full=self._full)
        post.lines.begin(run.number, job.env)
        post.worker.assign(run)

    def _new_worker(self, post: Post) -> Worker:
        def on_progress(said: Message) -> None:
            rss_bytes = post.worker.rss_bytes if post.worker else 0
            post.progress = progress(said)
            if self._state_file:
                self._state_file.move()
            self._on_progress(post.job.name, rss_bytes, post.job.rss_ceiling_bytes, post.progress)

        return Worker(post.job, self._plan.state_dir, self._clock, on_output=post.lines.feed, on_progress=on_progress)

    def _patience_s(self) -> float:
        """Return how long nothing can happen that the kernel would not wake us for."""
        if self._finished():
            return 0.0
        limits = [worker.deadline_s() for worker in self._workers()]
        if not self._stop_asked:
            # A job that is busy, or waits for its turn, is started when a worker ends.
            free = sum(post.busy for post in self._posts) < self._plan.max_workers
            limits += [post.schedule.due_s for post in self._posts if free and self._is_waiting(post)]
        if self._look_around_s is not None:
            limits.append(self._look_around_s)
        return min(
            [self._notifier.beat_s or WAIT_MAX_S, WAIT_MAX_S, *(limit - self._clock.now_s() for limit in limits)]
        )

    def _obey(self, signals: list[int]) -> None:
        for number in signals:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(signal.Signals(number).name)
            elif number == signal.SIGUSR1:
                for post in self._posts:
                    post.schedule.ask()
            elif number == signal.SIGHUP and not self._once and not self._stop_asked:
                self._notifier.reloading()
                self._reload.ask()
            elif number == signal.SIGUSR2:
                for worker in self._workers():
                    worker.say_where()
                self._look_around_s = self._clock.now_s() + WORDS_PATIENCE_S

    def _take_new_settings(self) -> None:
        plan = self._reload.take(self._plan, stopping=self._stop_asked > 0)
        if plan is None or self._stop_asked:
            return
        self._notifier.send("READY=1")  # also when they were refused: it runs on, with what it had
        if plan is not self._plan:
            log.set_up(plan.log_format, plan.log_level)
            self._take_up(plan)
            log.say("reloaded", text="the new settings are in force", jobs=len(plan.jobs))

    def _look_around(self) -> None:
        """Log what SIGUSR2 asked for: what the supervisor sees, and where each worker is."""
        now_s = self._clock.now_s()
        if self._look_around_s is None or now_s < self._look_around_s:
            return
        self._look_around_s = None
        for post in self._posts:
            worker = post.worker
            fields = of_post(post, now_s)
            due_s, started_s = fields.pop("due_s"), fields.pop("started_s")
            fields |= {
                "due_in_s": None if due_s is None else round(due_s - now_s, 1),
                "worker_rss_bytes": tree.tree_rss_bytes(worker.pid) if worker else None,
                "running_s": None if started_s is None else round(now_s - started_s, 1),
                "traceback": worker.last_words() if worker else "",
            }
            shown = ", ".join(f"{name} {value}" for name, value in fields.items() if name != "traceback")
            log.say("seen", text=f"{shown}\n{fields['traceback']}".rstrip(), **fields)

    def _tell_systemd(self) -> None:
        self._notifier.beat(self._clock.now_s())
        running = [f"{post.job.name} #{post.cycles}" for post in self._posts if post.busy]
        done = sum(post.cycles for post in self._posts) - len(running)
        self._notifier.status(f"{', '.join(running) or 'waiting'}; {done} cycles done")

    def _keep_state(self) -> None:
        if self._state_file is None:
            return
        self._state_file.keep(
            self._clock.now_s(),
            self._posts,
            {"once": self._once, "started_at": self._began_at, "stopping": self._stop_asked > 0}
            | {"max_workers": self._plan.max_workers},
        )

    def _stop(self, why: str) -> None:
        self._stop_asked += 1
        self._notifier.send("STOPPING=1")
        log.say("stopping", text=f"stopping ({why})", reason=why, hurry=self._stop_asked > 1)
        for worker in self._workers():
            if self._stop_asked == 1 and worker is not self._reload.errand.worker:  # nobody waits for new settings now
                worker.drain()
            else:
                worker.hurry()

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
                self._report(post, worker.job, run)
            if worker.job != post.job or not post.wanted:
                worker.retire_when_idle()
        self._posts = [post for post in self._posts if post.wanted or post.worker]

    def _end_orphans(self) -> None:
        workers = self._workers()
        keepers = {worker.keeper_pid for worker in workers}
        self._orphans.end({worker.pid for worker in workers} | keepers | helper_pids())

    def _report(self, post: Post, job: JobPlan, run: Run) -> None:
        now_s = self._clock.now_s()
        outcome, error = judge(run.evidence)
        post.last = {"outcome": outcome, "ended_at": rfc3339(self._clock.wall()), "code": error and error["type"]}
        if outcome != "stopped":
            post.schedule.end(now_s, ok=outcome == "ok", chance=self._chance())
        post.all_ok = post.all_ok and outcome == "ok"
        next_at = None
        if not self._once and not self._stop_asked:
            wait_s = max(0.0, post.schedule.due_s - now_s)
            next_at = rfc3339(self._clock.wall() + timedelta(seconds=wait_s))
        kept_rss_bytes = tree.tree_rss_bytes(post.worker.pid) if post.worker else 0
        bounds = {"kept_rss_bytes": kept_rss_bytes, "missed_ticks": post.missed_ticks}
        self._on_report(report.build(run, job, next_at=next_at, **bounds))
        self._exporter.ask(self._plan)
        if post.schedule.broken and not self._once and not self._stop_asked:
            self._broken = True
            failures = post.schedule.failures
            text = f"{post.job.name}: {failures} cycles failed in a row (SUPERVISOR_MAX_FAILURES): giving up"
            log.say("breaker", logging.CRITICAL, text, code="BreakerOpen", job=post.job.name, failures=failures)
            self._stop("breaker")

    def _exit_code(self) -> int:
        if self._broken:
            return EX_BREAKER
        if self._lost:
            return EX_TEMPFAIL
        bad = self._once and not all(post.all_ok for post in self._posts)
        return EX_CYCLE_NOT_OK if bad else EX_OK
