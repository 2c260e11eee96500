"""The child's side: its first steps, before any code of the job, then its cycles.

`main` is all that the child ever runs of the supervisor, and it never returns.
"""

import faulthandler
import gc
import inspect
import io
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from supervisor import failure, keeper, libc, messages, tree
from supervisor.cycle import Cycle
from supervisor.plan import JobPlan
from supervisor.signals import HANDLED
from supervisor.target import find

# RLIMIT_DATA counts private writable mappings whether they are touched or not, and every
# thread maps 8 MB of stack: so the backstop stands well above the ceiling.
BACKSTOP_MARGIN_BYTES = 256 * 1024 * 1024

_STARTS_A_PROCESS = frozenset(  # audit events (docs.python.org/3/library/audit_events.html)
    ("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen")
)


@dataclass(frozen=True, slots=True)
class Work:
    """A call that `isolate` was asked for; its pickled result goes into `result_fd`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker must know before its first cycle."""

    job: JobPlan
    state_dir: str
    parent_pid: int
    work: Work | None = None  # of `isolate`: runs instead of the job's target


# As long as a result can be without its summary.
_EMPTY_RESULT = {"kind": "result", "ok": True, "saw_stopping": False, "peak_rss_bytes": 1 << 53}


class SummaryError(Exception):
    """The job returned something that is no summary."""


def main(channel: socket.socket, output_fd: int, words_fd: int, result_fd: int, spec: Spec) -> NoReturn:
    """Be a worker until the supervisor closes the channel."""
    try:
        _first_steps(channel, output_fd, words_fd, result_fd, spec)
        messages.send(channel, {"kind": "started", "data_limit_bytes": resource.getrlimit(resource.RLIMIT_DATA)[0]})
        _tell_of_children(channel, words_fd)
        while (message := messages.receive(channel)) is not None:
            if message["kind"] == "cycle":
                result = _run(message, channel, result_fd, spec)
                if not message["last"]:  # else `_leave` does it
                    _end_descendants()
                messages.send(channel, result)
                if message["last"]:
                    break  # no need to wait for the supervisor to say so
        code = 0
    except BaseException as error:
        # What a job raises is caught in `_run`, so this is a defect of ours or of the system.
        seen = failure.describe(error)
        os.write(2, f"{seen['type']}: {seen['message']}\n{seen['traceback']}\n".encode())
        code = 70
    _leave(code)


def _first_steps(channel: socket.socket, output_fd: int, words_fd: int, result_fd: int, spec: Spec) -> None:
    gc.freeze()  # a collection here would write into, and so copy, every page shared with the parent
    os.setsid()  # Ctrl-C of the terminal is the supervisor's affair
    _default_signals()
    _die_with(spec.parent_pid, spec.job.start_method)
    if spec.work is None:  # what `isolate` runs prints where its caller prints, and has its files
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # what multiprocessing opened for standard input is closed below
        sys.stdin = os.fdopen(0, closefd=False)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a line is in the log when it is printed, and survives a kill
        if spec.job.start_method == "fork":
            _close_all_but({0, 1, 2, channel.fileno(), output_fd, words_fd, max(0, result_fd)})
        os.umask(0o077)
    os.close(output_fd)
    # /proc/self belongs to root as soon as the process is not dumpable: these two come first.
    _prefer_as_oom_victim()
    faulthandler.enable(file=words_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=words_fd, all_threads=True)
    _limit_memory(spec.job.rss_ceiling_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.forbid_dumps()  # a piped core_pattern does not ask RLIMIT_CORE (core(5))
    # What the job starts stays below the worker even when its own parent ends.
    libc.adopt_orphans()
    for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"):
        os.environ.pop(name, None)  # else any library may speak to systemd for the service
    os.environ.update(spec.job.env)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _tell_of_children(channel: socket.socket, words_fd: int) -> None:
    """Say it to the supervisor before the job first starts a process: it starts a keeper then.

    What starts one unseen by Python is found when the supervisor next looks at the memory.
    """
    told: list[str] = []

    def hook(event: str, _: object) -> None:
        if event in _STARTS_A_PROCESS and not told:
            told.append(event)
            messages.send(channel, {"kind": "children"})
            keeper.wait_for(words_fd)

    sys.addaudithook(hook)


def _default_signals() -> None:
    # The supervisor's wake-up descriptor is shared by the fork: a signal to this process would
    # write into it, and the supervisor would take it for its own.
    signal.set_wakeup_fd(-1)
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _die_with(parent_pid: int, start_method: str) -> None:
    libc.die_with_parent(signal.SIGKILL)
    # It may have died between the fork and the line above. With forkserver the parent is the
    # fork server, which ends when nobody holds its pipe any more: so a worker must not.
    if start_method != "forkserver" and os.getppid() != parent_pid:
        os._exit(70)
    for library in ("multiprocessing", "multiprocess"):
        server = getattr(sys.modules.get(f"{library}.forkserver"), "_forkserver", None)
        if start_method == "forkserver" and server and server._forkserver_alive_fd is not None:  # noqa: SLF001
            os.close(server._forkserver_alive_fd)  # noqa: SLF001
            server._forkserver_alive_fd = None  # noqa: SLF001


def _close_all_but(keep: set[int]) -> None:
    """Close what the fork brought along: siblings' channels, the lock, the journal."""
    first = 0
    for fd in sorted(keep):
        if first < fd:  # closerange(0, 0) closes all there is, as close_range(2) takes -1 for "the last"
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def _prefer_as_oom_victim() -> None:
    # Raising one's own score needs no privilege (proc(5)); a kernel that kills must not
    # choose the supervisor.
    score = min(1000, tree.oom_score(os.getpid()) + 500)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(score))


