"""One cycle as the supervisor keeps it: what was asked for, and what was seen of it."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from supervisor import tree
from supervisor.clock import Clock
from supervisor.failure import TYPE_MAX_CHARACTERS
from supervisor.messages import Message
from supervisor.plan import JobPlan
from supervisor.verdict import Evidence


@dataclass(slots=True, kw_only=True)
class Run:
    """One cycle in a worker. Times in seconds are the clock's, `started_at` is wall time."""

    number: int
    id: str
    full: bool
    started_at: datetime
    started_s: float
    deadline_s: float
    arguments: dict[str, Any] | None = None
    ended_s: float = 0.0
    peak_rss_bytes: int = 0
    worker_pid: int = 0
    worker_cycles: int = 0
    recycled: str | None = None
    evidence: Evidence = field(default_factory=Evidence)


def begin(job: JobPlan, clock: Clock, *, number: int = 0, full: bool = False, arguments: Any = None) -> Run:
    """Return a run that starts now; `arguments` are those of a function of the supervisor's own."""
    now_s = clock.now_s()
    return Run(
        number=number,
        id=tree.random_uuid(),
        full=full,
        started_at=clock.wall(),
        started_s=now_s,
        deadline_s=now_s + job.cycle_timeout_s,
        arguments=arguments,
    )


def is_result(message: Message) -> bool:
    """Return whether a message has all that a result must have: a worker is not trusted."""
    error = message.get("error")
    told = isinstance(error, dict) and set(error) == {"type", "message", "traceback"}
    if message.get("ok") is True:
        told = isinstance(message.get("summary"), dict)
    elif (
        message.get("ok") is not False
        or not told
        or not all(isinstance(part, str) for part in message["error"].values())
        or len(message["error"]["type"]) > TYPE_MAX_CHARACTERS
        or not isinstance(message.get("summary", {}), dict)
    ):
        return False
    return told and type(message.get("peak_rss_bytes")) is int
