"""The supervisor's side of SUPERVISOR_METRICS_FILE: after each cycle a worker writes it anew."""

import json
import logging
import os

from supervisor import log
from supervisor.clock import Clock
from supervisor.errand import Errand
from supervisor.plan import JobPlan, Plan
from supervisor.verdict import judge

JOB = JobPlan(
    name="metrics",
    target="supervisor.metrics:write",
    rss_ceiling_bytes=500_000_000,
    cycle_timeout_s=30.0,  # the first one reads the whole journal
    grace_s=5.0,
)


class Exporter:
    """Has the metrics written where a file for them is set."""

    def __init__(self, clock: Clock) -> None:
        self.errand = Errand(JOB, clock)
        self._told: Plan | None = None
        self._fd = -1  # what the child must know of that plan: of many jobs, more than goes through a packet

    def ask(self, plan: Plan) -> None:
        """Start to write what the journal tells by now."""
        if not plan.metrics_file:
            return
        try:
            if plan is not self._told:
                self._tell(plan)
            self.errand.ask({"path": plan.metrics_file, "state_dir": plan.state_dir}, self._fd)
        except OSError as error:
            _failed(plan, f"no process could be started ({error})")

    def _tell(self, plan: Plan) -> None:
        about = ("name", "target", "interval_s", "rss_ceiling_bytes")
        jobs = [{name: getattr(job, name) for name in about} for job in plan.jobs]
        fd = os.memfd_create("metrics", os.MFD_CLOEXEC)
        with os.fdopen(fd, "w", encoding="utf-8", closefd=False) as file:
            json.dump({"jobs": jobs, "metrics": dict(plan.metrics)}, file)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._told = fd, plan

    def take(self, plan: Plan) -> None:
        """See how the writing ended, and write once more where a cycle has ended meanwhile."""
        run = self.errand.take()
        if run is None:
            return
        _, error = judge(run.evidence)
        if error:
            _failed(plan, f"{error['type']}: {error['message']}")
        if self.errand.asked_again():
            self.ask(plan)


def _failed(plan: Plan, why: str) -> None:
    text = f"{plan.metrics_file} can't be written: {why}"
    log.say("metrics", logging.ERROR, text, code="MetricsFailed", error=why, file=plan.metrics_file)
