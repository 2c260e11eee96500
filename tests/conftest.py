"""What all tests share: nothing may be left behind, and the product is run as users run it."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor import libc
from tests import servers

ROOT = Path(__file__).parent.parent
JOBS = Path(__file__).parent / "processes"

# Whoever is orphaned by a test becomes a child of the test run, where `nothing_left` sees it.
libc.adopt_orphans()


def wait_until(condition: Callable[[], Any], patience_s: float = 20.0) -> Any:
    """Poll until a condition holds; return what it returned. A test never sleeps for luck."""
    until_s = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > until_s:
            raise AssertionError(f"this did not become true within {patience_s:g} s: {condition}")
        time.sleep(0.005)
    return found


def _open_ends() -> dict[str, str]:
    """Return the sockets and pipes of this process."""
    ends = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:[pidfd]", "/memfd:")):
            ends[fd] = target
    return ends


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a process, a socket or a pipe behind."""
    before = _open_ends()
    me = psutil.Process()
    yield
    left = [c for top in me.children() if top.pid not in servers.PIDS for c in (top, *top.children(recursive=True))]
    if left:
        _, left = psutil.wait_procs(left, timeout=3)
    said = [f"{one.pid} {one.status()} {' '.join(one.cmdline())}" for one in left if one.is_running()]
    for one in left:
        one.kill()
    assert not said, f"the test left processes behind: {said}"
    gc.collect()  # an exception that a test caught still held its connection
    until_s = time.monotonic() + 3  # a server's thread may still be closing its side
    while new := {fd: target for fd, target in _open_ends().items() if before.get(fd) != target}:
        assert time.monotonic() < until_s, f"the test left descriptors open: {new}"
        time.sleep(0.005)


@dataclass
class Finished:
    """A run of the command line that is over."""

    code: int
    out: str
    err: str
    state_dir: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The cycle reports of the log."""
        return [line for line in self.lines if line["event"] == "cycle"]

    @property
    def report(self) -> dict[str, Any]:
        """The only cycle report."""
        (report,) = self.reports
        return report

    @property
    def journal(self) -> list[dict[str, Any]]:
        """The reports of the journal."""
        path = self.state_dir / "cycles.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class CommandLine:
    """`redcap-sync`, with an environment that holds nothing of the developer's."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.env = {
            name: value
            for name, value in os.environ.items()
            # Unbuffered, a program prints at other moments than users' programs do.
            if not name.startswith(("SUPERVISOR_", "REDCAP_", "SYNC_")) and name != "PYTHONUNBUFFERED"
        }
        self.env |= {"SUPERVISOR_STATE_DIR": str(state_dir), "PYTHONPATH": f"{JOBS}:{ROOT}"}
        self.env |= {"SUPERVISOR_GRACE": "2s"}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command; the test ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "supervisor", *arguments],
            env=self.env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 60) -> Finished:
        """Wait for the end of a command."""
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"it did not end within {timeout_s:g} s; it said: {out} {err}") from None
        return Finished(process.returncode, out, err, self.state_dir)

    def run(self, *arguments: str, **variables: str) -> Finished:
        """Run a command to its end."""
        return self.finish(self.start(*arguments, **variables))

    def reports_of(self, count: int) -> list[dict[str, Any]]:
        """Wait until the journal has that many reports; return them."""
        path = self.state_dir / "cycles.jsonl"
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """Return the command line with a state directory of the test's own."""
    return CommandLine(tmp_path / "state")
