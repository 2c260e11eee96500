"""SIGHUP: the settings read again, in a worker like any other, while the loop goes on."""

import logging
import os

from supervisor import configure, log
from supervisor.clock import Clock
from supervisor.errand import Errand
from supervisor.plan import Plan


class Reload:
    """Reads, and says what is in force then."""

    def __init__(self, env_file: str | None, clock: Clock) -> None:
        self.errand = Errand(configure.JOB, clock)
        self._arguments = {"env_file": env_file}
        self._answer_fd = -1

    def ask(self) -> None:
        """Start to read; while it is being read, once more behind it."""
        if self.errand.worker is None:
            log.say("reloading", text="reading the settings again")
        try:
            if self._answer_fd < 0:
                self._answer_fd = os.memfd_create("answer", os.MFD_CLOEXEC)
            self.errand.ask(self._arguments, self._answer_fd)
        except OSError as error:
            _refuse(f"no process could be started ({error})")

    def take(self, old: Plan, *, stopping: bool) -> Plan | None:
        """Return the plan that is in force when the reading is over: the new one, or `old`, as at a stop.

        None while there is nothing to take. A configuration that is invalid is refused, and why
        is in the log.
        """
        run = self.errand.take()
        if run is None:
            return None
        plan = old
        try:
            plan = old if stopping else configure.answered(run, self._answer_fd)
            if plan.state_dir != old.state_dir:
                _refuse("SUPERVISOR_STATE_DIR can't change while the service runs: restart it")
                plan = old
        except configure.ConfigError as error:
            _refuse(str(error))
        os.close(self._answer_fd)
        self._answer_fd = -1
        if self.errand.asked_again() and not stopping:
            self.ask()
        return plan


def _refuse(why: str) -> None:
    log.say("reload_refused", logging.ERROR, f"{why}\nthe old settings stay in force", reason=why)
