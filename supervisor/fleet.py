"""Many projects over many machines: one Celery task a project, whose body is one supervised cycle. Extra `celery`.

    export CELERY_BROKER_URL=redis://queue.example.org/0 SUPERVISOR_JOBS_FILE=jobs.toml
    python -m celery -A supervisor.fleet worker -c 4     # on each machine: so many cycles at once
    python -m celery -A supervisor.fleet beat            # on one

Queue, schedule and retries are Celery's. A cycle is `redcap-sync once` in a process of its own, so the threads of the
Celery worker hold nothing but a wait. A lease in Redis keeps a project from running twice at once; a machine that is lost
loses its leases after LEASE_S, and the next tick, or the queue itself, gives its projects to another.
"""

import os
import subprocess
import sys
import time
import zlib
from collections import deque
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import redis
from celery import Celery, Task
from celery.schedules import schedstate, schedule
from celery.utils.log import get_task_logger

from supervisor import configure
from supervisor.cli import EX_CONFIG
from supervisor.history import LINE_MAX_BYTES, History
from supervisor.loop import EX_TEMPFAIL
from supervisor.plan import JobPlan, Plan

LEASE_S = 60.0
RENEW_S = 10.0
LOST_S = 40.0  # a lease that could not be renewed for so long is given up: the cycle is ended before another may begin
BUSY = "busy"

# The supervisor of the cycle dies with this process, its worker with it: nothing runs on without its lease.
_ONCE = (
    "import os, signal, sys; from supervisor import libc; libc.die_with_parent(signal.SIGKILL); "
    "os.getppid() == int(sys.argv[1]) or os._exit(70); from supervisor.cli import main; sys.exit(main(['once']))"
)

logger = get_task_logger(__name__)


class CycleNotOk(Exception):
    """A cycle was not ok; Celery tries it again, later each time."""


