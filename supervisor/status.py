"""`redcap-sync status`: is the service alive, what runs now, how the last cycles went.

Reads what the service keeps in the state directory, and /proc; needs no settings but that folder, so
that it is quick and also tells of a service whose settings are wrong by now.
"""

import argparse
import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from supervisor import envfile, lock, state, terminal, tree
from supervisor.clock import Clock, rfc3339
from supervisor.history import YEARS, Count, Error, History, Outcome, Report, Seconds, Size, Time, at_once
from supervisor.plan import default_state_dir

HEALTHY, DEGRADED, NOT_RUNNING, EX_CONFIG = 0, 1, 3, 78
TAIL_BYTES = 1_000_000
SHOWN_CYCLES = 10
LATE_S = 120.0  # a tick that is due and was not started; the supervisor wakes once a minute at least
BAR_CELLS = 16
WATCH_EVERY_S = 1.0
STATE_MAX_BYTES = 10_000_000


class Last(msgspec.Struct, frozen=True):
    """How a job's last cycle ended."""

    outcome: Outcome
    ended_at: Time
    code: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """What the running cycle said last."""

    done: int | None = None
    total: int | None = None
    unit: str | None = None


class Job(msgspec.Struct, frozen=True):
    """One job as the service last told of it; `_s` are seconds of CLOCK_BOOTTIME."""

    job: str
    cycle: Count
    rss_ceiling_bytes: Size
    due_s: Seconds | None = None
    worker_pid: Count | None = None
    worker_state: str | None = None
    started_s: Seconds | None = None
    overdue_s: Seconds | None = None
    progress: Progress | None = None
    last: Last | None = None


class State(msgspec.Struct, frozen=True):
    """`state.json`."""

    pid: Count
    once: bool
    started_at: Time
    stopping: bool
    max_workers: Count
    jobs: list[Job]


def main(arguments: argparse.Namespace) -> int:
    """Do `redcap-sync status`; return its exit code."""
    try:
        variables = {**envfile.overlay(arguments.env_file), **os.environ}
    except (OSError, ValueError) as error:
        print(f"redcap-sync: --env-file: {arguments.env_file} can't be read: {error}", file=sys.stderr)
        return EX_CONFIG
    state_dir = variables.get("SUPERVISOR_STATE_DIR") or default_state_dir()
    if state_dir.startswith(("~", "$")):
        print(f"redcap-sync: SUPERVISOR_STATE_DIR: {state_dir} begins with what only a shell expands", file=sys.stderr)
        return EX_CONFIG
    try:
        if not arguments.watch or arguments.as_json or not sys.stdout.isatty():
            seen = look(state_dir)
            if arguments.as_json:
                print(json.dumps(seen, indent=1, ensure_ascii=False))
            else:
                terminal.show(_page(seen), terminal.look())
            return HEALTHY if arguments.alive and seen["exit"] == DEGRADED else int(seen["exit"])
        return _watch(state_dir)
    except OSError as error:
        print(f"redcap-sync: SUPERVISOR_STATE_DIR: {state_dir} can't be read: {error}", file=sys.stderr)
        return EX_CONFIG


