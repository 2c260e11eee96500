"""What happens around a service: settings that come and go, a fork server that dies, pipes where files should be."""

import json
import os
import resource
import signal

import psutil
import pytest

from tests.conftest import wait_until
from tests.processes.test_run import service, working  # noqa: F401


def until_said(process, *texts):
    """Read the service's log until it has these texts, in their order; return what was read."""
    said = ""
    os.set_blocking(process.stderr.fileno(), False)

    def has_come():
        nonlocal said
        try:
            said += os.read(process.stderr.fileno(), 65_536).decode()
        except BlockingIOError:
            pass
        at = 0
        for text in texts:
            at = said.find(text, at) + 1
            if not at:
                return False
        return True

    wait_until(has_come)
    os.set_blocking(process.stderr.fileno(), True)
    return said


@pytest.fixture
def jobs(cli, tmp_path):
    """Start a service with a jobs file; return it, and a function that changes the file and has it read again."""
    path = tmp_path / "jobs.toml"
    started = []

    def start(text, **variables):
        path.write_text(text)
        process = cli.start("run", SUPERVISOR_JOBS_FILE=str(path), **variables)
        started.append(process)

        def change(text):
            path.write_text(text)
            process.send_signal(signal.SIGHUP)
            until_said(process, '"event":"reloaded"')

        return process, change

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def of(cli, job):
    path = cli.state_dir / "cycles.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [one for one in map(json.loads, lines) if one["job"] == job]


ONE = "[jobs.one]\njob = 'jobs:finishes_in_time'\ninterval = '{}'\n"
TWO = "[jobs.two]\njob = 'jobs:is_quick'\ninterval = '1h'\n"


def test_a_job_that_is_taken_out_and_put_back_in_mid_cycle_goes_on(cli, jobs):
    process, change = jobs(ONE.format("0.1s") + TWO, SUPERVISOR_MAX_WORKERS="2")
    working(cli)
    change(TWO)
    change(ONE.format("0.1s") + TWO)
    (cli.state_dir / "go").touch()
    wait_until(lambda: len(of(cli, "one")) >= 3)
    process.terminate()
    assert cli.finish(process).code == 0


def test_a_cycle_that_was_asked_for_comes_though_the_interval_is_another_now(cli, jobs):
    process, change = jobs(ONE.format("1h"))
    working(cli)
    process.send_signal(signal.SIGUSR1)
    change(ONE.format("2h"))
    (cli.state_dir / "go").touch()
    wait_until(lambda: len(of(cli, "one")) == 2)
    process.terminate()
    assert cli.finish(process).code == 0


def test_an_interval_that_changes_again_and_again_does_not_put_a_job_off(cli, jobs):
    process, change = jobs(TWO.replace("1h", "2s"))
    cli.reports_of(1)
    for number in range(100):
        change(TWO.replace("1h", f"2.{number % 2}s"))
        if len(of(cli, "two")) >= 3:
            break
    assert len(of(cli, "two")) == 3
    process.terminate()
    assert cli.finish(process).code == 0


def test_a_reload_that_hangs_delays_no_stop(cli, jobs, tmp_path):
    process, _ = jobs(TWO)
    cli.reports_of(1)
    (tmp_path / "jobs.toml").unlink()
    os.mkfifo(tmp_path / "jobs.toml")  # as a file on a disk in a network that does not answer
    process.send_signal(signal.SIGHUP)
    until_said(process, '"event":"reloading"')
    process.send_signal(signal.SIGHUP)
    process.terminate()
    done = cli.finish(process, timeout_s=10)
    assert done.code == 0
    assert '"event":"reload' not in done.err.partition('"event":"stopping"')[2]


def test_a_service_outlives_its_fork_server(cli, service):  # noqa: F811
    process = service("is_quick", SUPERVISOR_START_METHOD="forkserver", SUPERVISOR_INTERVAL="1h")
    cli.reports_of(1)
    parent = psutil.Process(process.pid)
    wait_until(lambda: len(parent.children()) == 2)  # with the tracker of resources
    idle_fds = parent.num_fds()
    (server,) = [one for one in parent.children() if "forkserver" in " ".join(one.cmdline())]
    server.suspend()
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: parent.num_fds() > idle_fds + 3)  # it is waiting for the server's answer
    server.kill()
    until_said(process, '"event":"no_worker"')
    process.send_signal(signal.SIGUSR1)
    assert cli.reports_of(2)[1]["outcome"] == "ok"
    process.terminate()
    assert cli.finish(process).code == 0


def test_a_pipe_in_the_place_of_the_journal_holds_nothing_up(cli, service):  # noqa: F811
    process = service("is_quick", SUPERVISOR_INTERVAL="1h")
    cli.reports_of(1)
    path = cli.state_dir / "cycles.jsonl"
    path.unlink()
    os.mkfifo(path)
    process.send_signal(signal.SIGUSR1)
    until_said(process, '"event":"journal"', "it is no regular file")
    process.terminate()
    assert process.wait(10) == 0
    assert cli.run("once", SUPERVISOR_JOB="jobs:is_quick").code == 78


def test_pipes_in_the_place_of_what_the_commands_read(cli):
    assert cli.run("once", SUPERVISOR_JOB="jobs:is_quick").code == 0
    for name in ("state.json", "metrics.json"):
        (cli.state_dir / name).unlink(missing_ok=True)
        os.mkfifo(cli.state_dir / name)
    assert cli.run("status").code == 3
    metrics = str(cli.state_dir / "redcap.prom")
    (cli.state_dir / "state.json").unlink()
    done = cli.run("once", SUPERVISOR_JOB="jobs:is_quick", SUPERVISOR_METRICS_FILE=metrics)
    assert done.code == 0
    assert "MetricsFailed" in done.err
    assert "it is no regular file" in done.err


def test_kept_workers_give_way_where_descriptors_are_wanting(cli, jobs):
    kept = "".join(
        f"[jobs.kept{n}]\njob = 'jobs:is_quick'\ninterval = '0.3s'\ncycles_per_worker = 0\n" for n in range(3)
    )
    process, _ = jobs(kept + "[jobs.last]\njob = 'jobs:is_quick'\ninterval = '0.3s'\n")
    wait_until(lambda: all(of(cli, name) for name in ("kept0", "kept1", "kept2", "last")))
    parent = psutil.Process(process.pid)
    parent.rlimit(resource.RLIMIT_NOFILE, (parent.num_fds() + 2, 1024))
    before = len(of(cli, "last"))
    until_said(process, '"event":"no_worker"')
    wait_until(lambda: len(of(cli, "last")) > before + 2)
    process.terminate()
    assert cli.finish(process).code == 0
