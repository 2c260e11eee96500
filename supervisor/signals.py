"""The supervisor's signals: the handlers only queue, and one descriptor wakes the loop."""

import signal
import socket
from types import FrameType
from typing import Self

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


class Signals:
    """Queue the handled signals until `take`.

    A context manager for the life of a supervisor. Behind it the program is about to end, and
    a signal that comes late must not change its exit code: they are ignored.
    """

    def __init__(self) -> None:
        self._pending: list[int] = []

    def __enter__(self) -> Self:
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        # A full pipe wakes as well as an empty one: the queue is in `_pending`.
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, self._queue)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        return self

    def __exit__(self, *_: object) -> None:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._woken.close()

    def _queue(self, number: int, _: FrameType | None) -> None:
        if number != signal.SIGCHLD:  # it only wakes: who ended is asked of the kernel
            self._pending.append(number)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal came."""
        return self._woken.fileno()

    def take(self) -> list[int]:
        """Return the signals that came since the last call, in their order."""
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass
        taken, self._pending = self._pending, []
        return taken
