"""The picture of the README: what each way of syncing holds, cycle by cycle, of one project on one server.

48 cycles (a day of half hours), every eighth of which reads all records, the others what changed. PyCap with data
frames, and with plain dicts, each in one process that goes on; and this, a service that is told to run its cycles.
Sampled are the resident bytes of the whole process tree, as ps(1) shows them. PyCap and pandas run in an environment of
their own, made by pip for this run. Writes ops/memory.svg.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ops.bench.sync import PACKAGES, TOKEN, server

RECORDS, FIELDS = 20_000, 120
CYCLES, FULL_EVERY = 48, 8
SAMPLE_S = 0.005
PICTURE = Path(__file__).parent.parent / "memory.svg"

_PEER = """
import json, os, sqlite3, sys
from datetime import datetime, timedelta
import redcap
kind, path = sys.argv[1], sys.argv[2]
project = redcap.Project(os.environ["REDCAP_API_URL"], os.environ["REDCAP_API_TOKEN"])

def cycle(**about):
    if kind == "frame":
        frame = project.export_records(format_type="df", **about).astype(str)
        rows = frame.reset_index().to_dict("records")
    else:
        rows = project.export_records(format_type="json", **about)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS records (record_id TEXT PRIMARY KEY, data TEXT)")
        add = "INSERT OR REPLACE INTO records VALUES (?, ?)"
        connection.executemany(add, ((str(row["record_id"]), json.dumps(row)) for row in rows))
    connection.close()

for line in sys.stdin:
    cycle(**({} if line == "full\\n" else {"date_begin": datetime.now() - timedelta(minutes=10)}))
    print("done", flush=True)
"""


def sync(cycle: Any) -> dict[str, Any]:
    """Be the job of our own service: every eighth cycle reads all, as the others' do."""
    from worker.job import sync as real  # noqa: PLC0415 - in the worker only

    cycle.full = cycle.number % FULL_EVERY == 0
    return real(cycle)


@dataclass
class Seen:
    """What one way held, in MB: the most of each cycle, and what stayed after it."""

    name: str
    color: str
    peaks: list[float] = field(default_factory=list)
    stays: list[float] = field(default_factory=list)


def main() -> int:
    """Measure, print and draw."""
    ways = (
        Seen("data frame, one process", "#D55E00"),
        Seen("plain dicts, one process", "#8A6D00"),
        Seen("this: a process a cycle", "#0072B2"),
    )
    with tempfile.TemporaryDirectory() as name, server(RECORDS, FIELDS) as url:
        folder = Path(name)
        python = folder / "env" / "bin" / "python"
        venv.create(folder / "env", with_pip=True)
        subprocess.run([python, "-m", "pip", "-qqq", "--disable-pip-version-check", "install", *PACKAGES], check=True)
        variables = os.environ | {"REDCAP_API_URL": url, "REDCAP_API_TOKEN": TOKEN, "REDCAP_MAX_RATE": "600"}
        for seen, kind in zip(ways, ("frame", "dicts", "ours"), strict=True):
            with (_ours if kind == "ours" else _peer)(kind, python, folder, variables) as (root, run):
                for number in range(1, CYCLES + 1):
                    urllib.request.urlopen(url).read()  # noqa: S310 - our own server: one record in a hundred changes
                    _cycle(seen, root, run(number))
    print(f"{CYCLES} cycles, every {FULL_EVERY}th reads all of {RECORDS:,} records with {FIELDS} fields; MB")
    for seen in ways:
        print(
            f"  {seen.name:<26} at most {max(seen.peaks):4.0f}, between cycles {statistics.median(seen.stays):4.0f} "
            f"(first {seen.stays[0]:.0f}, last {seen.stays[-1]:.0f})"
        )
    PICTURE.write_text(_svg(ways), encoding="utf-8")
    print(f"drawn: {PICTURE.name}")
    return 0 if max(ways[2].stays) < 30 and max(ways[2].peaks) < max(ways[0].peaks) else 1


def _cycle(seen: Seen, root: psutil.Process, running: Iterator[None]) -> None:
    peak = 0.0
    for _ in running:
        peak = max(peak, _held_mb(root))
        time.sleep(SAMPLE_S)
    seen.peaks.append(peak)
    seen.stays.append(_held_mb(root))


