"""Start a worker's process by any start method, and reap it.

By `multiprocess` where a call with closures must be pickled, elsewhere by `multiprocessing`, whose
names it has: a job needs no dill, and a supervisor without it holds 0.9 MB less (measured).
"""

import errno
import fcntl
import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from supervisor import inside, messages
from supervisor.plan import JobPlan
from supervisor.signals import HANDLED

SPARE_FDS = 6  # what multiprocessing opens for a process, and we behind it
KILL_PATIENCE_S = 1.0  # a killed process in uninterruptible sleep stays: say so, try again


class Descriptor:
    """A descriptor that crosses to the child, however the child is started."""

    def __init__(self, fd: int, library: str) -> None:
        self.fd = fd
        self.library = library

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        sent = importlib.import_module(f"{self.library}.reduction").DupFd(self.fd)
        return _arrived, (sent, self.library)


def _arrived(sent: Any, library: str) -> Descriptor:
    return Descriptor(sent.detach(), library)


def _main(
    channel: socket.socket, spec: inside.Spec, output: Descriptor, words: Descriptor, result: Descriptor | None = None
) -> None:
    inside.main(channel, output.fd, words.fd, result.fd if result else -1, spec)


@dataclass(frozen=True, slots=True)
class Child:
    """A started process, and the supervisor's ends of what connects the two."""

    process: Any
    pid: int
    pidfd: int
    channel: socket.socket  # messages, non-blocking
    output_fd: int  # what it prints, non-blocking
    words_fd: int  # a memory file for faulthandler's last words
    statm_fd: int  # of /proc: its memory
    forked: bool

    def reap(self) -> tuple[int | None, int]:
        """Return the wait status, and the peak RSS in bytes that the kernel accounts, 0 if unknown.

        Not of what was exec'd: the kernel counts its parent's peak in (getrusage(2)).
        """
        try:
            _, wait_status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:  # a fork server's child: its exit code comes over a pipe
            self.process.join(KILL_PATIENCE_S)
            code = self.process.exitcode
            return (None if code is None else code << 8 if code >= 0 else -code), 0
        # multiprocessing must not wait for it again: it would take the error for "alive" for ever.
        self.process._popen.returncode = os.waitstatus_to_exitcode(wait_status)  # noqa: SLF001
        self.process.join(0)
        self.process.close()
        return wait_status, usage.ru_maxrss * 1024 if self.forked else 0


def start(job: JobPlan, state_dir: str, work: inside.Work | None = None, result_fd: int = -1) -> Child:
    """Start a worker of `job`, or of a call. Raises OSError when there can't be another process."""
    spec = inside.Spec(job, state_dir, os.getpid(), work)
    library = multiprocessing if work is None else importlib.import_module("multiprocess")
    with ExitStack() as undo:  # also when Ctrl-C comes as the mask is lifted
        with ExitStack() as done:
            channel, theirs = messages.pair()
            undo.callback(channel.close)
            done.callback(theirs.close)
            output_fd, output_theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, output_fd)
            done.callback(os.close, output_theirs)
            os.set_blocking(output_theirs, True)
            words_fd = os.memfd_create("last-words", os.MFD_CLOEXEC)
            undo.callback(os.close, words_fd)
            # The offset is shared with the child: without this, what comes after a truncation leaves a hole.
            fcntl.fcntl(words_fd, fcntl.F_SETFL, os.O_APPEND)
            given = [
                Descriptor(fd, library.__name__) for fd in (output_theirs, words_fd, result_fd)[: 2 + (result_fd >= 0)]
            ]
            process = library.get_context(job.start_method).Process(target=_main, args=(theirs, spec, *given))
            with ExitStack() as spare:  # multiprocessing leaks one of its pipes when there is no room for both
                for _ in range(SPARE_FDS):
                    spare.callback(os.close, os.dup(words_fd))
            # A signal between the fork and the child's own handlers would run ours, in the child. What is
            # exec'd has none of our handlers, and a fork server must not inherit the mask.
            forked = job.start_method == "fork"
            before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED if forked else ())
            done.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            try:
                process.start()
            except EOFError as error:
                raise OSError(errno.ECHILD, "the fork server ended; the next start makes another") from error
            pidfd = os.pidfd_open(process.pid)
            undo.callback(os.close, pidfd)
            statm_fd = os.open(f"/proc/{process.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        undo.pop_all()
    return Child(process, process.pid, pidfd, channel, output_fd, words_fd, statm_fd, forked)


def helper_pids() -> set[int]:
    """Return the processes that multiprocessing keeps for spawn and forkserver; none for fork."""
    keepers = (
        ("multiprocessing.resource_tracker", "_resource_tracker", "_pid"),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"),
    )
    found = {
        getattr(getattr(sys.modules[module], keeper), pid) for module, keeper, pid in keepers if module in sys.modules
    }
    return {pid for pid in found if pid}
