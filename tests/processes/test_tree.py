"""What a job started, where the supervisor is PID 1 or a program that is no subreaper."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import JOBS, ROOT, wait_until


def can_unshare():
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no right to make a PID namespace")
def test_pid_1_reaps_strangers_lets_them_live_and_ends_what_jobs_leave(cli):
    cli.env |= {"SUPERVISOR_JOB": "jobs:leaves_daemon_and_dies", "SUPERVISOR_INTERVAL": "1h"}
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "supervisor", "run"],
        env=cli.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        cli.reports_of(1)
        first = wait_until(lambda: psutil.Process(outer.pid).children())[0]
        assert f"NSpid:\t{first.pid}\t1\n" in Path(f"/proc/{first.pid}/status").read_text()
        assert not first.children()  # the daemon was ended

        # Somebody comes in, as `docker exec` does, and leaves a sleeper, and one that ends.
        inside = f"sleep 6{os.getpid() % 10} & (sleep 0.2 &) & exit 0"
        subprocess.run(["nsenter", "--target", str(first.pid), "--pid", "--mount", "sh", "-c", inside], check=True)
        sleepers = wait_until(lambda: [one for one in first.children() if one.name() == "sleep"])
        first.send_signal(signal.SIGUSR1)
        assert len(cli.reports_of(2)) == 2
        wait_until(lambda: len(first.children()) == 1)  # the other has ended, and is no zombie
        (sleeper,) = first.children()
        assert sleeper in sleepers
        assert sleeper.status() == psutil.STATUS_SLEEPING
        first.send_signal(signal.SIGTERM)
        outer.wait(20)
    finally:
        outer.kill()
        outer.communicate()


PROGRAM = """
import os, signal, subprocess, sys, time
import supervisor
import jobs

class Cycle:
    state_dir = sys.argv[1]

try:
    supervisor.isolate(getattr(jobs, sys.argv[3]), Cycle, timeout=20, grace=0.1, start_method=sys.argv[2])
except supervisor.CallCrashed as error:
    print(error.report["signal"])
"""


def program(tmp_path, method, job):
    env = os.environ | {"PYTHONPATH": f"{JOBS}:{ROOT}"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), method, job], env=env, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_crashed_call_leaves_no_daemon_in_a_program_that_is_no_subreaper(tmp_path, method):
    process = program(tmp_path, method, "leaves_daemon_and_dies")
    out, _ = process.communicate(timeout=30)
    assert out == "SIGKILL\n"
    daemon = int((tmp_path / "daemon").read_text())
    wait_until(lambda: not psutil.pid_exists(daemon) or psutil.Process(daemon).status() == psutil.STATUS_ZOMBIE, 3)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_program_takes_its_call_and_all_below_along(tmp_path, method):
    process = program(tmp_path, method, "has_children_and_hangs")
    wait_until((tmp_path / "working").exists)
    everything = psutil.Process(process.pid).children(recursive=True)
    everything += [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(everything, timeout=5)
    assert not alive


def test_threads_without_end_name_the_backstop(cli):
    report = cli.run("once", SUPERVISOR_JOB="jobs:starts_threads_without_end", SUPERVISOR_RSS_CEILING="64MB").report
    assert (report["outcome"], report["error"]["type"]) == ("failed", "RuntimeError")
    assert "can't start new thread" in report["error"]["message"]
    assert "the backstop above SUPERVISOR_RSS_CEILING" in report["error"]["message"]
    assert json.dumps(report).count("starts_threads_without_end") >= 1


def test_a_job_without_the_mark_brings_nobody_else_down(cli):
    bystander = subprocess.Popen(["sleep", "60"])  # it has no limit of data, as that job has none
    try:
        report = cli.run("once", SUPERVISOR_JOB="jobs:lifts_its_limits_and_has_children").report
        assert (report["outcome"], report["signal"]) == ("crashed", "SIGKILL")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


SCARCE = """
import os, resource
from supervisor.clock import Clock
from supervisor.plan import JobPlan
from supervisor.wait import call

job = JobPlan(name="empty", target="builtins:dict")
call(job, {}, Clock())  # what is opened once is open now
fds = lambda: len(os.listdir("/proc/self/fd"))
had, refused = fds(), 0
for more in range(12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (had + more, 4096))
    try:
        call(job, {}, Clock())
    except OSError:
        refused += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
    assert fds() == had, (more, fds() - had)
    print(more, refused)
"""


def test_a_worker_that_cant_be_started_for_want_of_descriptors_leaves_none_open():
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    refused = int(done.stdout.split()[-1])
    assert 5 < refused < 12  # some limits were too small, and some were enough
