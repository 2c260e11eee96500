"""Memory at its limits: the kernel's killer, a job that holds the interpreter, several jobs at once."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def memory_group():
    """Return this process's group of cgroup version 1's memory controller, if we may make one below."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            group = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            return group if os.access(group, os.W_OK) else None
    return None


@pytest.mark.skipif(memory_group() is None, reason="needs a memory control group that this user may divide")
def test_a_kill_by_the_kernel_is_told_by_its_own_account(cli):
    group = memory_group() / f"redcap-sync-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("150000000")
        command = f'echo $$ > {group}/cgroup.procs; exec "{sys.executable}" -m supervisor once'
        variables = {"SUPERVISOR_JOB": "jobs:grows", "SUPERVISOR_RSS_CEILING": "2GB"}
        done = subprocess.run(
            ["sh", "-c", command], env=cli.env | variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1, done.stderr
        assert '"outcome":"oom"' in done.stderr
        assert '"KilledByKernel"' in done.stderr
        assert '"signal":"SIGKILL"' in done.stderr
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


@pytest.fixture
def small_group():
    """A control group of 300 MB; `enter` is what a shell must do to be in it."""
    group = memory_group() / f"redcap-sync-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("299999232")  # whole pages
    yield f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -m supervisor"
    with contextlib.suppress(OSError):
        group.rmdir()


@pytest.mark.skipif(memory_group() is None, reason="needs a memory control group that this user may divide")
@pytest.mark.parametrize(
    ("variables", "ceiling_bytes"),
    [
        ({}, 235_999_232),
        ({"SUPERVISOR_MAX_WORKERS": "2"}, 117_999_616),
        ({"SUPERVISOR_MAX_WORKERS": "100"}, 32_000_000),
        ({"SUPERVISOR_RSS_CEILING": "400MB"}, 400_000_000),
    ],
)
def test_the_ceiling_follows_the_group_where_nobody_said_how_high_it_is(cli, small_group, variables, ceiling_bytes):
    env = cli.env | {"SUPERVISOR_JOB": "jobs:ok"} | variables

    def run(command):
        command = ["sh", "-c", f"{small_group} {command}"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    done = run("once")
    assert done.returncode == 0, done.stderr
    assert f'"rss_ceiling_bytes":{ceiling_bytes}' in done.stderr
    said = "SUPERVISOR_RSS_CEILING follows /sys/fs/cgroup" in done.stderr
    assert said == ("SUPERVISOR_RSS_CEILING" not in variables)
    rows = {row["variable"]: row for row in json.loads(run("config --json").stdout)["settings"]}
    assert (rows["SUPERVISOR_RSS_CEILING"]["source"] == "control group") == said


@pytest.mark.skipif(memory_group() is None, reason="needs a memory control group that this user may divide")
def test_a_soft_limit_above_the_ceiling_that_follows_is_refused(cli, small_group):
    env = cli.env | {"SUPERVISOR_JOB": "jobs:ok", "SUPERVISOR_RECYCLE_RSS": "300MB"}
    done = subprocess.run(["sh", "-c", f"{small_group} once"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "SUPERVISOR_RECYCLE_RSS" in done.stderr


def test_a_job_that_holds_the_interpreter_is_ended_too(cli):
    """One call of C code never lets a Python handler run: the limits do not need one."""
    report = cli.run(
        "once", SUPERVISOR_JOB="jobs:holds_the_interpreter", SUPERVISOR_CYCLE_TIMEOUT="1s", SUPERVISOR_GRACE="0.5s"
    ).report
    assert report["outcome"] == "timeout"
    assert "in holds_the_interpreter" in report["error"]["traceback"]


@pytest.mark.parametrize("job", ["grows_starved", "grows_in_a_thread", "grows_in_a_fork", "grows_and_stops_itself"])
def test_the_ceiling_holds_whoever_grows(cli, job):
    report = cli.run("once", SUPERVISOR_JOB=f"jobs:{job}", SUPERVISOR_RSS_CEILING="150MB").report
    assert report["outcome"] == "ceiling"
    assert report["over_ceiling_bytes"] > 0
    assert report["ended_in_s"] > 0
    assert "bytes above at most" in report["error"]["message"]


def test_a_job_that_crashes_or_hangs_does_not_delay_another(cli, tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text(
        '[jobs.hangs]\njob = "jobs:hangs"\n[jobs.crashes]\njob = "jobs:segfaults"\ninterval = "0.3s"\n'
        '[jobs.quick]\njob = "jobs:is_quick"\ninterval = "0.2s"\n'
    )
    service = cli.start("run", SUPERVISOR_JOBS_FILE=str(path), SUPERVISOR_MAX_WORKERS="3", SUPERVISOR_GRACE="0.5s")
    reports = cli.reports_of(12)
    service.terminate()
    done = cli.finish(service)
    assert done.code == 0
    assert {report["job"] for report in reports} == {"quick", "crashes"}
    assert sum(report["job"] == "quick" for report in reports) >= 3
    assert {report["missed_ticks"] for report in reports if report["job"] == "quick"} == {0}


def test_one_worker_at_a_time_is_one_at_a_time(cli, tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text("".join(f'[jobs.j{n}]\njob = "jobs:is_quick"\n' for n in range(5)))
    done = cli.run("once", SUPERVISOR_JOBS_FILE=str(path))
    assert done.code == 0
    assert [report["job"] for report in done.reports] == ["j0", "j1", "j2", "j3", "j4"]
