"""What can go wrong, by stable code: what it means and what to do. Imported in children only.

A code is what a report's `error.type` says, or a line of `check` or `status`. A job brings its own
catalogue along as `job.errors`, a dict of the same shape.
"""

import builtins
import difflib
from collections.abc import Iterable
from typing import Any

from supervisor import target

CATALOGUE: dict[str, tuple[str, str]] = {
    "ConfigInvalid": (
        "A setting is malformed or missing (exit code 78).",
        "Mend the variables that are listed; `redcap-sync config` shows where each value comes from.",
    ),
    "StateDirHeld": (
        "Another instance holds the state directory (exit code 75).",
        "Stop the instance whose pid is named, or give this one a `SUPERVISOR_STATE_DIR` of its own.",
    ),
    "BreakerOpen": (
        "`SUPERVISOR_MAX_FAILURES` cycles failed in a row, and the service gave up (exit code 70).",
        "Mend what the last reports say, then start it again.",
    ),
    "CeilingExceeded": (
        "The worker's process tree grew above the ceiling and was ended.",
        "The traceback names the line that was running: let it need less, or raise `SUPERVISOR_RSS_CEILING`.",
    ),
    "CycleTimeout": (
        "The cycle was not done within its time limit and was ended.",
        "The traceback names the line that was running: let it need less time, or raise `SUPERVISOR_CYCLE_TIMEOUT`.",
    ),
    "Stopped": (
        "The service was told to stop, and the cycle was not done within the grace.",
        "Nothing: the next cycle does the rest. If it happens often, raise `SUPERVISOR_GRACE`.",
    ),
    "KilledByKernel": (
        "The kernel's OOM killer ended the worker: its control group held too much.",
        "Lower `SUPERVISOR_RSS_CEILING` below the group's limit, or give the group more memory.",
    ),
    "WorkerDied": (
        "The worker's process ended without a result: by a signal, or by `os._exit`.",
        "The message and the traceback say how: look for a crashing C extension, and in the kernel's log for who sent a signal.",
    ),
    "ProtocolError": (
        "The worker sent what is no message, or closed its channel.",
        "The job must not write to, or close, descriptors that it did not open.",
    ),
    "JobError": (
        "`SUPERVISOR_JOB` names what is not there, or no callable.",
        "Name `module:callable`; the module must be importable where the service runs (`PYTHONPATH`, or installed beside it).",
    ),
    "SummaryError": (
        "The job returned what is no summary.",
        "Return None, or a dict of JSON values that has at most 64 KiB.",
    ),
    "MemoryError": (
        "The kernel refused an allocation at the backstop above the ceiling.",
        "The traceback names the line: let it need less, or raise `SUPERVISOR_RSS_CEILING`.",
    ),
    "NoWorker": (
        "The supervisor could not start a process.",
        "Raise the limit on processes (`ulimit -u`, systemd's `TasksMax`), or free memory; it is tried again.",
    ),
    "StateDirUnusable": (
        "The state directory, or a file in it, can't be written.",
        "Look at who owns it, at its mode, and at the room on its disk.",
    ),
    "StateDirLost": (
        "The state directory was removed or replaced while the service ran, which ended then (exit code 75).",
        "Start it again: it makes the directory anew. With the default SQLite file in it, the next cycle reads everything.",
    ),
    "MetricsFailed": (
        "`SUPERVISOR_METRICS_FILE` could not be written; the cycle is not touched by that.",
        "See that its folder is there and ours, and that a job's `metrics` do not clash with others.",
    ),
    "DiskLow": (
        "There is little room on the disk of the state directory.",
        "Free some, or set `SUPERVISOR_STATE_DIR` and `SYNC_SINK` to another disk.",
    ),
    "CeilingAboveLimit": (
        "The ceiling allows more than the machine or the control group has, so that the kernel would end the worker first.",
        "Lower `SUPERVISOR_RSS_CEILING` or `SUPERVISOR_MAX_WORKERS`, or give the service more memory.",
    ),
    "InitDefeats": (
        "The init system would end the service together with a worker, or a worker before its time.",
        "In the unit, set `OOMPolicy=continue`, `KillMode=mixed`, and a `TimeoutStopSec` above twice `SUPERVISOR_GRACE`.",
    ),
    "NotRunning": (
        "No instance holds the state directory.",
        "Start the service; if it ended by itself, its log says why.",
    ),
    "LastCycleBad": (
        "A job's last cycle was not ok.",
        "Look up the code that its report names with `redcap-sync explain`.",
    ),
    "CycleOverdue": (
        "A cycle runs longer than its time limit and the grace.",
        "A worker that SIGKILL does not end hangs in the kernel, as on a dead network disk: look there.",
    ),
    "TickOverdue": (
        "A cycle is due and was not started.",
        "See whether the supervisor is stopped or starved; SIGUSR2 makes it log what it sees.",
    ),
}


OF_A_JOB = (
    "Look at the message and the traceback of the report; a library's own exceptions are explained by the library."
)


def catalogue(targets: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the supervisor's codes and those that these jobs bring along."""
    known = dict(CATALOGUE)
    for one in targets:
        known |= target.attribute(one, "errors", {})
    return known


def explain(env_file: str | None, code: str | None) -> dict[str, Any]:
    """Do `redcap-sync explain`: print, and return the exit code. Other settings that are wrong are no hindrance."""
    from supervisor import settings  # noqa: PLC0415 - who asks for the catalogue alone needs no pydantic

    seen = settings.read(env_file)
    if lost := [one for one in seen.faults if one["variable"] == "--env-file"]:
        return {"faults": lost}
    known = catalogue([one.settings.job for one in seen.jobs] or [settings.Settings.model_fields["job"].default])
    if code is None:
        width = max(map(len, known))
        print("\n".join(f"{one:<{width}}  {meaning}" for one, (meaning, _) in known.items()))
        return {"exit": 0}
    by_name = {one.lower(): one for one in known} | {"70": "BreakerOpen", "75": "StateDirHeld", "78": "ConfigInvalid"}
    found = by_name.get(code.lower())
    if found is None:
        if isinstance(kind := getattr(builtins, code, None), type) and issubclass(kind, BaseException):
            print(f"{code}: an exception of Python's own, raised by the job.\nWhat to do: {OF_A_JOB}")
            return {"exit": 0}
        near = difflib.get_close_matches(code.lower(), by_name, 1)
        hint = f"did you mean {by_name[near[0]]}?" if near else "`redcap-sync explain` lists all; is it the job's own?"
        print(f"redcap-sync: no error has the code {code!r}: {hint}")
        return {"exit": 2}
    print(f"{found}: {known[found][0]}\nWhat to do: {known[found][1]}")
    return {"exit": 0}
