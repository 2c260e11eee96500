"""The report of a cycle: one dict, one line in the journal, one line in the log."""

import errno
import json
import logging
import os
import stat
import textwrap
from typing import Any

from supervisor import log, terminal, tree
from supervisor.clock import rfc3339
from supervisor.plan import JobPlan
from supervisor.run import Run
from supervisor.verdict import judge, signal_name

Report = dict[str, Any]

JOURNAL = "cycles.jsonl"
BEFORE = ".1"  # what it is called when a new one was begun
JOURNAL_MAX_BYTES = 64_000_000  # some three years of half hours
LOG_PREFIX_COLUMNS = 10  # the time that stands before each line
NEW_LINE = "\n" + " " * LOG_PREFIX_COLUMNS


def build(
    run: Run, job: JobPlan, *, kept_rss_bytes: int = 0, missed_ticks: int = 0, next_at: str | None = None
) -> Report:
    """Return the report of a cycle that is over, with the keys of the README's table."""
    seen = run.evidence
    outcome, error = judge(seen)
    own_rss_bytes = tree.rss_bytes(os.getpid())
    code = None if seen.wait_status is None else os.waitstatus_to_exitcode(seen.wait_status)
    return {
        "event": "cycle",
        "job": job.name,
        "cycle": run.number,
        "cycle_id": run.id,
        "outcome": outcome,
        "started_at": rfc3339(run.started_at),
        "duration_s": round(run.ended_s - run.started_s, 3),
        "worker_pid": run.worker_pid,
        "worker_cycles": run.worker_cycles,
        "worker_peak_rss_bytes": run.peak_rss_bytes,
        "rss_ceiling_bytes": job.rss_ceiling_bytes,
        "supervisor_rss_bytes": own_rss_bytes,
        "resident_after_bytes": own_rss_bytes + kept_rss_bytes,
        "recycled": run.recycled,
        "exit_code": code if code is not None and code >= 0 else None,
        "signal": signal_name(-code) if code is not None and code < 0 else None,
        "over_ceiling_bytes": seen.over_ceiling_bytes,
        "ended_in_s": None if seen.ended_in_s is None else round(seen.ended_in_s, 4),
        "missed_ticks": missed_ticks,
        "next_at": next_at,
        "summary": (seen.result or {}).get("summary") or {},
        "error": error,
    }


def log_line(report: Report, columns: int | None = None, name_columns: int = 0) -> None:
    """Write the report to the log: whole as JSON, the gist as text; for a terminal of so many columns in one line."""
    level = logging.INFO if report["outcome"] in ("ok", "stopped") else logging.ERROR
    fields = {key: value for key, value in report.items() if key != "event"}
    if log.is_text():
        text = gist(report, columns and max(1, columns - LOG_PREFIX_COLUMNS), name_columns)
        if report["error"] and report["error"]["traceback"]:
            text += "\n" + textwrap.indent(_plain(report["error"]["traceback"]), " " * LOG_PREFIX_COLUMNS)
    else:
        text = ""
    log.say("cycle", level, text, **fields)


def gist(report: Report, columns: int | None = None, name_columns: int = 0) -> str:
    """Return what a person wants to see of a report, in one line.

    With `columns`, as many of the summary's figures as fit them, and an error's message on a line of its own.
    """
    counted = [
        (value, f"{name} {value:,}")
        for name, value in report["summary"].items()
        if isinstance(value, int) and not isinstance(value, bool) and not name.endswith("_id")
    ]
    # Zeros say nothing, but for the first: "records 0" is an answer.
    figures = [text for index, (value, text) in enumerate(counted) if value or not index]
    line = (
        f"{' '.join(report['job'].split()):<{name_columns}} #{report['cycle']:<4} {report['outcome']:<7} {report['duration_s']:7.2f} s  "
        f"peak {terminal.mb(report['worker_peak_rss_bytes'], 1):>9} of {terminal.mb(report['rss_ceiling_bytes'], 1)}  "
        f"parent {terminal.mb(report['supervisor_rss_bytes'], 1):>7}"
    )
    while columns and figures and len(line) + 4 + len("  ".join(figures)) > columns:
        figures.pop()
    if figures:
        line += f"  | {'  '.join(figures)}"
    if report["error"]:
        message = " ".join(f"{report['error']['type']}: {report['error']['message']}".split("\n"))
        line += f"{'  | ' if columns is None else NEW_LINE}{message}"
    return _plain(line)


def _plain(text: str) -> str:
    return "\n".join(map(terminal.plain, text.split("\n")))


class Journal:
    """`cycles.jsonl` in the state directory: a line a cycle, whole or not at all.

    A journal that has grown to `max_bytes` becomes `cycles.jsonl.1`, and the one before it is gone.
    """

    def __init__(self, state_dir: str, max_bytes: int = JOURNAL_MAX_BYTES) -> None:
        self._path = os.path.join(state_dir, JOURNAL)
        self._max_bytes = max_bytes
        self._fd = self._open()
        size_bytes = os.fstat(self._fd).st_size
        # A line was cut off by a power cut or a full disk: the next one begins anew.
        self._cut = bool(size_bytes) and os.pread(self._fd, 1, size_bytes - 1) != b"\n"

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe would be waited for
        fd = os.open(self._path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file", self._path)
        return fd

    def write(self, report: Report) -> None:
        """Append one report. Raises OSError when the disk does not take it."""
        line = json.dumps(report, separators=(",", ":")).encode() + b"\n"
        if self._cut:
            line = b"\n" + line
        if self._is_another():  # somebody took it away, as logrotate does: the next one is begun
            self._begin_anew()
            line = line.removeprefix(b"\n")
        written = os.write(self._fd, line)
        self._cut = written < len(line)
        if self._cut:
            raise OSError(errno.ENOSPC, f"only {written:,} of {len(line):,} bytes of a line were taken")
        if os.fstat(self._fd).st_size >= self._max_bytes:
            os.replace(self._path, self._path + BEFORE)
            self._begin_anew()

    def _begin_anew(self) -> None:
        fd = self._open()  # first: if that fails the old one stays, and its number is no other file's
        os.close(self._fd)
        self._fd = fd

    def _is_another(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)
