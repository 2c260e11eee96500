"""`redcap-sync check`: a line for each thing that must be right before a service can run. Runs in a child.

A job looks at its own things: its `check(state_dir)` yields lines of the same shape.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from typing import Any

from supervisor import cgroup, config, failure, target, terminal
from supervisor.plan import default_state_dir
from supervisor.settings import Job, Reading, environment, read

Line = dict[str, str]  # name, mark, found, remedy, code

_MARKS = {"ok": ("✓", "32"), "note": ("!", "33"), "fault": ("✗", "31"), "skipped": ("-", "2")}
_NAME_COLUMNS = 16
DISK_LOW_BYTES = 200_000_000
DISK_NOTE_BYTES = 2_000_000_000
PARENT_BYTES = 25_000_000  # what the supervisor itself holds, with room
UNITS = "redcap-sync*.service"
_SPAN_S = {"d": 86_400, "h": 3_600, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6}


def line(name: str, mark: str, found: str, remedy: str = "", code: str = "") -> Line:
    """Return a line; `mark` is ok, note (works, but look at it), fault or skipped."""
    return {"name": name, "mark": mark, "found": found, "remedy": remedy, "code": code}


def show(env_file: str | None, *, as_json: bool, look: dict[str, Any]) -> dict[str, Any]:
    """Do `redcap-sync check`: print each line as it is found, and return the exit code."""
    seen = read(env_file)
    found = []
    for one in _lines(seen):
        found.append(one)
        if not as_json:
            print(_printed(one, look), flush=True)
    bad = sum(one["mark"] == "fault" for one in found)
    if as_json:
        print(json.dumps({"ok": not bad, "checks": found}, indent=1, ensure_ascii=False))
    elif bad:
        print(f"\n{bad} of {len(found)} at fault")
    return {"exit": 78 if seen.faults else int(bad > 0)}


def _printed(one: Line, look: dict[str, Any]) -> str:
    mark, color = _MARKS.get(one["mark"], ("?", "0"))
    text = one["found"] + (f" ({one['code']})" if one["code"] else "")
    parts = [text, *([f"→ {one['remedy']}"] if one["remedy"] else [])]
    width = max(30, look["columns"] - _NAME_COLUMNS - 3)
    rows = [row for part in parts for row in textwrap.wrap(terminal.plain(part), width, break_on_hyphens=False)]
    margin = " " * (_NAME_COLUMNS + 2)
    head = f"{mark} {terminal.plain(one['name']):<{_NAME_COLUMNS}}"
    if look["color"]:
        head = f"\x1b[{color}m{head}\x1b[0m"
    return head + f"\n{margin}".join(rows)


def _lines(seen: Reading) -> Iterator[Line]:
    for fault in seen.faults:
        source = seen.source(fault["variable"].partition(" ")[0])
        remedy = (
            f"it is set by {source}: correct it there" if source else "set it (`redcap-sync config --example` has all)"
        )
        yield line("settings", "fault", f"{fault['variable']}: {fault['message']}", remedy, "ConfigInvalid")
    if seen.settings and not seen.faults:
        yield _settings(seen)
    for name, near in seen.misspelt():
        if near:
            yield line("settings", "note", f"{name} is set and is no setting", f"did you mean {near}?")
    given = seen.settings.state_dir if seen.settings else os.environ.get("SUPERVISOR_STATE_DIR")
    state_dir = str(given or default_state_dir())
    yield _state_dir(state_dir)
    yield _disk(state_dir)
    if seen.settings:
        ceilings = sorted((int(job.settings.rss_ceiling) for job in seen.jobs), reverse=True)
        at_once = ceilings[: seen.settings.max_workers] or [int(seen.settings.rss_ceiling)]
        yield _memory(sum(at_once))
        yield from _init(max([job.settings.grace for job in seen.jobs] or [seen.settings.grace]), at_once)
    if seen.faults:
        yield line("job", "skipped", "not looked at before the settings are right")
        return
    for job in seen.jobs:
        yield from _of_job(job, state_dir, named=len(seen.jobs) > 1)


def _settings(seen: Reading) -> Line:
    sources = [row["source"] for row in config.rows(seen) if row["source"] != "default"]
    by_source = ", ".join(f"{sources.count(one)} by {one}" for one in dict.fromkeys(sources))
    jobs = "" if len(seen.jobs) == 1 else f" for {len(seen.jobs)} jobs"
    return line("settings", "ok", f"valid{jobs}: {by_source or 'all of them defaults'}")


def _of_job(job: Job, state_dir: str, *, named: bool) -> Iterator[Line]:
    prefix = f"{job.name}: " if named else ""
    try:
        found = target.find(job.settings.job)
    except (Exception, SystemExit) as error:
        seen = failure.describe(error)
        text = f"{job.settings.job} can't be imported: {seen['type']}: {seen['message']}"
        yield line(prefix + "job", "fault", text, "name module:callable, importable from here", "JobError")
        return
    yield line(prefix + "job", "ok", f"{job.settings.job} can be imported")
    try:
        with environment(job.env):
            ask = getattr(found, "check", None)
            for one in ask(state_dir) if ask else ():
                yield line(**{**one, "name": prefix + str(one["name"])})
    except (Exception, SystemExit) as error:
        seen = failure.describe(error)
        yield line(
            prefix + "check",
            "fault",
            f"the job's own check failed: {seen['type']}: {seen['message']}",
            "mend it",
            "JobError",
        )


def _existing(path: str) -> str:
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _state_dir(path: str) -> Line:
    there = _existing(path)
    name = "state directory"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        found = f"{path} can't be used: {there} takes no file of ours ({error.strerror})"
        return line(name, "fault", found, "set SUPERVISOR_STATE_DIR, or give us that folder", "StateDirUnusable")
    if there != os.path.abspath(path):
        return line(name, "ok", f"{path}, made at the first start")
    about = os.stat(there)
    if about.st_uid != os.geteuid():
        found = f"{path} belongs to user {about.st_uid}, and we are user {os.geteuid()}"
        return line(name, "note", found, "run this as the service's own user to see what it sees")
    if about.st_mode & 0o077:
        found = f"{path} is open to other users (mode {about.st_mode & 0o777:o}); the files in it are not"
        return line(name, "note", found, f"chmod 700 {path}")
    unwritable = [one for one in sorted(os.listdir(there)) if not os.access(os.path.join(there, one), os.W_OK)]
    if unwritable:
        found = f"{path} has files that we may not write to: {', '.join(unwritable[:5])}"
        return line(name, "fault", found, "give them to the service's user (chown)", "StateDirUnusable")
    return line(name, "ok", path)


def _disk(path: str) -> Line:
    room = shutil.disk_usage(_existing(path)).free
    found = f"{room / 1e9:,.1f} GB are free where the state directory is"
    if room < DISK_LOW_BYTES:
        return line("disk", "fault", found, "free some, or move SUPERVISOR_STATE_DIR", "DiskLow")
    if room < DISK_NOTE_BYTES:
        return line("disk", "note", found, "a project of 100,000 records of 600 fields needs some 3 GB")
    return line("disk", "ok", found)


def _memory(allowed_bytes: int) -> Line:
    """Compare what the ceilings of all that may run at once allow with what there is."""
    needed = allowed_bytes + PARENT_BYTES
    try:
        total, free = _meminfo("MemTotal"), _meminfo("MemAvailable")
    except FileNotFoundError:  # systemd's ProcSubset=pid hides it
        total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, where = cgroup.memory_limit()
    found = f"the ceilings allow {terminal.mb(allowed_bytes)} at once, the machine has {terminal.mb(total)}"
    most = total
    if limit is not None and limit < total:
        found += f", its control group {terminal.mb(limit)} ({where})"
        most = limit
    if needed > most:
        remedy = "lower SUPERVISOR_RSS_CEILING or SUPERVISOR_MAX_WORKERS, or give it more memory"
        return line("memory", "fault", found, remedy, "CeilingAboveLimit")
    if needed > free:
        return line("memory", "note", f"{found}, and {terminal.mb(free)} of it are free now", "see what else runs here")
    return line("memory", "ok", found)


def _meminfo(name: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        (value,) = [one.split()[1] for one in file if one.startswith(f"{name}:")]
    return int(value) * 1024


def _init(grace_s: float, ceilings: list[int]) -> Iterator[Line]:
    """Look at what would end a service, or its worker, over our heads."""
    if cgroup.ends_whole_group():
        found = "the kernel ends all of our control group together (memory.oom.group is 1)"
        yield line("init system", "fault", found, "set it to 0 (systemd: OOMPolicy=continue)", "InitDefeats")
    if hidden := _hidden_processes():
        found = f"/proc hides processes here ({hidden}), so that the ceiling does not see what a worker starts"
        yield line(
            "init system",
            "fault",
            found,
            "set ProtectProc=default in the unit, or mount /proc without hidepid",
            "InitDefeats",
        )
    # The soft limit of data is the backstop of this very child.
    limits = {"RLIMIT_AS": resource.getrlimit(resource.RLIMIT_AS)[0]}
    limits["RLIMIT_DATA"] = resource.getrlimit(resource.RLIMIT_DATA)[1]
    for name, limit in limits.items():
        if limit != resource.RLIM_INFINITY and ceilings and limit < ceilings[0]:
            found = f"{name} is {terminal.mb(limit)} here, below the ceiling: a worker gets a MemoryError before it"
            yield line("limits", "note", found, "raise it (ulimit -v, -d), or lower SUPERVISOR_RSS_CEILING")
    units = _units()
    if not units:
        yield line("init system", "ok", f"no unit {UNITS} that systemd would know of")
    for unit in units:
        properties = _properties(unit)
        problems = list(_problems(properties, grace_s, sum(ceilings)))
        if "KillMode" not in properties:
            yield line("init system", "note", f"systemctl does not tell of {unit}", "run this where it does")
        elif problems:
            found = f"{unit} has {', '.join(one for one, _ in problems)}"
            yield line("init system", "fault", found, "; ".join(remedy for _, remedy in problems), "InitDefeats")
        else:
            yield line("init system", "ok", f"{unit} lets a worker be ended alone, and drain")


def _hidden_processes() -> str:
    """Return the option of /proc's mount that hides processes from those that may not trace them; empty for none."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        options = [one.rpartition(" ")[2].strip() for one in file if one.split()[4] == "/proc"]
    found = re.search(r"hidepid=(?!0|off)\w+", options[-1] if options else "")
    return found[0] if found else ""


