"""A full sync and one of 1 % against what people write themselves, side by side in one run.

The server is a lean one in a process of its own, so that the clients' own cost shows; a real
REDCap makes its answers far slower. The peers run in an environment of their own, made by pip
for this run. `ops/start bench sync [RECORDS ...]`: 1,000 and 20,000 where nothing is named; 200,000 takes half an hour.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIELDS = (60, 600)
ROUNDS = {1_000: 5, 20_000: 3}  # in turns; else once
MEMORY_MAX_BYTES = 20_000_000_000  # a peer that needs more is told so by the kernel
PACKAGES = ("PyCap", "pandas")
NAMES = {"ours": "this", "json": "PyCap, json, executemany", "frame": "PyCap, data frame, to_sql"}
TOKEN = "0123456789ABCDEF" * 2

_PEER = """
import json, os, sqlite3, sys
from datetime import datetime, timedelta
import redcap
kind, begin, path = sys.argv[1], sys.argv[2], sys.argv[3]
project = redcap.Project(os.environ["REDCAP_API_URL"], os.environ["REDCAP_API_TOKEN"])
about = {"date_begin": datetime.now() - timedelta(minutes=10)} if begin == "incremental" else {}
with sqlite3.connect(path) as connection:
    if kind == "json":
        rows = project.export_records(format_type="json", **about)
        connection.execute("CREATE TABLE IF NOT EXISTS records (record_id TEXT PRIMARY KEY, data TEXT)")
        add = "INSERT OR REPLACE INTO records VALUES (?, ?)"
        connection.executemany(add, ((row["record_id"], json.dumps(row)) for row in rows))
    else:
        frame = project.export_records(format_type="df", **about)
        if about:
            gone = ((str(one),) for one in frame.index)
            connection.executemany("DELETE FROM records WHERE record_id = ?", gone)
        frame.to_sql("records", connection, if_exists="append" if about else "replace")
connection.close()
"""


@contextmanager
def server(records: int, fields: int) -> Iterator[str]:
    """Serve so many records with so many fields; yield the address."""
    command = [sys.executable, "-m", "ops.bench.lean_server", str(records), str(fields)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate("")


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))


def _run(kind: str, mode: str, python: Path, home: Path, url: str) -> dict[str, float]:
    """Run one sync; return seconds and the peak in MB, and for ours what its report says."""
    variables = {"REDCAP_API_URL": url, "REDCAP_API_TOKEN": TOKEN, "REDCAP_MAX_RATE": "600"}
    variables |= {"SUPERVISOR_STATE_DIR": str(home / "state"), "SUPERVISOR_CYCLE_TIMEOUT": "2h"}
    command = [str(python), "-c", _PEER, kind, mode, str(home / f"{kind}.db")]
    if kind == "ours":
        (home / "state" / "requests").unlink(missing_ok=True)  # the rate of another round
        command = [sys.executable, "-m", "supervisor", "once"]
    started_s = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_bounded,  # noqa: PLW1509 - this program has one thread
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seen: dict[str, float] = {"s": time.perf_counter() - started_s, "mb": usage.ru_maxrss * 1024 / 1e6}
    if process.returncode:
        last = said.strip().splitlines()[-1][:100] if said.strip() else f"exit code {process.returncode}"
        print(f"    {NAMES[kind]}: {last}")
        return {}
    if kind == "ours":
        (report,) = [json.loads(line) for line in said.splitlines() if '"event":"cycle"' in line]
        summary = report["summary"]
        seen |= {name: summary[name] for name in ("fetch_s", "process_s", "write_s", "requests", "bytes_received")}
        # A service's cycle: a fresh process with its imports, as the peers' time is; without what it takes to start the service.
        seen |= {"s": report["duration_s"], "mb": report["worker_peak_rss_bytes"] / 1e6}
    return seen


def _measure(records: int, fields: int, python: Path) -> bool:
    print(f"{records:,} records, {fields} fields")
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(ROUNDS.get(records, 1)):
        with tempfile.TemporaryDirectory() as folder, server(records, fields) as url:
            for mode in ("full", "incremental"):
                if mode == "incremental":
                    urllib.request.urlopen(url).read()  # noqa: S310 - our own server
                for kind in NAMES:
                    if mode == "full" or rounds.get((kind, "full"), [{}])[-1]:
                        rounds.setdefault((kind, mode), []).append(_run(kind, mode, python, Path(folder), url))
    fastest = True
    for mode in ("full", "incremental"):
        middle = {}
        for kind in NAMES:
            seen = [one for one in rounds.get((kind, mode), []) if one]
            if seen:
                middle[kind] = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
        ours = middle["ours"]
        synced = records if mode == "full" else records // 100
        for kind, one in middle.items():
            print(
                f"  {mode:<12}{NAMES[kind]:<28}{one['s']:8.2f} s {one['s'] / ours['s']:6.2f}x  "
                f"{synced / one['s']:>8,.0f} records/s  peak {one['mb']:>8,.0f} MB"
            )
        print(
            f"  {'':<12}of which ours: waits for the server {ours['fetch_s']:.2f} s, decodes and compares "
            f"{ours['process_s']:.2f} s, writes {ours['write_s']:.2f} s; {ours['requests']:.0f} requests, "
            f"{ours['bytes_received'] / 1e6:,.1f} MB"
        )
        fastest = fastest and all(one["s"] >= ours["s"] for one in middle.values()) and ours["mb"] < 90
    return fastest


def main() -> int:
    """Measure; return 0 when ours was the fastest everywhere and its peak below 90 MB."""
    sizes = [int(text) for text in sys.argv[2:]] or list(ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "--quiet", "install", *PACKAGES], check=True)
        met = [_measure(records, fields, python) for records in sizes for fields in FIELDS]
    print("goals met" if all(met) else "goals not met")
    return 0 if all(met) else 1
