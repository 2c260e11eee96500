"""The supervisor's side of SUPERVISOR_METRICS_FILE: after each cycle a worker writes it anew."""

import logging

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

    def ask(self, plan: Plan) -> None:
        """Start to write what the journal tells by now."""
        if not plan.metrics_file:
            return
        jobs = [
            {
                "name": job.name,
                "interval_s": job.interval_s,
                "rss_ceiling_bytes": job.rss_ceiling_bytes,
                "metrics": dict(job.metrics),
            }
            for job in plan.jobs
        ]
        try:
            self.errand.ask({"path": plan.metrics_file, "state_dir": plan.state_dir, "jobs": jobs})
        except OSError as error:
            _failed(plan, f"no process could be started ({error})")

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