def _held_mb(root: psutil.Process) -> float:
    total = 0
    for one in (root, *root.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return total / 1e6


@contextmanager
def _peer(kind: str, python: Path, folder: Path, variables: dict[str, str]) -> Iterator[tuple[psutil.Process, Any]]:
    command = [str(python), "-c", _PEER, kind, str(folder / f"{kind}.db")]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        to, out_fd = process.stdin, process.stdout.fileno()
        os.set_blocking(out_fd, False)

        def run(number: int) -> Iterator[None]:
            to.write(b"full\n" if number % FULL_EVERY == 0 else b"changed\n")
            to.flush()
            while True:
                try:
                    if not os.read(out_fd, 100):
                        raise SystemExit("the peer ended; standard error says why")
                except BlockingIOError:
                    yield
                else:
                    return

        yield psutil.Process(process.pid), run
        to.close()


@contextmanager
def _ours(_kind: str, _python: Path, folder: Path, variables: dict[str, str]) -> Iterator[tuple[psutil.Process, Any]]:
    state = folder / "state"
    journal = state / "cycles.jsonl"
    env = variables | {"SUPERVISOR_STATE_DIR": str(state), "SUPERVISOR_JOB": "ops.bench.memory:sync"}
    command = [sys.executable, "-m", "supervisor", "run"]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as service:

        def run(number: int) -> Iterator[None]:
            (state / "requests").unlink(missing_ok=True)  # a day of cycles in a minute: the rate is not the question
            if number > 1:  # the first one runs by itself
                service.send_signal(signal.SIGUSR1)
            while not journal.exists() or journal.read_bytes().count(b"\n") < number:
                if service.poll() is not None:
                    raise SystemExit("the service ended")
                yield

        yield psutil.Process(service.pid), run
        service.send_signal(signal.SIGTERM)


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 400, 60, 236, 44, 44


def _svg(ways: tuple[Seen, ...]) -> str:
    """Return the picture: a line for what stays, and a thin stroke up to the most of each cycle."""
    top = max(max(seen.peaks) for seen in ways) * 1.05
    step = next(one for one in (25, 50, 100, 200, 500) if top / one <= 8)

    def x(number: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (number - 0.5) / CYCLES

    def y(mb: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * mb / top

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
            'font-size="13" role="img">'
        ),
        "<title>Resident memory of three ways to sync the same project, over 48 cycles</title>",
        (
            "<style>text { fill: #1b1f24 } .grid { stroke: #d0d7de } .paper { fill: #ffffff } "
            "@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .grid { stroke: #30363d } "
            ".paper { fill: #0d1117 } }</style>"
        ),
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        (
            f'<text x="{LEFT - 48}" y="20" font-weight="600">Resident memory in MB, {CYCLES} cycles; every {FULL_EVERY}th '
            f"reads all {RECORDS:,} records</text>"
        ),
        f'<text x="{LEFT}" y="{HEIGHT - 10}">cycle; a stroke reaches to the most that it held, the line is what stayed after it</text>',
    ]
    for tick in range(0, int(top) + 1, step):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    parts += [
        f'<text x="{x(number):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number}</text>'
        for number in range(FULL_EVERY, CYCLES + 1, FULL_EVERY)
    ]
    used: list[float] = []
    for index, seen in enumerate(ways):
        strokes = "".join(
            f"M{x(number) + 3 * (index - 1):.1f} {y(stays):.1f}V{y(peak):.1f}"
            for number, (peak, stays) in enumerate(zip(seen.peaks, seen.stays, strict=True), 1)
        )
        line = " ".join(f"{x(number):.1f},{y(stays):.1f}" for number, stays in enumerate(seen.stays, 1))
        parts.append(f'<path d="{strokes}" stroke="{seen.color}" stroke-width="2" opacity="0.55" fill="none"/>')
        parts.append(f'<polyline points="{line}" stroke="{seen.color}" stroke-width="3" fill="none"/>')
        at = y(seen.stays[-1])
        while any(abs(at - other) < 38 for other in used):
            at -= 4
        used.append(at)
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{at:.1f}" style="fill: {seen.color}" font-weight="600">{seen.name}</text>'
            f'<text x="{WIDTH - RIGHT + 10}" y="{at + 16:.1f}">{seen.stays[-1]:.0f} MB stay, at most {max(seen.peaks):.0f}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
