"""One worker: its process, its channel, its tree; from the fork to the reaping.

A Worker makes the system calls; what to do in which state is decided in `life`, how a cycle
ended in `verdict`, when to look at its memory again in `memory`. It blocks nowhere, but for some ms at a ceiling: the owner
waits on its descriptors and on its deadline, and calls `on_ready` and `on_time`.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from supervisor import cgroup, keeper, life, memory, messages, tree
from supervisor.clock import Clock
from supervisor.inside import Work
from supervisor.life import Event, State
from supervisor.plan import JobPlan
from supervisor.run import Run, is_result
from supervisor.start import KILL_PATIENCE_S, start
from supervisor.verdict import Cause, Evidence, judge, of_the_job

FIRST_LOOK_S = 0.005
LAST_WORDS_MAX_BYTES = 16_384
# Of two signals that wait, the kernel lets the fatal one win before the other's handler has run:
# so the worker is asked for its traceback this long before it gets SIGTERM.
LAST_WORDS_AHEAD_S = 0.1
# How long, and by what share of the ceiling, a worker above it may go on until it has said where it is.
# On a busy machine 16 of 40 runaways at full speed left no last words without it, and none with it (measured).
WORDS_LOOKS, WORDS_LOOK_S = 40, 0.0005
WORDS_COST_SHARE = 25


class Worker:
    """A live worker process of one job. Raises OSError when it can't be started."""

    def __init__(
        self,
        job: JobPlan,
        state_dir: str,
        clock: Clock,
        *,
        on_output: Callable[[bytes], object],
        on_progress: Callable[[messages.Message], None] = lambda said: None,
        work: Work | None = None,
        result_fd: int = -1,
    ) -> None:
        self.job = job
        self.state = State.IDLE
        self.run: Run | None = None
        self.ended: list[Run] = []  # cycles that are over; the owner takes them
        self.cycles_served = 0
        self.rss_bytes = 0
        self._clock = clock
        self._on_output = on_output
        self._on_progress = on_progress
        self._listening = False  # the child has its handler for the last-words signal
        self._mark_bytes = 0  # the worker's limit of data, by which its keeper knows its descendants
        self._spoke = False  # last words were asked for in this cycle
        self._signalled_s: float | None = None  # when the supervisor first acted against it
        self._oom_kills: int | None = None  # of the control group, at the cycle's start
        self._drain_s: float | None = None
        self._patience_s: float | None = None
        self.keeper_pid = 0  # of what the worker started, once it has started something
        self._look_s = clock.now_s()
        self._child = start(job, state_dir, work, result_fd)
        self.channel, self.output_fd = self._child.channel, self._child.output_fd
        self.pid, self.pidfd = self._child.pid, self._child.pidfd

    # What the owner waits for.

    def descriptors(self) -> list[int]:
        """Return the descriptors that are worth waiting for, in the order to serve them."""
        if self.state is State.GONE:
            return []
        fds = [self.channel.fileno()] if self.channel.fileno() >= 0 else []
        if self.output_fd >= 0:
            fds.append(self.output_fd)
        return [*fds, self.pidfd]

    def deadline_s(self) -> float:
        """Return the time, in seconds of the clock, at which `on_time` has something to do."""
        limits = [self._look_s]
        if self.state is State.RUNNING and self.run:
            limits.append(self.run.deadline_s - (0 if self._spoke else LAST_WORDS_AHEAD_S))
            if self._drain_s is not None:
                limits.append(self._drain_s)
        if self._patience_s is not None:
            limits.append(self._patience_s)
        return min(limits)

    # What the owner asks for.

    def assign(self, run: Run) -> None:
        """Give a worker that is idle its next cycle."""
        self.run = run
        self.cycles_served += 1
        run.worker_pid, run.worker_cycles = self.pid, self.cycles_served
        self._spoke = False
        self._signalled_s = None
        self._oom_kills = cgroup.oom_kills()
        os.ftruncate(self._child.words_fd, 0)
        self._happens(Event.ASSIGN)

    def drain(self) -> None:
        """Ask the job to finish its batch and return within its grace."""
        if self._drain_s is None:
            self._drain_s = self._clock.now_s() + self.job.grace_s
            self._happens(Event.DRAIN)

    def hurry(self) -> None:
        """End the worker now: SIGTERM first, SIGKILL when that was sent already."""
        self._note_cause("stopped", "the supervisor was asked to stop at once")
        self._happens(Event.HURRY)

    def retire_when_idle(self) -> None:
        """Let the worker go if it has nothing to do; else its next end of a cycle will show."""
        if self.state is State.IDLE:
            self._happens(Event.RETIRE)

    # What happens to it.

    def on_ready(self, fd: int) -> None:
        """Serve one of `descriptors()` that the kernel says is ready."""
        if fd == self.output_fd:
            self._read_output()
        elif fd == self.pidfd:
            self._read_channel()  # a result may lie there still (it was sent before the end)
            self._read_output()
            self._happens(Event.EXITED)
        else:
            self._read_channel()

    def on_time(self) -> None:
        """Look at the memory, and at the limits of time."""
        now_s = self._clock.now_s()
        if self.state is not State.GONE and now_s >= self._look_s:
            self._look(now_s)
        if self.state is State.RUNNING and self.run:
            if self._drain_s is not None and now_s >= self._drain_s:
                self._note_cause("stopped", f"the job did not return within the grace of {self.job.grace_s:g} s")
                self._happens(Event.TIME_UP)
            elif now_s >= self.run.deadline_s - LAST_WORDS_AHEAD_S:
                self._ask_last_words()
            if now_s >= self.run.deadline_s:
                self._note_cause(
                    "timeout",
                    f"the cycle ran into its limit of {self.job.cycle_timeout_s:g} s: find out what it "
                    "waited for (traceback), or raise SUPERVISOR_CYCLE_TIMEOUT (isolate: timeout)",
                )
                self._happens(Event.TIME_UP)
        if self._patience_s is not None and now_s >= self._patience_s:
            if self.state is State.LEAVING and self.run and self.run.evidence.result is None:
                self._note_cause("silent", "")
            self._happens(Event.GRACE_UP)

    def _look(self, now_s: float) -> None:
        below = tree.descendants(self.pid)
        self.rss_bytes = tree.tree_rss_bytes(self.pid, below, self._child.statm_fd)
        if below:
            self._have_a_keeper()
        ceiling_bytes = self.job.rss_ceiling_bytes
        self._look_s = now_s + (
            memory.LOOK_IDLE_S if self.state is State.IDLE else memory.next_look_s(self.rss_bytes, ceiling_bytes)
        )
        if self.run:
            self.run.peak_rss_bytes = max(self.run.peak_rss_bytes, self.rss_bytes)
        if self.rss_bytes > ceiling_bytes:
            self._note_cause(
                "ceiling",
                f"the worker's tree held {self.rss_bytes:,} bytes, above the ceiling of {ceiling_bytes:,}: "
                "find out what needs so much (traceback), or raise SUPERVISOR_RSS_CEILING (isolate: rss_ceiling)",
            )
            self._hear_last_words()
            self._happens(Event.OVER_CEILING)
        elif self.rss_bytes > memory.LAST_WORDS_SHARE * ceiling_bytes:
            self._ask_last_words()

    def say_where(self) -> None:
        """Have the worker write its traceback down; `last_words` returns it a moment later."""
        # Before the child has its handler the signal would end it; behind its end the descriptor is closed.
        if self._listening and self.state is not State.GONE:
            with contextlib.suppress(ProcessLookupError):  # a fork server has reaped it
                signal.pidfd_send_signal(self.pidfd, signal.SIGUSR2)

    def _ask_last_words(self) -> None:
        if not self._spoke:
            self._spoke = True
            self.say_where()

    def _hear_last_words(self) -> None:
        """Give a worker that is above its ceiling a moment to say where it is, if it did not say it yet.

        What grows at full speed, on a busy machine, is above it before it was asked. It is given
        as long as it does not use the moment to grow.
        """
        self._ask_last_words()
        bound_bytes = self.rss_bytes + self.job.rss_ceiling_bytes // WORDS_COST_SHARE
        for _ in range(WORDS_LOOKS if self._listening and self.run else 0):
            if self.last_words() or tree.rss_bytes(self.pid, self._child.statm_fd) > bound_bytes:
                break
            time.sleep(WORDS_LOOK_S)

    def _have_a_keeper(self) -> None:
        if not self.keeper_pid and self._mark_bytes > 0 and self.state in (State.RUNNING, State.TERMINATING):
            self.keeper_pid = keeper.start(self.pid, self._mark_bytes, self._child.words_fd)

    def _note_cause(self, cause: Cause, detail: str) -> None:
        """Keep the first cause: what comes after it is its consequence."""
        if self.run and self.run.evidence.cause is None and self.state is not State.KILLING:
            self.run.evidence.cause, self.run.evidence.detail = cause, detail

    def _read_channel(self) -> None:
        while self.channel.fileno() >= 0:
            try:
                message = messages.receive(self.channel)
            except BlockingIOError:
                return
            except messages.ProtocolError as problem:
                self._note_cause("protocol", f"the worker sent {problem}")
                self._happens(Event.GARBAGE)
                return
            if message is None:
                self._happens(Event.CLOSED)
                self.channel.close()
                return
            self._hear(message)

    def _hear(self, message: messages.Message) -> None:
        kind = message["kind"]
        if kind == "started" and not self._listening:  # once, before any code of the job
            self._listening, self._mark_bytes = True, int(message["data_limit_bytes"])
        elif kind == "children":
            self._have_a_keeper()
        elif kind == "progress":
            if life.action(self.state, Event.PROGRESS) is life.Action.NOTE:
                self._on_progress(message)
            self._happens(Event.PROGRESS)
        elif kind == "result" and is_result(message):
            if self.run and self.run.evidence.result is None:
                self.run.evidence.result = message
                self.run.peak_rss_bytes = max(self.run.peak_rss_bytes, message["peak_rss_bytes"])
            self._happens(Event.RESULT)
        else:
            self._note_cause("protocol", "the worker sent a message that the supervisor does not know")
            self._happens(Event.GARBAGE)

    def _read_output(self) -> None:
        while self.output_fd >= 0:
            try:
                chunk = os.read(self.output_fd, 65_536)
            except BlockingIOError:
                return
            self._on_output(chunk)
            if not chunk:
                os.close(self.output_fd)
                self.output_fd = -1
            if len(chunk) < 65_536:
                return  # whatever is left comes in the next turn: others wait too

    def _happens(self, event: Event) -> None:
        what = life.action(self.state, event)
        kept = what is life.Action.SETTLE and self._settle()
        before, self.state = self.state, life.following(self.state, event, kept=kept)
        if what in (life.Action.TERMINATE, life.Action.KILL) and self._signalled_s is None:
            self._signalled_s = self._clock.now_s()
        match what:
            case life.Action.SEND_CYCLE:
                self._send_cycle()
            case life.Action.ASK_TO_STOP:
                self._send({"kind": "stop"})
            case life.Action.LET_GO:
                self._let_go()
            case life.Action.TERMINATE:
                self._terminate()
            case life.Action.KILL:
                tree.kill_tree(self.pid)
            case life.Action.REAP:
                self._reap()
            case life.Action.SETTLE if not kept:
                self._let_go()
            case _:
                pass
        if self.state is not before or what is life.Action.KILL:
            grace_s = KILL_PATIENCE_S if self.state is State.KILLING else self.job.grace_s
            patient = self.state in (State.LEAVING, State.TERMINATING, State.KILLING)
            self._patience_s = self._clock.now_s() + grace_s if patient else None

    def _send_cycle(self) -> None:
        assert self.run is not None
        # Nothing grows before the job is imported: the first look must not compete with that.
        self._look_s = self._clock.now_s() + FIRST_LOOK_S
        self._send(
            {
                "kind": "cycle",
                "number": self.run.number,
                "id": self.run.id,
                "deadline_s": self.run.deadline_s,
                "full": self.run.full,
                "arguments": self.run.arguments,
                "last": self.cycles_served == self.job.cycles_per_worker,
            }
        )

    def _send(self, message: messages.Message) -> None:
        try:
            messages.send(self.channel, message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is ending: the pidfd tells, and the verdict is made there

    def _settle(self) -> bool:
        """Decide whether the worker is kept after its cycle; if so, the cycle is over now."""
        run = self.run
        assert run is not None
        if self.job.cycles_per_worker != 1:  # else it goes whatever it holds
            self.rss_bytes = tree.tree_rss_bytes(self.pid)
            run.peak_rss_bytes = max(run.peak_rss_bytes, self.rss_bytes)
        run.recycled = self._why_not_kept(run)
        kept = run.recycled is None and self._drain_s is None
        if kept:
            self._end_run()
        return kept

    def _why_not_kept(self, run: Run) -> str | None:
        return memory.recycle_reason(
            outcome=judge(run.evidence)[0],
            cycles_served=self.cycles_served,
            cycles_per_worker=self.job.cycles_per_worker,
            rss_bytes=self.rss_bytes,
            recycle_rss_bytes=self.job.recycle_rss_bytes,
        )

    def _end_run(self) -> None:
        if self.run:
            self.run.ended_s = self._clock.now_s()
            self.ended.append(self.run)
            self.run = None

    def _let_go(self) -> None:
        try:
            self.channel.shutdown(1)  # SHUT_WR: it reads the end, we still hear what it says
        except OSError:
            pass  # it closed its own end first

    def _terminate(self) -> None:
        self._let_go()  # a job that handles SIGTERM and returns is not to wait for a next cycle
        # The leader is not reaped, so its group's number can't be somebody else's.
        for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process hears nothing
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                with contextlib.suppress(ProcessLookupError):  # a fork server has reaped it, and we hear of it next
                    signal.pidfd_send_signal(self.pidfd, number)  # it has no session of its own yet

    def _reap(self) -> None:
        try:
            # A zombie keeps its group's number: what is left of the group ends now. What left the
            # group was adopted by the supervisor at this death, and the loop ends it.
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it never came to have a group of its own
        wait_status, peak_rss_bytes = self._child.reap()
        if self.keeper_pid:
            keeper.end(self.keeper_pid)
        if self.run:
            self.run.evidence.wait_status = wait_status
            self.run.peak_rss_bytes = max(self.run.peak_rss_bytes, peak_rss_bytes)
            self.run.recycled = self.run.recycled or self._why_not_kept(self.run)
            self._account(self.run.evidence, self.run.peak_rss_bytes)
        self._end_run()
        for fd in (self.output_fd, self._child.words_fd, self._child.statm_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.channel.close()
        self.output_fd = self.pidfd = -1
        self._look_s = float("inf")
        self.rss_bytes = 0

    def _account(self, seen: Evidence, peak_rss_bytes: int) -> None:
        seen.last_words = self.last_words()
        if self._signalled_s is not None:
            seen.ended_in_s = self._clock.now_s() - self._signalled_s
        if seen.cause == "ceiling":
            seen.over_ceiling_bytes = peak_rss_bytes - self.job.rss_ceiling_bytes
        now = cgroup.oom_kills()
        if now is not None and self._oom_kills is not None:
            seen.oom_kills = now - self._oom_kills

    def last_words(self) -> str:
        """Return what faulthandler wrote down in this cycle: files, lines and functions."""
        words = os.pread(self._child.words_fd, LAST_WORDS_MAX_BYTES, 0)
        return of_the_job(words.decode("utf-8", "replace"))
