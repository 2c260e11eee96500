"""What stays resident between cycles in each start method: the supervisor, and its helpers.

The sum of PSS of the supervisor and of every process below it, when nothing runs; and its
anonymous part, which is memory that nobody shares.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ops.bench.parent import rollup_kib

CYCLES = 5


def main() -> int:
    """Measure; return 0."""
    print(f"{'method':>10} {'processes':>10} {'PSS KiB':>9} {'anonymous KiB':>14} {'of the parent alone':>20}")
    for method in ("fork", "spawn", "forkserver"):
        with tempfile.TemporaryDirectory(prefix="redcap-sync-bench-") as home:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")} | {
                "SUPERVISOR_JOB": "ops.bench.jobs:nothing",
                "SUPERVISOR_INTERVAL": "0.5s",
                "SUPERVISOR_START_METHOD": method,
                "SUPERVISOR_STATE_DIR": home,
                "SUPERVISOR_LOG_LEVEL": "ERROR",
            }
            service = subprocess.Popen([sys.executable, "-m", "supervisor", "run"], env=environment)
            try:
                _measure(service, Path(home) / "cycles.jsonl", method)
            finally:
                service.terminate()
                service.wait()
    return 0


def _measure(service: subprocess.Popen[bytes], journal: Path, method: str) -> None:
    while not journal.exists() or journal.read_bytes().count(b"\n") < CYCLES:
        time.sleep(0.01)
    time.sleep(0.1)  # behind a cycle, and before the next
    pids = [service.pid, *_below(service.pid)]
    held = [rollup_kib(pid) for pid in pids]
    print(
        f"{method:>10} {len(pids):>10} {sum(one['pss'] for one in held):>9,} "
        f"{sum(one['anonymous'] for one in held):>14,} {held[0]['anonymous']:>20,}"
    )


def _below(pid: int) -> list[int]:
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()):
        found += [child, *_below(child)]
    return found
