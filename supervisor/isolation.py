"""`isolate`: any callable in a process of its own, by the same code path that a cycle takes."""

import functools
import os
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import dill

from supervisor import report, tree
from supervisor.clock import Clock
from supervisor.inside import Work
from supervisor.plan import JobPlan
from supervisor.process import Worker
from supervisor.run import begin
from supervisor.wait import to_its_end

T = TypeVar("T")
P = ParamSpec("P")

FOR_EVER_S = 10 * 365 * 86_400.0
_BOUNDS = {"rss_ceiling", "timeout", "grace", "start_method"}
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class Isolated(NamedTuple):
    """What a call returned, and the report of its process."""

    result: Any
    report: report.Report


class IsolationError(Exception):
    """The call did not return; `report` has the outcome, the figures and the traceback."""

    def __init__(self, made: report.Report) -> None:
        error = made["error"] or {"type": made["outcome"], "message": "", "traceback": ""}
        text = f"{made['job']}: {error['type']}: {error['message']}"
        super().__init__(f"{text}\n{error['traceback']}".rstrip())
        self.report = made


class CallFailed(IsolationError):
    """It raised. The exception's type, message and place are in the report."""


class CallCrashed(IsolationError):
    """Its process died: by a signal, os._exit, or a descriptor that it closed."""


class CeilingExceeded(IsolationError, MemoryError):
    """Its process tree was above `rss_ceiling`."""


class CallTimeout(IsolationError, TimeoutError):
    """It was not done within `timeout`."""


class KilledByKernel(IsolationError, MemoryError):
    """The kernel's OOM killer ended it."""


_ERRORS: dict[str, type[IsolationError]] = {
    "failed": CallFailed,
    "crashed": CallCrashed,
    "ceiling": CeilingExceeded,
    "timeout": CallTimeout,
    "oom": KilledByKernel,
}


def isolate(
    function: Callable[..., Any],
    /,
    *arguments: Any,
    rss_ceiling: int | str = "512MB",
    timeout: float | None = None,
    grace: float = 5.0,
    start_method: str | None = None,
    **keywords: Any,
) -> Isolated:
    """Run `function(*arguments, **keywords)` in a process of its own; return result and report.

    `rss_ceiling` bounds the resident bytes of its process tree (a number, or a text as "300MB" or
    "1GiB"), `timeout` its seconds; `grace` is between SIGTERM and SIGKILL. All of its memory goes
    back with its process, and so does whatever it started. The result is pickled by dill and read
    back here: unlike a service's summaries it is trusted, as it is your own code's.

    The start method is `fork` where this program has one thread and holds less than half the
    ceiling: nothing is pickled on the way there. Elsewhere - a web server, a Celery worker, a
    notebook - it is `forkserver`: a fork copies the locks that other threads hold at that moment,
    which nobody ever releases in the child, and its pages count from the first moment on. The
    function and its arguments are pickled by dill then, closures included. Give `start_method` to
    choose yourself. May be called from any thread, and from several at once.

    Raises CallFailed, CallCrashed, CeilingExceeded, CallTimeout or KilledByKernel, all of them
    IsolationError with a `report`; ValueError for a size that is none; OSError when no process
    can be started.
    """
    ceiling_bytes = _size_bytes(rss_ceiling)
    clock = Clock()
    job = JobPlan(
        name=getattr(function, "__qualname__", type(function).__name__),
        target="",
        rss_ceiling_bytes=ceiling_bytes,
        cycle_timeout_s=FOR_EVER_S if timeout is None else timeout,
        grace_s=grace,
        start_method=start_method or _start_method(ceiling_bytes),
    )
    result_fd = os.memfd_create("result", os.MFD_CLOEXEC)
    try:
        work = Work(function, arguments, keywords)
        worker = Worker(job, "", clock, on_output=lambda chunk: None, work=work, result_fd=result_fd)
        run = to_its_end(worker, begin(job, clock, number=1), clock)
        made = report.build(run, job)
        if made["outcome"] != "ok":
            raise _ERRORS.get(made["outcome"], IsolationError)(made)
        with os.fdopen(result_fd, "rb", closefd=False) as file:
            file.seek(0)
            return Isolated(dill.load(file), made)  # noqa: S301 - our own program wrote it
    finally:
        os.close(result_fd)


def isolated(**bounds: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function run in a process of its own at every call, as `isolate` does with these `bounds`.

    `rss_ceiling`, `timeout`, `grace` and `start_method` are those of `isolate`. The decorated
    function returns its plain result; what it raises carries the report.
    """
    if unknown := bounds.keys() - _BOUNDS:
        raise TypeError(f"isolated() takes {', '.join(sorted(_BOUNDS))}; not {', '.join(sorted(unknown))}")

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            bound = functools.partial(function, *arguments, **keywords)
            functools.update_wrapper(bound, function)
            result: T = isolate(bound, **bounds).result
            return result

        return call

    return decorate


def _start_method(ceiling_bytes: int) -> str:
    # Python's own count misses threads of C code; the kernel's does not.
    threads = max(threading.active_count(), len(os.listdir("/proc/self/task")))
    alone = threads == 1 and tree.rss_bytes(os.getpid()) < ceiling_bytes // 2
    return "fork" if alone else "forkserver"


def _size_bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", size.strip().lower())
    if not match or match[2] not in _UNITS:
        raise ValueError(f"{size!r} is no size: write 300MB, 1.5GiB, or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])