def look(state_dir: str) -> dict[str, Any]:
    """Return all that `--json` prints. Raises OSError when the state directory can't be read."""
    pid = lock.holder(state_dir)
    left = _state(state_dir, None) if pid is None else None
    in_flight = [f"{one.job} #{one.cycle}" for one in left.jobs if one.started_s is not None] if left else []
    now_s = Clock().now_s()
    history = History(state_dir, last_bytes=TAIL_BYTES)
    cycles = list(history)
    found = _state(state_dir, pid) if pid is not None else None
    jobs = [_job(one, now_s, cycles) for one in found.jobs] if found else []
    reasons = []
    if pid is None:
        text = f"no instance holds {state_dir}; if the service has another SUPERVISOR_STATE_DIR, give this command the same"
        reasons.append({"code": "NotRunning", "text": text})
        if left and in_flight:
            text = f"pid {left.pid} ended without a word, in the middle of {', '.join(in_flight)}: the next cycle does the rest"
            reasons.append({"code": "NotRunning", "text": text})
    elif found is None:
        text = f"pid {pid} holds {state_dir}, and has not written down there what it does"
        reasons.append({"code": "StateDirUnusable", "text": text})
    else:
        reasons += [reason for job in jobs for reason in job.pop("reasons")]
    exit_code = NOT_RUNNING if pid is None else DEGRADED if reasons else HEALTHY
    return {
        "state": {HEALTHY: "healthy", DEGRADED: "degraded", NOT_RUNNING: "not running"}[exit_code],
        "exit": exit_code,
        "reasons": reasons,
        "pid": pid,
        "started_at": rfc3339(found.started_at) if found else None,
        "stopping": found.stopping if found else False,
        "supervisor_rss_bytes": tree.rss_bytes(pid) if pid else None,
        "state_dir": state_dir,
        "jobs": jobs,
        "last_cycles": [_shown(one) for one in reversed(cycles[-SHOWN_CYCLES:])],
        "journal": history.said() and f"{history.said()}, of its last {TAIL_BYTES // 1_000_000} MB",
    }


def _state(state_dir: str, pid: int | None) -> State | None:
    """Return what the instance has written, or for no pid what the last one left; None when it is another's, or no such thing."""
    try:
        with open(os.path.join(state_dir, state.NAME), "rb", buffering=0, opener=at_once) as file:
            found = msgspec.json.decode(file.read(STATE_MAX_BYTES) or b"", type=State)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    times = [found.started_at, *(one.last.ended_at for one in found.jobs if one.last)]
    sound = all(YEARS[0] <= moment.year <= YEARS[1] for moment in times)
    return found if sound and pid in (found.pid, 0, None) else None


def _job(one: Job, now_s: float, cycles: list[Report]) -> dict[str, Any]:
    running = one.started_s is not None
    of_job = [cycle for cycle in cycles if cycle.job == one.job]
    last = one.last
    if last is None and of_job:
        before = of_job[-1]
        ended = before.started_at + timedelta(seconds=before.duration_s)
        last = Last(before.outcome, ended, before.error.type if before.error else None)
    good = next((cycle for cycle in reversed(of_job) if cycle.outcome == "ok"), None)
    reasons = []
    if last and last.outcome not in ("ok", "stopped"):
        text = f"{one.job}: the last cycle ended as {last.outcome}" + (f" ({last.code})" if last.code else "")
        reasons.append({"code": last.code or "LastCycleBad", "text": text})
    if one.overdue_s is not None and now_s > one.overdue_s + LATE_S:
        text = f"{one.job}: the cycle is {now_s - one.overdue_s:.0f} s over its limit and grace"
        reasons.append({"code": "CycleOverdue", "text": text})
    if one.due_s is not None and not running and now_s > one.due_s + LATE_S:
        text = f"{one.job}: a cycle is due for {now_s - one.due_s:.0f} s and was not started"
        reasons.append({"code": "TickOverdue", "text": text})
    return {
        "job": one.job,
        "running": running,
        "cycle": one.cycle,
        "running_s": round(now_s - one.started_s, 1) if one.started_s is not None else None,
        "progress": msgspec.to_builtins(one.progress) if running else None,
        "worker_pid": one.worker_pid,
        "worker_rss_bytes": tree.tree_rss_bytes(one.worker_pid) if one.worker_pid else None,
        "rss_ceiling_bytes": one.rss_ceiling_bytes,
        "next_at": _at(one.due_s, now_s),
        "last_outcome": last.outcome if last else None,
        "last_ok_at": rfc3339(good.started_at) if good else None,
        "reasons": reasons,
    }


def _at(due_s: float | None, now_s: float) -> str | None:
    return None if due_s is None else rfc3339(datetime.now(UTC) + timedelta(seconds=due_s - now_s))


