"""Who ends a worker's children when the supervisor itself is killed: a process of its own.

The kernel ends a worker with its supervisor (PDEATHSIG), but not what the worker started: that
goes to init, and nobody is left to know of it. So a worker that has children is given a keeper:
a bare interpreter in a session of its own, beside the worker's tree. When one of the two ends it
kills whatever has the worker's mark: a limit of data that no other process has, and that a fork
and an exec hand on (`inside._limit_memory`). So it also ends what a crashed worker leaves in a
program that is no subreaper (`isolate`).
"""

import fcntl
import logging
import os
import signal
import sys
import time

from supervisor import tree

PATIENCE_S = 1.0  # with its start, and with its end
LOCK_FD = 3
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from supervisor import keeper; keeper.main()"


def start(worker_pid: int, mark_bytes: int, lock_fd: int) -> int:
    """Start the keeper of a worker; return its pid, 0 when there can't be another process.

    It locks the file of `lock_fd`, which it shares with the worker, when it is ready.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # -I and -S: nothing of the environment, no site packages, so 3 MB and 15 ms.
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, home, *map(str, (os.getpid(), worker_pid, mark_bytes))]
    environment = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    actions = [*silent, (os.POSIX_SPAWN_DUP2, lock_fd, LOCK_FD)]
    try:
        # Not a fork: `isolate` comes here from programs with threads.
        return os.posix_spawn(sys.executable, command, environment, file_actions=actions, setsigmask=())
    except OSError as error:
        from supervisor import log  # noqa: PLC0415 - the keeper itself has no use for it

        text = f"if this process is killed now, what worker {worker_pid} started lives on: no keeper ({error})"
        log.say("no_keeper", logging.WARNING, text, worker_pid=worker_pid, error=str(error))
        return 0


def wait_for(lock_fd: int) -> None:
    """Wait, in the worker, until its keeper is there; not for ever, as there may be none."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            fcntl.lockf(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        fcntl.lockf(lock_fd, fcntl.LOCK_UN)
        time.sleep(0.001)


def end(pid: int) -> None:
    """Wait until the keeper of a worker that is gone has done its work."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # else its number may be a stranger's
        fd = os.pidfd_open(pid)
        if not tree.ends_within([fd], PATIENCE_S):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it was reaped already


def main() -> None:
    """Be a keeper: `sys.argv` holds the path, the supervisor's and the worker's pid, and the mark."""
    supervisor_pid, worker_pid, mark_bytes = map(int, sys.argv[2:])
    os.setsid()  # Ctrl-C of a terminal is not for it
    os.closerange(LOCK_FD + 1, 1024)
    try:
        ends = [os.pidfd_open(pid) for pid in (supervisor_pid, worker_pid)]
    except OSError:
        return  # the worker has ended, and its supervisor does what is to be done
    fcntl.lockf(LOCK_FD, fcntl.LOCK_EX)
    if os.getppid() == supervisor_pid:
        tree.ends_within(ends, None)
    ended: set[int] = set()
    while new := tree.with_data_limit(mark_bytes) - ended:  # what one of them has forked meanwhile is new
        tree.send(new, signal.SIGKILL)
        ended |= new