def _problems(unit: dict[str, str], grace_s: float, allowed_bytes: int) -> Iterator[tuple[str, str]]:
    memory = unit.get("MemoryMax", "")
    if memory.isdecimal() and int(memory) < allowed_bytes + PARENT_BYTES:
        found = f"MemoryMax={terminal.mb(int(memory))}, and the ceilings allow {terminal.mb(allowed_bytes)} at once"
        yield found, "lower SUPERVISOR_RSS_CEILING, or raise MemoryMax"
    if unit.get("ProtectProc") in ("invisible", "noaccess", "ptraceable"):
        found = f"ProtectProc={unit['ProtectProc']}, so that the ceiling does not see what a worker starts"
        yield found, "set ProtectProc=default"
    policy, mode, stop = (unit.get(name, "") for name in ("OOMPolicy", "KillMode", "TimeoutStopUSec"))
    if policy in ("stop", "kill"):
        yield f"OOMPolicy={policy}, so that the whole service ends with a worker", "set OOMPolicy=continue"
    if mode == "control-group":
        yield "KillMode=control-group, so that a stop ends the worker before it is done", "set KillMode=mixed"
    if mode in ("process", "none"):
        yield f"KillMode={mode}, so that processes outlive the service", "set KillMode=mixed"
    stop_s = sum(float(n) * _SPAN_S[u] for n, u in re.findall(r"([\d.]+)(d|h|min|ms|us|s)\b", stop))
    if stop and stop != "infinity" and stop_s <= 2 * grace_s:  # the drain has one, and a job that gets SIGTERM another
        found = f"TimeoutStopSec={stop}, not above twice the grace of {grace_s:g} s"
        yield found, f"set TimeoutStopSec={2 * grace_s + 15:.0f}"


def _units() -> list[str]:
    """Return the unit that started us, and those under our name that systemd knows of."""
    # Without INVOCATION_ID (systemd.exec(5)) the service above us is another's: a container engine's, sshd's.
    own = [one for one in cgroup.path_parts() if one.endswith(".service")] if "INVOCATION_ID" in os.environ else []
    said = _systemctl("list-units", "--all", "--plain", "--no-legend", UNITS)
    return list(dict.fromkeys([*own[-1:], *(one.split()[0] for one in said.splitlines() if one.strip())]))


def _properties(unit: str) -> dict[str, str]:
    said = _systemctl("show", unit, "--property=OOMPolicy,KillMode,TimeoutStopUSec,MemoryMax,ProtectProc")
    return dict(one.split("=", 1) for one in said.splitlines() if "=" in one)


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no systemd here, or none that answers
    return done.stdout if done.returncode == 0 else ""
