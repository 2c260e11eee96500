"""What the service has done in a worker of its own while the loop goes on: settings read again, metrics written."""

from typing import Any

from supervisor.clock import Clock
from supervisor.life import State
from supervisor.output import Lines
from supervisor.plan import JobPlan
from supervisor.process import Worker
from supervisor.run import Run, begin


class Errand:
    """Has at most one worker; whoever asks while it works is told so behind it, by `asked_again`."""

    def __init__(self, job: JobPlan, clock: Clock) -> None:
        self.worker: Worker | None = None
        self._job = job
        self._clock = clock
        self._again = False

    def ask(self, arguments: dict[str, Any], answer_fd: int = -1) -> None:
        """Start it, or note that it is to be done once more. Raises OSError when no process can be started.

        With `answer_fd`, more arguments are what that file holds, and what is returned goes into it, as JSON.
        """
        if self.worker:
            self._again = True
            return
        output = Lines(self._job.name).feed
        self.worker = Worker(self._job, "", self._clock, on_output=output, result_fd=answer_fd)
        self.worker.assign(begin(self._job, self._clock, arguments=arguments))

    def take(self) -> Run | None:
        """Return what has ended; None while there is nothing."""
        if self.worker is None or self.worker.state is not State.GONE:
            return None
        (run,) = self.worker.ended
        self.worker = None
        return run

    def asked_again(self) -> bool:
        """Return whether it was asked for while it worked, and forget it."""
        again, self._again = self._again, False
        return again
