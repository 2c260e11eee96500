"""`./ops/start --demo`: the whole thing at work on one's own machine, in less than a minute."""

import contextlib
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.server import running

RECORDS = 3_000
CEILING = "200MB"
CYCLE_PATIENCE_S = 60.0
RUN_AWAY_FILE = "run-away"  # in the state directory: the next cycle's job runs away

Report = dict[str, Any]
RowKey = tuple[str, str, str, int]


def sync(cycle: Any) -> dict[str, Any]:
    """Be the sync; and, when the demo asks for it, one that never stops collecting rows."""
    from worker import job  # noqa: PLC0415 - the demo's own process needs none of it

    if os.path.exists(os.path.join(cycle.state_dir, RUN_AWAY_FILE)):
        cycle = _RunAway(cycle)
    return job.sync(cycle)


class _RunAway:
    """A cycle in which, after the first batch, memory grows and grows."""

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cycle, name)

    def progress(self, done: int, total: int | None = None, unit: str = "") -> None:
        self._cycle.progress(done, total, unit)
        if unit == "records":
            os.remove(os.path.join(self._cycle.state_dir, RUN_AWAY_FILE))
            held = []
            while True:
                held.append({"a row": "that nobody lets go of " * 1_000})


def main() -> int:
    """Run the demo; return 0 when all of it went as it should."""
    home = Path(tempfile.mkdtemp(prefix="redcap-sync-demo-"))
    api = Api(synthetic.make(seed=7, records=RECORDS), secrets.token_hex(16).upper())
    chance = random.Random(7)
    print(f"A sandbox REDCap server with {RECORDS:,} made-up records; a service that syncs them into SQLite.\n")
    with running(api) as server, _service(environment := _environment(server.url, api.token, home)) as service:
        _say("Cycle 1: the first sync reads everything.")
        reports = [_next_report(service, home, 1)]
        for number, changes in ((2, 400), (3, 40)):
            _say(f"Cycle {number}: meanwhile {changes} records were changed, added, deleted or renamed.")
            _change(api, chance, changes)
            reports.append(_cycle(service, home, number))
        _say(f"Cycle 4: 1,500 changes, and a job that runs away. Its ceiling is {CEILING}.")
        _change(api, chance, 1_500)
        (home / RUN_AWAY_FILE).touch()
        reports.append(_cycle(service, home, 4))
        _say("Cycle 5: a fresh process does what the killed one could not finish.")
        reports.append(_cycle(service, home, 5))
        service.send_signal(signal.SIGTERM)
        code = service.wait(timeout=30)
        truth = _exported(server.url, api.token)
    page = [sys.executable, "-m", "supervisor", "report"]
    code = code or subprocess.run(page, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
    return _conclude(home, reports, truth, code)


def _environment(url: str, token: str, home: Path) -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("SUPERVISOR_", "REDCAP_", "SYNC_"))
    } | {
        "REDCAP_API_URL": url,
        "REDCAP_API_TOKEN": token,
        "REDCAP_MAX_RATE": "600",
        "SUPERVISOR_JOB": "ops.demo:sync",
        "SUPERVISOR_STATE_DIR": str(home),
        "SUPERVISOR_INTERVAL": "1h",
        "SUPERVISOR_RSS_CEILING": CEILING,
        "SUPERVISOR_LOG_FORMAT": "text",
    }


