"""How long the report of a year takes, and how large it is: 17,520 cycles, one each half hour.

The figures of the made-up cycles vary as real ones do, so that they can't be compressed away.
Goals: below two seconds and 6 MB.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

YEAR_CYCLES = 17_520
GOAL_S, GOAL_BYTES = 2.0, 6_000_000
RUNS = 5
ERRORS = {
    "failed": ("ServerFailed", "the server failed with status 503: it is down, overloaded or in maintenance"),
    "ceiling": ("CeilingExceeded", "the worker's tree held 513,000,000 bytes, above the ceiling of 512,000,000"),
    "timeout": ("CycleTimeout", "the cycle ran into its limit of 1200 s"),
}


def write_journal(path: Path, count: int, job: str = "sync") -> None:
    """Write `count` cycles of one job, the last one today."""
    chance = random.Random(7)
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30) * count
    with path.open("w", encoding="utf-8") as file:
        for number in range(1, count + 1):
            outcome = chance.choices(("ok", "failed", "ceiling", "timeout"), (970, 20, 5, 5))[0]
            fetch_s, process_s, write_s = (chance.lognormvariate(mean, 0.5) for mean in (1.0, -0.5, -1.0))
            updated, rows = chance.randrange(400), chance.randrange(400, 9_000)
            error = ERRORS.get(outcome)
            report = {
                "event": "cycle",
                "job": job,
                "cycle": number,
                "cycle_id": f"{chance.getrandbits(128):032x}",
                "outcome": outcome,
                "started_at": (begin + timedelta(minutes=30) * number).isoformat().replace("+00:00", "Z"),
                "duration_s": round(fetch_s + process_s + write_s, 3),
                "worker_pid": chance.randrange(4_000_000),
                "worker_cycles": 1,
                "worker_peak_rss_bytes": 70_000_000 + 4096 * chance.randrange(5_000),
                "rss_ceiling_bytes": 512_000_000,
                "supervisor_rss_bytes": 20_000_000 + 4096 * chance.randrange(3),
                "missed_ticks": 0,
                "recycled": "fresh",
                "summary": {
                    "project_id": 12,
                    "mode": "incremental",
                    "records": rows // 3,
                    "rows": rows,
                    "inserted": chance.randrange(30),
                    "updated": updated,
                    "unchanged": rows - updated,
                    "deleted": chance.randrange(3),
                    "mended": 0,
                    "batches": 1 + rows // 3_000,
                    "bytes_received": rows * 700 + chance.randrange(50_000),
                    "requests": 9 + rows // 3_000,
                    "retries": 0,
                    "answers": {"200": 9},
                    "fetch_s": round(fetch_s, 3),
                    "process_s": round(process_s, 3),
                    "write_s": round(write_s, 3),
                },
                "error": error and {"type": error[0], "message": error[1], "traceback": ""},
            }
            file.write(json.dumps(report, separators=(",", ":")) + "\n")


def main() -> int:
    """Measure; return 0 when both goals are met."""
    with tempfile.TemporaryDirectory(prefix="redcap-sync-report-") as folder:
        write_journal(Path(folder, "cycles.jsonl"), YEAR_CYCLES)
        page = Path(folder, "report.html")
        times_s = []
        for _ in range(RUNS):
            started_s = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "supervisor", "report", "-o", str(page)],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ
                | {"SUPERVISOR_STATE_DIR": folder}
                | {"REDCAP_API_URL": "https://redcap.example.org/api/", "REDCAP_API_TOKEN": "0" * 32},
            )
            times_s.append(time.perf_counter() - started_s)
        size_bytes = page.stat().st_size
    took_s = statistics.median(times_s)
    good = took_s < GOAL_S and size_bytes < GOAL_BYTES
    print(f"{YEAR_CYCLES:,} cycles: {took_s:.2f} s (median of {RUNS}), {size_bytes / 1e6:.2f} MB")
    print(f"goals: below {GOAL_S:g} s and {GOAL_BYTES / 1e6:g} MB: " + ("met" if good else "NOT met"))
    return 0 if good else 1
