"""The supervisor's signals: the handlers only queue, and one descriptor wakes the loop."""

import signal
import socket
from types import FrameType
from typing import Self

HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGCHLD,
)


class Signals:
    """Queue the handled signals until `take`. A context manager: it restores what was there."""

    def __init__(self) -> None:
        self._pending: list[int] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        # A full pipe wakes as well as an empty one: the queue is in `_pending`.
        self._fd_before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            self._before[number] = signal.signal(number, self._queue)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._fd_before)
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
