"""The settings as the parent gets them: read in a worker, answered as a plan or as faults."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from supervisor.clock import Clock
from supervisor.plan import JobPlan, Plan, from_message
from supervisor.run import Run
from supervisor.verdict import judge
from supervisor.wait import call

# Reading the settings imports the job, to ask it for its own: what that needs, not more.
JOB = JobPlan(name="settings", target="supervisor.settings:load", rss_ceiling_bytes=10**9, cycle_timeout_s=120.0)

COMMAND_TIMEOUT_S = 600.0
ANSWER_MAX_BYTES = 32_000_000  # of 10,000 jobs; the parent reads it


class ConfigError(Exception):
    """The configuration is invalid; the text lists every fault by variable."""


def load(env_file: str | None) -> Plan:
    """Have the settings read and checked in a child. Raises ConfigError."""
    with answer_file() as fd:
        return answered(call(JOB, {"env_file": env_file}, Clock(), result_fd=fd), fd)


@contextmanager
def answer_file() -> Iterator[int]:
    """Yield the descriptor of an unnamed file for an answer of any size."""
    fd = os.memfd_create("answer", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def answered(run: Run, answer_fd: int) -> Plan:
    """Return the plan that a worker of `JOB` answered. Raises ConfigError."""
    return from_message(_answer(run, "the settings could not be read", answer_fd)["plan"])


def command(target: str, arguments: dict[str, Any]) -> int:
    """Have a short command done in a child, which prints what it finds as it goes; return its exit code.

    Raises ConfigError, also where the child did not come to its end.
    """
    job = JobPlan(name="command", target=target, rss_ceiling_bytes=2 * 10**9, cycle_timeout_s=COMMAND_TIMEOUT_S)
    run = call(job, arguments, Clock(), sys.stdout)
    return int(_answer(run, f"{target} did not come to its end")["exit"])


def _answer(run: Run, failed: str, answer_fd: int = -1) -> dict[str, Any]:
    outcome, error = judge(run.evidence)
    if outcome != "ok" or run.evidence.result is None:
        seen = error or {"type": outcome, "message": "", "traceback": ""}
        raise ConfigError(f"redcap-sync: {failed}: {seen['type']}: {seen['message']}\n{seen['traceback']}")
    answer: dict[str, Any] = run.evidence.result["summary"]
    if answer_fd >= 0:
        if os.fstat(answer_fd).st_size > ANSWER_MAX_BYTES:
            raise ConfigError(f"redcap-sync: {failed}: the answer has more than {ANSWER_MAX_BYTES:,} bytes")
        answer = json.loads(os.pread(answer_fd, os.fstat(answer_fd).st_size, 0))
    if "faults" in answer:
        raise ConfigError(listed([(fault["variable"], fault["message"]) for fault in answer["faults"]]))
    return answer


def listed(faults: list[tuple[str, str]]) -> str:
    """Return the faults as a text of a line each."""
    lines = [f"  {variable}: {message}" for variable, message in faults]
    return "\n".join(["redcap-sync: the configuration is invalid (redcap-sync explain ConfigInvalid):", *lines])