def _limit_memory(ceiling_bytes: int) -> None:
    soft = tree.data_bytes() + ceiling_bytes + ceiling_bytes // 4 + BACKSTOP_MARGIN_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    soft -= os.getpid()  # so that no two workers have the same: it marks whatever this one starts
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _run(message: messages.Message, channel: socket.socket, result_fd: int, spec: Spec) -> messages.Message:
    """Run one cycle and return the message that tells how it ended."""
    cycle = Cycle(
        name=spec.job.name,
        number=message["number"],
        id=message["id"],
        deadline_s=message["deadline_s"],
        ceiling_bytes=spec.job.rss_ceiling_bytes,
        state_dir=spec.state_dir,
        full=message["full"],
        _channel=channel,
    )
    result: messages.Message = {"kind": "result"}
    try:
        if spec.work is not None:
            _keep_result(spec.work, result_fd)
            summary = None
        elif message.get("arguments") is None:
            summary = _call(find(spec.job.target), cycle)
        else:
            summary = find(spec.job.target)(**message["arguments"], **_more_arguments(result_fd))
            if result_fd >= 0 and summary:  # of any size: what a thousand jobs are goes through no packet
                with os.fdopen(result_fd, "w", encoding="utf-8", closefd=False) as file:
                    json.dump(summary, file)
                summary = None
        result |= {"ok": True, "summary": _checked(summary)}
    except BaseException as error:
        result |= {"ok": False, "error": failure.describe(error, _backstop(error))}
        result["summary"] = _summary_of(error, result)
    result |= {"saw_stopping": cycle.saw_stopping, "peak_rss_bytes": tree.own_peak_rss_bytes()}
    return result


def _backstop(error: BaseException) -> str:
    """Return RLIMIT_DATA's figures where it may have refused; what the job held is there still, as its frames are."""
    if not isinstance(error, MemoryError) and "can't start new thread" not in str(error):
        return ""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return (
        f" (the process held {tree.data_bytes():,} bytes of data, touched or not; the kernel refuses more than "
        f"{limit_bytes:,}, the backstop above SUPERVISOR_RSS_CEILING (isolate: rss_ceiling): raise that, or need less)"
    )


def _keep_result(work: Work, result_fd: int) -> None:
    """Run a call and write its result down; a result that can't be pickled is the call's failure."""
    import dill  # noqa: PLC0415 - a service never comes here, and holds less without it

    result = work.function(*work.arguments, **work.keywords)
    with os.fdopen(result_fd, "wb", closefd=False) as file:
        dill.dump(result, file)


def _call(job: Callable[..., Any], cycle: Cycle) -> Any:
    """Call a job with its cycle, or with nothing where it takes no argument."""
    try:
        signature = inspect.signature(job)
    except ValueError:  # a callable of C code that does not tell
        return job()
    try:
        signature.bind(cycle)
        takes_one = True
    except TypeError:
        takes_one = False
    wants_one = any(p.default is p.empty or p.name == "cycle" for p in signature.parameters.values())
    return job(cycle) if takes_one and wants_one else job()


def _more_arguments(fd: int) -> dict[str, Any]:
    """Return what an errand was told in its file, where that holds something."""
    told = os.pread(fd, os.fstat(fd).st_size, 0) if fd >= 0 else b""
    arguments: dict[str, Any] = json.loads(told) if told else {}
    return arguments


def _summary_of(error: BaseException, result: messages.Message) -> dict[str, Any]:
    """Return what a job did until it failed: its error's `summary`, where there is one and both fit a packet."""
    try:
        summary = _checked(getattr(error, "summary", None))
        messages.encode({**_EMPTY_RESULT, **result, "summary": summary})
    except BaseException:
        return {}  # how it failed matters more
    return summary


def _checked(summary: object) -> dict[str, Any]:
    if summary is None:
        return {}
    if not isinstance(summary, dict):
        raise SummaryError(f"the job returned a {type(summary).__name__}; a summary is a dict or None")
    try:
        messages.encode({**_EMPTY_RESULT, "summary": summary})
    except messages.ProtocolError as problem:
        raise SummaryError(f"the job's summary can't be sent: {problem}; return a smaller one") from None
    masked: dict[str, Any] = failure.mask_values(summary)
    return masked


def _leave(code: int) -> NoReturn:
    """End without running what the fork inherited, and with what the job printed written out."""
    _end_descendants()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # closed by the job, or nobody reads any more: there is no one to tell
    os._exit(code)


def _end_descendants() -> None:
    """End what the job left behind; a worker is the subreaper of all of it."""
    limit_s = time.monotonic() + 5
    while (left := tree.descendants(os.getpid())) and time.monotonic() < limit_s:
        tree.send(left, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
