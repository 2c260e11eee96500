"""What a job gets: its name, its bounds, and a way to say how far it is."""

import socket
import time
from dataclasses import dataclass, field

from supervisor import failure, messages

PROGRESS_MIN_INTERVAL_S = 0.1


@dataclass(slots=True, kw_only=True)
class Cycle:
    """One cycle of a job, as the job sees it.

    `deadline_s` and `remaining_s()` are seconds of CLOCK_BOOTTIME, `ceiling_bytes` is the
    resident memory at which the whole tree is ended. `full` is true when a person asked for
    a full cycle; what that means is the job's affair.
    """

    name: str
    number: int
    id: str
    deadline_s: float
    ceiling_bytes: int
    state_dir: str
    full: bool = False
    _channel: socket.socket = field(repr=False)
    saw_stopping: bool = False  # whether the job was told so
    _progress_at_s: float = 0.0

    def progress(self, done: int, total: int | None = None, unit: str = "") -> None:
        """Say how far the job is, as often as it likes: at most ten a second are sent."""
        now_s = time.monotonic()
        if now_s - self._progress_at_s < PROGRESS_MIN_INTERVAL_S and done != total:
            return
        self._progress_at_s = now_s
        messages.send(
            self._channel, {"kind": "progress", "done": done, "total": total, "unit": failure.mask(str(unit))[:40]}
        )

    def remaining_s(self) -> float:
        """Return the seconds that are left until the cycle's time limit."""
        return self.deadline_s - time.clock_gettime(time.CLOCK_BOOTTIME)

    @property
    def stopping(self) -> bool:
        """Whether a drain was asked for: finish the batch, commit, return.

        A job that has seen it true ends as `stopped`: it is taken at its word that it
        returned early.
        """
        if not self.saw_stopping:
            try:
                self._channel.setblocking(False)
                message = messages.receive(self._channel)
                self.saw_stopping = message is None or message["kind"] == "stop"
            except BlockingIOError:
                pass  # nothing was said
            finally:
                self._channel.setblocking(True)
        return self.saw_stopping
