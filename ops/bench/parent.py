"""The parent's memory at idle, and its growth over fresh-process cycles.

Prints kibibytes of smaps_rollup: RSS, PSS, and the anonymous part of the PSS, which is what
the process holds for itself alone. Goals: below 13 MB anonymous, below 64 KiB of growth.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CYCLES = 300
WARM = 5
GOAL_ANONYMOUS_BYTES = 13_000_000
GOAL_GROWTH_KIB = 64


def rollup_kib(pid: int) -> dict[str, int]:
    """Return RSS, PSS and anonymous PSS of a process in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    values = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return {"rss": values["Rss"], "pss": values["Pss"], "anonymous": values["Pss_Anon"]}


def main(cycles: int = CYCLES, goal_growth_kib: int = GOAL_GROWTH_KIB) -> int:
    """Measure; return 0 when both goals are met."""
    with tempfile.TemporaryDirectory(prefix="redcap-sync-bench-") as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")} | {
            "SUPERVISOR_JOB": "ops.bench.jobs:nothing",
            "SUPERVISOR_INTERVAL": "1h",
            "SUPERVISOR_STATE_DIR": home,
            "SUPERVISOR_LOG_LEVEL": "ERROR",
        }
        service = subprocess.Popen([sys.executable, "-m", "supervisor", "run"], env=environment)
        try:
            return _measure(service, Path(home) / "cycles.jsonl", cycles, goal_growth_kib)
        finally:
            service.terminate()
            service.wait()


def _measure(service: subprocess.Popen[bytes], journal: Path, last: int, goal_growth_kib: int) -> int:
    print(f"{'after':>13} {'RSS KiB':>9} {'PSS KiB':>9} {'anonymous KiB':>14}")
    seen = {}
    for cycles in (WARM, last // 6, last // 3, last * 2 // 3, last + WARM):
        while not journal.exists() or journal.read_bytes().count(b"\n") < cycles:
            if service.poll() is not None:
                raise SystemExit(f"the service ended with exit code {service.returncode}")
            if journal.exists() and journal.stat().st_size:  # it has its handlers
                service.send_signal(signal.SIGUSR1)  # a cycle now, and no waiting for the tick
            time.sleep(0.01)
        while Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text(encoding="ascii"):
            time.sleep(0.01)  # a live worker shares the parent's pages, which PSS divides by two then
        seen[cycles] = now = rollup_kib(service.pid)
        print(f"{cycles:>6,} cycles {now['rss']:>9,} {now['pss']:>9,} {now['anonymous']:>14,}")
    growth_kib = seen[last + WARM]["anonymous"] - seen[WARM]["anonymous"]
    anonymous_bytes = seen[last + WARM]["anonymous"] * 1024
    good = anonymous_bytes < GOAL_ANONYMOUS_BYTES and growth_kib < goal_growth_kib
    print(
        f"anonymous {anonymous_bytes / 1e6:.2f} MB (goal: below {GOAL_ANONYMOUS_BYTES / 1e6:.0f}), "
        f"growth over {last:,} cycles {growth_kib} KiB (goal: below {goal_growth_kib}): "
        + ("met" if good else "NOT met")
    )
    return 0 if good else 1