def _shown(one: Report) -> dict[str, Any]:
    error = one.error or Error("")
    return {
        "job": one.job,
        "cycle": one.cycle,
        "started_at": rfc3339(one.started_at),
        "outcome": one.outcome,
        "duration_s": one.duration_s,
        "worker_peak_rss_bytes": one.worker_peak_rss_bytes,
        "rss_ceiling_bytes": one.rss_ceiling_bytes,
        "code": error.type or None,
        "message": error.message or None,
    }


def _watch(state_dir: str) -> int:
    from rich.console import Console  # noqa: PLC0415 - a health check has no use for it
    from rich.live import Live  # noqa: PLC0415

    # Not by KeyboardInterrupt, which is lost where it comes in the middle of a finalizer.
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    seen = look(state_dir)
    with Live(_page(seen), console=Console(highlight=False), auto_refresh=False) as live:
        while not stop.wait(WATCH_EVERY_S):
            seen = look(state_dir)
            live.update(_page(seen), refresh=True)
    return int(seen["exit"])


def _page(seen: dict[str, Any]) -> Any:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    color = {HEALTHY: "green", DEGRADED: "yellow", NOT_RUNNING: "red"}[seen["exit"]]
    head = Text(f"redcap-sync is {seen['state']}", f"bold {color}")
    if seen["pid"]:
        since = f", running since {_local(seen['started_at'])}" if seen["started_at"] else ""
        head.append(f"{since}, pid {seen['pid']}, {terminal.mb(seen['supervisor_rss_bytes'] or 0)}", "not bold default")
    if seen["stopping"]:
        head.append(", stopping", "not bold default")
    parts: list[Any] = [head]
    for reason in seen["reasons"]:
        more = "" if seen["exit"] == NOT_RUNNING else f"; redcap-sync explain {reason['code']}"
        parts.append(Text(f"  {terminal.plain(reason['text'])}{terminal.plain(more)}", color))
    if seen["jobs"]:
        now = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("job", "now", "memory", "next"):
            now.add_column(heading)
        for job in seen["jobs"]:
            now.add_row(*(Text(terminal.plain(cell)) for cell in (job["job"], _doing(job), _memory(job), _next(job))))
        parts += ["", now]
    if seen["last_cycles"]:
        cycles = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("last cycles", "job", "outcome", "took", "peak", ""):
            cycles.add_column(heading, justify="right" if heading in ("took", "peak") else "left", overflow="fold")
        for one in seen["last_cycles"]:
            style = {"ok": "green", "stopped": ""}.get(one["outcome"], "red")
            cycles.add_row(
                Text(_local(one["started_at"])),
                Text(terminal.plain(one["job"])),
                Text(one["outcome"], style),
                Text(f"{one['duration_s']:.1f} s"),
                Text(terminal.mb(one["worker_peak_rss_bytes"])),
                Text(terminal.plain(one["code"] or "")),
            )
        parts += ["", cycles]
    if seen["journal"]:
        parts.append(Text(seen["journal"], "yellow"))
    return Group(*parts)


def _doing(job: dict[str, Any]) -> str:
    if not job["running"]:
        return f"waits, after cycle {job['cycle']}" if job["cycle"] else "waits for its first cycle"
    said = job["progress"] or {}
    text = f"cycle {job['cycle']} for {job['running_s']:.0f} s"
    if said.get("done") is not None:
        total = f" of {said['total']:,}" if said.get("total") else ""
        text += f": {said['done']:,}{total} {said.get('unit') or ''}"
    return text


def _memory(job: dict[str, Any]) -> str:
    held, ceiling = job["worker_rss_bytes"], job["rss_ceiling_bytes"]
    if held is None:
        return "no worker"
    return f"{terminal.bar(held, ceiling, BAR_CELLS)} {terminal.mb(held)} of {terminal.mb(ceiling)}"


def _next(job: dict[str, Any]) -> str:
    if job["next_at"] is None:
        return "after this one"
    return _local(job["next_at"])


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