class Spread(schedule):  # type: ignore[misc] # Celery has no types
    """Every so many seconds, each job at a moment of its own: by its name, so the same after each start."""

    def __init__(self, name: str, every_s: float) -> None:
        super().__init__(timedelta(seconds=every_s))
        self.name, self.every_s = name, every_s
        self.offset_s = zlib.crc32(name.encode()) % max(1, round(every_s * 1000)) / 1000

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether a tick has passed since, and the seconds to the next one."""
        now_s = self.now().timestamp()
        last, this = ((moment - self.offset_s) // self.every_s for moment in (last_run_at.timestamp(), now_s))
        return schedstate(is_due=this > last, next=self.offset_s + (this + 1) * self.every_s - now_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.every_s)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spread) and (self.name, self.every_s) == (other.name, other.every_s)

    __hash__ = schedule.__hash__


def environment(job: JobPlan, plan: Plan) -> dict[str, str]:
    """Return the environment in which `redcap-sync once` does this job and no other."""
    own = {
        "SUPERVISOR_JOB": job.target,
        "SUPERVISOR_JOB_NAME": job.name,
        "SUPERVISOR_INTERVAL": str(job.interval_s),
        "SUPERVISOR_RSS_CEILING": str(job.rss_ceiling_bytes),
        "SUPERVISOR_RECYCLE_RSS": str(job.recycle_rss_bytes),
        "SUPERVISOR_CYCLE_TIMEOUT": str(job.cycle_timeout_s),
        "SUPERVISOR_GRACE": str(job.grace_s),
        "SUPERVISOR_START_METHOD": job.start_method,
        "SUPERVISOR_STATE_DIR": os.path.join(plan.state_dir, quote(job.name, safe="")),
        "SUPERVISOR_LOG_FORMAT": plan.log_format,
    }
    if plan.metrics_file:  # a file each: the journals are, too
        stem, suffix = os.path.splitext(plan.metrics_file)
        own["SUPERVISOR_METRICS_FILE"] = f"{stem}-{quote(job.name, safe='')}{suffix}"
    inherited = {name: value for name, value in os.environ.items() if name != "SUPERVISOR_JOBS_FILE"}
    return inherited | dict(job.env) | own


def run(job: JobPlan, plan: Plan, lease: Any) -> dict[str, Any]:
    """Run one cycle as long as the lease lasts; return the gist of its report. Raises CycleNotOk."""
    env = environment(job, plan)
    process = subprocess.Popen([sys.executable, "-c", _ONCE, str(os.getpid())], env=env, stdin=subprocess.DEVNULL)
    renewed_s = time.monotonic()
    while True:
        try:
            code = process.wait(RENEW_S)
            break
        except subprocess.TimeoutExpired:
            try:
                lease.reacquire()
                renewed_s = time.monotonic()
            except redis.RedisError as error:
                gone = isinstance(error, redis.exceptions.LockError)  # another has it, or it ran out
                if gone or time.monotonic() - renewed_s > LOST_S:
                    process.kill()
                    process.wait()
                    raise CycleNotOk(f"{job.name}: the lease could not be renewed ({type(error).__name__})") from None
    if code == EX_TEMPFAIL:
        return {"job": job.name, "outcome": BUSY}
    last = deque(History(env["SUPERVISOR_STATE_DIR"], last_bytes=2 * LINE_MAX_BYTES), 1)
    outcome = last[0].outcome if last and code in (0, 1) else f"exit code {code}"
    if code:
        what = last[0].error.type if last and last[0].error else ""
        raise CycleNotOk(f"{job.name}: {outcome} {what}".rstrip() + ": the log of the worker has its report")
    return {"job": job.name, "outcome": outcome, "duration_s": last[0].duration_s if last else None}


def _plan() -> Plan:
    try:
        return configure.load(os.environ.get("SUPERVISOR_ENV_FILE"))
    except configure.ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EX_CONFIG) from None


def _app(plan: Plan) -> Celery:
    broker = os.environ.get("CELERY_BROKER_URL", "redis://localhost/0")
    if not broker.startswith(("redis://", "rediss://", "unix://", "redis+socket://")):
        print("redcap-sync: CELERY_BROKER_URL: must be a redis:// address: the leases are kept there", file=sys.stderr)
        raise SystemExit(EX_CONFIG)
    app = Celery("redcap-sync", broker=broker, set_as_current=False)
    longest_s = max(job.cycle_timeout_s + job.grace_s for job in plan.jobs)
    app.conf.update(
        task_default_queue="redcap-sync",
        worker_pool="threads",  # each of them waits for a process of its own
        worker_prefetch_multiplier=1,  # what a busy machine holds back, another could do
        task_acks_late=True,  # a lost machine's tasks come back,
        task_reject_on_worker_lost=True,
        broker_transport_options={"visibility_timeout": longest_s + LEASE_S},  # when no cycle of it can run any more
        broker_connection_retry_on_startup=True,
        accept_content=["json"],
        result_backend=os.environ.get("CELERY_RESULT_BACKEND"),
        result_expires=86_400,
        timezone="UTC",
        beat_schedule={
            job.name: {
                "task": "redcap_sync.cycle",
                "args": [job.name],
                "schedule": Spread(job.name, job.interval_s),
                "options": {"expires": job.interval_s},  # who waited so long is done by the next tick
            }
            for job in plan.jobs
        },
    )
    return app


plan = _plan()
app = _app(plan)
_jobs = {job.name: job for job in plan.jobs}
_redis = redis.Redis.from_url(
    app.conf.broker_url.replace("redis+socket://", "unix://"), socket_timeout=5, socket_connect_timeout=5
)


@app.task(  # type: ignore[untyped-decorator]
    name="redcap_sync.cycle",
    bind=True,
    autoretry_for=(CycleNotOk, redis.RedisError),
    retry_backoff=30,
    retry_backoff_max=600,
    retry_jitter=True,
    max_retries=3,
)
def cycle(self: Task, name: str) -> dict[str, Any]:  # noqa: ARG001 - Celery's
    """Run one cycle of a job, unless another machine is at it."""
    job = _jobs.get(name)
    if job is None:
        raise ValueError(f"no job {name!r} is in SUPERVISOR_JOBS_FILE of this machine: give all the same file")
    lease = _redis.lock(f"redcap-sync:{name}", timeout=LEASE_S, thread_local=False)
    if not lease.acquire(blocking=False):
        logger.info("%s: another machine is at it", name)
        return {"job": name, "outcome": BUSY}
    try:
        return run(job, plan, lease)
    finally:
        try:
            lease.release()
        except redis.RedisError:
            pass  # it ran out, or Redis is away: then it runs out
