"""Who ends a worker's children when the supervisor itself is killed: a process of its own.

The kernel ends a worker with its supervisor (PDEATHSIG), but not what the worker started: that
goes to init, and nobody is left to know of it. So a worker that has children is given a keeper:
a bare interpreter in a session of its own, beside the worker's tree, that remembers who is in it.
Where the program is no subreaper (`isolate`) it also ends what a crashed worker leaves.
"""

import logging
import os
import signal
import sys

from supervisor import tree

LOOK_S = 0.05
END_PATIENCE_S = 1.0
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from supervisor import keeper; keeper.main()"


def start(worker_pid: int) -> int:
    """Start the keeper of a worker; return its pid, 0 when there can't be another process."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # -I and -S: nothing of the environment, no site packages, so 3 MB and 15 ms.
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, home, str(os.getpid()), str(worker_pid)]
    environment = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    try:
        # Not a fork: `isolate` comes here from programs with threads.
        return os.posix_spawn(sys.executable, command, environment, file_actions=silent, setsigmask=())
    except OSError as error:
        from supervisor import log  # noqa: PLC0415 - the keeper itself has no use for it

        text = f"if this process is killed now, what worker {worker_pid} started lives on: no keeper ({error})"
        log.say("no_keeper", logging.WARNING, text, worker_pid=worker_pid, error=str(error))
        return 0


def end(pid: int) -> None:
    """Wait until the keeper of a worker that is gone has done its work."""
    try:
        fd = os.pidfd_open(pid)
        if not tree.ends_within([fd], END_PATIENCE_S):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it was reaped already


def main() -> None:
    """Be a keeper: `sys.argv` holds the path, the supervisor's and the worker's pid."""
    supervisor_pid, worker_pid = map(int, sys.argv[2:])
    os.setsid()  # Ctrl-C of a terminal is not for it
    os.closerange(3, 1024)
    known: dict[int, int] = {}
    ends = [fd for fd in map(_open, (supervisor_pid, worker_pid)) if fd >= 0]
    if len(ends) < 2:
        return  # the worker has ended; or both have, before anything could be known
    over = os.getppid() != supervisor_pid
    while not over:
        for pid in tree.descendants(worker_pid):
            if pid not in known:
                known[pid] = _open(pid)
        for pid in [pid for pid, fd in known.items() if fd < 0 or tree.ends_within([fd], 0)]:
            if (fd := known.pop(pid)) >= 0:
                os.close(fd)
        over = tree.ends_within(ends, LOOK_S)
    known[worker_pid] = ends[-1]  # it is ending by itself, unless it has no parent that could end
    for pid, fd in known.items():
        if not tree.ends_within([fd], 0):  # it lives, so its number is still its own
            tree.kill_tree(pid)


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