@contextlib.contextmanager
def _service(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    service = subprocess.Popen([sys.executable, "-m", "supervisor", "run"], env=environment)
    try:
        yield service
    finally:
        if service.poll() is None:
            service.kill()
            service.wait()


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _cycle(service: subprocess.Popen[bytes], home: Path, number: int) -> Report:
    service.send_signal(signal.SIGUSR1)  # "run a cycle now"
    return _next_report(service, home, number)


def _next_report(service: subprocess.Popen[bytes], home: Path, number: int) -> Report:
    journal = home / "cycles.jsonl"

    def arrived() -> bool:
        return journal.exists() and journal.read_bytes().count(b"\n") >= number

    if not _wait_for(arrived, service):
        raise SystemExit(f"no report of cycle {number} came; the service's own lines say why")
    found: Report = json.loads(journal.read_text(encoding="utf-8").splitlines()[number - 1])
    return found


def _wait_for(condition: Callable[[], bool], service: subprocess.Popen[bytes]) -> bool:
    until_s = time.monotonic() + CYCLE_PATIENCE_S
    while time.monotonic() < until_s and service.poll() is None:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def _change(api: Api, chance: random.Random, count: int) -> None:
    with api.lock:
        for _ in range(count):
            api.changes.churn(chance)


def _exported(url: str, token: str) -> dict[RowKey, dict[str, Any]]:
    """Return the server's own export, by key."""
    form = {"token": token, "content": "record", "format": "json", "type": "flat"}
    with urllib.request.urlopen(url, urllib.parse.urlencode(form).encode()) as answer:  # noqa: S310
        rows = json.load(answer)
    return {
        (
            row["record_id"],
            row["redcap_event_name"],
            row["redcap_repeat_instrument"],
            row["redcap_repeat_instance"] or 0,
        ): row
        for row in rows
    }


def _conclude(home: Path, reports: list[Report], truth: dict[RowKey, dict[str, Any]], code: int) -> int:
    database = home / "redcap.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        stored = {
            (record, event, instrument, instance): json.loads(data)
            for record, event, instrument, instance, data in connection.execute(
                "SELECT record_id, event, repeat_instrument, repeat_instance, data FROM records "
                "WHERE deleted_at IS NULL"
            )
        }
        deleted = connection.execute(
            "SELECT COUNT(DISTINCT record_id) FROM records WHERE deleted_at IS NOT NULL"
        ).fetchone()[0]
    faults = [name for name, good in _checks(reports, stored, truth, code) if not good]
    peak = max(report["worker_peak_rss_bytes"] for report in reports if report["outcome"] == "ok")
    killed = reports[3]
    parent = [report["supervisor_rss_bytes"] for report in reports]
    records = len({key[0] for key in stored})
    print(f"""
What you saw
  synced      {records:,} records in {len(stored):,} rows; {deleted:,} more are marked as deleted
  compared    the database {"equals" if stored == truth else "DIFFERS FROM"} the server's own export, cell for cell
  workers     a fresh process each cycle, {_mb(peak)} at most; all of it went back with its end
  run-away    ended at {_mb(killed["worker_peak_rss_bytes"])} ({CEILING} allowed), the next cycle did the rest
  parent      {_mb(parent[0])} after the first cycle, {_mb(parent[-1])} after the last
  database    {database}
  journal     {home / "cycles.jsonl"} (a line a cycle)
  report      {home / "report.html"} (open it in a browser)
Try (or the same with the sqlite3 program)
  {sys.executable} -c "import sqlite3; print(*sqlite3.connect('{database}').execute(
    'SELECT event, COUNT(*), AVG(weight_kg), AVG(pulse) FROM visit GROUP BY event'), sep='\\n')"
Remove it
  rm -r {home}
Then point it at your own project: set REDCAP_API_URL and REDCAP_API_TOKEN, and run ./ops/start once""")
    for fault in faults:
        print(f"NOT AS IT SHOULD BE: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _checks(
    reports: list[Report], stored: dict[RowKey, dict[str, Any]], truth: dict[RowKey, dict[str, Any]], code: int
) -> Iterator[tuple[str, bool]]:
    outcomes = [report["outcome"] for report in reports]
    yield f"the outcomes are {outcomes}", outcomes == ["ok", "ok", "ok", "ceiling", "ok"]
    yield f"the service, or the report, ended with exit code {code}", code == 0
    yield f"{len(set(truth) ^ set(stored)):,} rows are here or there only", set(truth) == set(stored)
    wrong = sum(truth[key] != stored[key] for key in truth.keys() & stored.keys())
    yield f"{wrong:,} rows differ from the server's", wrong == 0
    first, last = reports[0]["supervisor_rss_bytes"], reports[-1]["supervisor_rss_bytes"]
    yield f"the parent grew by {last - first:,} bytes", last - first < 1_000_000


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
