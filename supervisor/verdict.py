"""How a cycle ended, told from what was seen of it.

Pure: no clock, no process, no logging. What can't be known is not guessed: a process that was
killed by a signal that nobody here sent is `crashed`, with the signal named.
"""

import os
import signal
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["ok", "failed", "crashed", "ceiling", "timeout", "stopped", "oom"]
Cause = Literal["ceiling", "timeout", "stopped", "protocol", "silent"]


@dataclass(slots=True)
class Evidence:
    """What was seen of one cycle. Grows while it runs; read once at its end."""

    result: dict[str, Any] | None = None  # the worker's own last message
    cause: Cause | None = None  # why the supervisor ended the worker, if it did
    detail: str = ""  # figures of the cause, in words
    wait_status: int | None = None  # as of wait(2); None while the worker lives
    last_words: str = ""  # what faulthandler wrote: files, lines and functions
    over_ceiling_bytes: int | None = None  # the most that the tree was above it, when that ended it
    ended_in_s: float | None = None  # from the supervisor's first signal to the reaping
    oom_kills: int = 0  # of the kernel's, in our control group, while the cycle ran


def judge(seen: Evidence) -> tuple[Outcome, dict[str, str] | None]:
    """Return the outcome and the error (`type`, `message`, `traceback`), None when all is well."""
    if seen.cause in ("ceiling", "timeout", "stopped") and not _done(seen):
        outcome: Outcome = seen.cause
        return outcome, _error(_TYPES[seen.cause], _detail(seen), seen.last_words)
    if seen.result is None:
        if seen.cause == "protocol":
            return "crashed", _error("ProtocolError", seen.detail, seen.last_words)
        if seen.oom_kills and seen.cause is None and _killed_by(seen) == signal.SIGKILL:
            return "oom", _error("KilledByKernel", _OOM.format(seen.oom_kills), seen.last_words)
        return "crashed", _error("WorkerDied", _death(seen), seen.last_words)
    if not seen.result["ok"]:
        return "failed", dict(seen.result["error"])
    if seen.cause == "timeout":
        return "timeout", _error(_TYPES["timeout"], seen.detail, seen.last_words)
    if seen.result.get("saw_stopping"):
        return "stopped", None
    return "ok", None


_TYPES: dict[str, str] = {"ceiling": "CeilingExceeded", "timeout": "CycleTimeout", "stopped": "Stopped"}
_OOM = (
    "the kernel's OOM killer ended {} process(es) of this control group during the cycle, the worker among them: "
    "lower SUPERVISOR_RSS_CEILING below what the group may hold, or give the group more memory"
)


def _killed_by(seen: Evidence) -> int | None:
    killed = seen.wait_status is not None and os.WIFSIGNALED(seen.wait_status)
    return os.WTERMSIG(seen.wait_status) if killed and seen.wait_status is not None else None


def _done(seen: Evidence) -> bool:
    return seen.result is not None and bool(seen.result["ok"])


def _detail(seen: Evidence) -> str:
    if seen.ended_in_s is None:
        return seen.detail
    over = "" if seen.over_ceiling_bytes is None else f" it was {seen.over_ceiling_bytes:,} bytes above at most, and"
    return f"{seen.detail};{over or ' it was'} gone after {seen.ended_in_s * 1000:.0f} ms"


def _error(kind: str, message: str, traceback: str) -> dict[str, str]:
    return {"type": kind, "message": message, "traceback": traceback}


def _death(seen: Evidence) -> str:
    if seen.cause == "silent":
        return (
            "the worker closed its channel without a result and lived on; it was ended. "
            "The job must not close descriptors that it did not open"
        )
    if seen.wait_status is None:
        return "the worker ended, and the kernel did not tell how"
    if os.WIFSIGNALED(seen.wait_status):
        number = os.WTERMSIG(seen.wait_status)
        return f"the worker was killed by {signal_name(number)}, which the supervisor did not send" + (
            ": it is what the kernel's OOM killer sends, and others too" if number == 9 else ""
        )
    code = os.waitstatus_to_exitcode(seen.wait_status)
    return f"the worker ended with exit code {code} and without a result: a job must return, not call os._exit"


def of_the_job(last_words: str) -> str:
    """Return what faulthandler wrote without the frames below the job, which tell nothing.

    A forked worker still has the supervisor's own frames on its stack.
    """
    kept: list[str] = []
    below = False
    for line in last_words.splitlines():
        if not line.startswith("  "):
            below = False
        elif below or "supervisor/inside.py" in line:
            below = True
            continue
        if "<frozen importlib" not in line:
            kept.append(line)
    return "\n".join(kept).strip()


def signal_name(number: int) -> str:
    """Return SIGSEGV for 11; SIG and the number for one without a name, as a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
