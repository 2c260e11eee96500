"""SIGHUP: the settings read again, in a worker like any other, while the loop goes on."""

import logging

from supervisor import configure, log
from supervisor.clock import Clock
from supervisor.life import State
from supervisor.output import Lines
from supervisor.plan import Plan
from supervisor.process import Worker
from supervisor.run import begin


class Reload:
    """Has at most one worker that reads; what is asked for meanwhile is done behind it."""

    def __init__(self, env_file: str | None, clock: Clock) -> None:
        self.worker: Worker | None = None
        self._env_file = env_file
        self._clock = clock
        self._again = False

    def ask(self) -> None:
        """Start to read."""
        if self.worker:
            self._again = True
            return
        log.say("reloading", text="reading the settings again")
        try:
            self.worker = Worker(configure.JOB, "", self._clock, on_output=Lines("settings").feed)
        except OSError as error:
            _refuse(f"no process could be started ({error})")
            return
        self.worker.assign(begin(configure.JOB, self._clock, arguments={"env_file": self._env_file}))

    def take(self, old: Plan) -> Plan | None:
        """Return the plan that is in force when the reading is over: the new one, or `old`.

        None while there is nothing to take. A configuration that is invalid is refused, and why
        is in the log.
        """
        if self.worker is None or self.worker.state is not State.GONE:
            return None
        (run,) = self.worker.ended
        self.worker = None
        plan = old
        try:
            plan = configure.answered(run)
            if plan.state_dir != old.state_dir:
                _refuse("SUPERVISOR_STATE_DIR can't change while the service runs: restart it")
                plan = old
        except configure.ConfigError as error:
            _refuse(str(error))
        if self._again:
            self._again = False
            self.ask()
        return plan


def _refuse(why: str) -> None:
    log.say("reload_refused", logging.ERROR, f"{why}\nthe old settings stay in force", reason=why)
