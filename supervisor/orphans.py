"""What a dead worker left behind: adopted by the supervisor, ended by it, reaped by it."""

import logging
import os
import signal

from supervisor import libc, log, tree

PATIENCE_S = 1.0
OOM_SCORE_MAX = 1000


class Orphans:
    """Ends every child of the supervisor that came from a worker; reaps any other that ended.

    A worker is the subreaper of its own tree, so a process comes to the supervisor only when
    its worker is dead: it has outlived its cycle. Others are none of our business while they
    live: children of a shell that became this program by exec, or, for PID 1 of a container,
    what somebody started in there. A worker raises its score for the OOM killer, which its
    descendants inherit and can't lower (proc(5)): that tells them apart.
    """

    def __init__(self) -> None:
        libc.adopt_orphans()
        self._score = tree.oom_score(os.getpid())
        self._strangers = set(tree.children(os.getpid()))

    def end(self, ours: set[int]) -> None:
        """Kill and reap what a worker left; `ours` are the live ones."""
        ended = 0
        for pid in tree.children(os.getpid()):
            if pid not in ours and not _reap(pid) and pid not in self._strangers and self._of_a_worker(pid):
                ended += 1
                self._end(pid)
        if ended:
            text = f"{ended} processes outlived their worker and were ended"
            log.say("orphans", logging.WARNING, text, processes=ended)
            self.end(ours)  # what these had started has come to us now

    def _of_a_worker(self, pid: int) -> bool:
        # Where our own score is the highest there is, a worker's can't be told from it.
        return self._score == OOM_SCORE_MAX or tree.oom_score(pid) > self._score

    def _end(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)  # our child, so not reaped by anybody else
        try:
            tree.send([pid], signal.SIGKILL)
            if not tree.ends_within([pidfd], PATIENCE_S):
                # In uninterruptible sleep: it ends when its disk answers. From here on a stranger.
                self._strangers.add(pid)
                log.say("unkillable", logging.ERROR, f"process {pid} does not end on SIGKILL", pid=pid)
        finally:
            os.close(pidfd)
        _reap(pid)


def _reap(pid: int) -> bool:
    """Return whether the process had ended; if so it is gone now."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
