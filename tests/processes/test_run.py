"""`redcap-sync run`: ticks, signals, kept workers, the parent's smallness."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until


@pytest.fixture
def service(cli):
    """Start services; end with SIGKILL what a test leaves running."""
    started = []

    def start(job, **variables):
        process = cli.start("run", SUPERVISOR_JOB=f"jobs:{job}", **variables)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def worker_of(process):
    """Return the running worker."""
    return wait_until(lambda: psutil.Process(process.pid).children())[0]


def working(cli):
    wait_until((cli.state_dir / "working").exists)


def test_ticks_come_by_themselves(cli, service):
    process = service("is_quick", SUPERVISOR_INTERVAL="0.1s")
    reports = cli.reports_of(5)
    process.terminate()
    done = cli.finish(process)
    assert done.code == 0
    assert [report["cycle"] for report in reports[:5]] == [1, 2, 3, 4, 5]
    assert len({report["worker_pid"] for report in reports}) == len(reports)
    assert len({report["cycle_id"] for report in reports}) == len(reports)
    assert all(report["next_at"] for report in reports)
    assert [line["event"] for line in done.lines if line["event"] != "cycle"] == ["started", "stopping", "stopped"]


def test_usr1_runs_a_cycle_now(cli, service):
    process = service("is_quick", SUPERVISOR_INTERVAL="1h")
    cli.reports_of(1)
    process.send_signal(signal.SIGUSR1)
    cli.reports_of(2)
    process.terminate()
    assert cli.finish(process).code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_drains(cli, service, number):
    process = service("stops_when_asked", SUPERVISOR_GRACE="10s")
    working(cli)
    process.send_signal(number)
    done = cli.finish(process)
    assert done.code == 0
    assert done.report["outcome"] == "stopped"
    assert done.report["summary"]["done"] > 0
    assert done.report["error"] is None
    assert done.report["recycled"] == "fresh"
    assert done.report["next_at"] is None


def test_a_job_that_ends_in_its_grace_is_ok(cli, service):
    process = service("finishes_in_time", SUPERVISOR_GRACE="10s")
    working(cli)
    process.terminate()
    said = []
    wait_until(lambda: said.append(os.read(process.stderr.fileno(), 4096)) or b'"stopping"' in b"".join(said))
    (cli.state_dir / "go").touch()
    assert cli.finish(process).report["outcome"] == "ok"


def test_a_job_that_does_not_end_in_its_grace_is_ended(cli, service):
    process = service("hangs", SUPERVISOR_GRACE="0.5s")
    working(cli)
    process.terminate()
    done = cli.finish(process)
    assert done.code == 0
    assert (done.report["outcome"], done.report["signal"], done.report["recycled"]) == ("stopped", "SIGTERM", "fresh")


def test_a_second_stop_hurries(cli, service):
    process = service("hangs", SUPERVISOR_GRACE="60s")
    working(cli)
    process.terminate()
    process.terminate()
    # Both may be one to the kernel: a third after the drain is under way is surely another.
    wait_until(lambda: process.poll() is not None or process.send_signal(signal.SIGTERM) or False)
    done = cli.finish(process)
    assert done.code == 0
    assert done.report["outcome"] == "stopped"
    assert done.report["duration_s"] < 30


def test_a_worker_that_is_kept_serves_many_cycles(cli, service):
    process = service("counts", SUPERVISOR_INTERVAL="0.1s", SUPERVISOR_CYCLES_PER_WORKER="3")
    reports = cli.reports_of(7)[:7]
    process.terminate()
    cli.finish(process)
    assert [report["summary"]["served"] for report in reports] == [1, 2, 3, 1, 2, 3, 1]
    assert [report["worker_cycles"] for report in reports] == [1, 2, 3, 1, 2, 3, 1]
    assert [report["recycled"] for report in reports] == [None, None, "count", None, None, "count", None]
    assert len({report["worker_pid"] for report in reports}) == 3
    kept = reports[0]
    assert kept["exit_code"] is None
    assert kept["resident_after_bytes"] > kept["supervisor_rss_bytes"] + 5_000_000


def test_a_kept_worker_above_the_soft_limit_is_replaced(cli, service):
    process = service(
        "counts_and_holds",
        SUPERVISOR_INTERVAL="0.1s",
        SUPERVISOR_CYCLES_PER_WORKER="0",
        SUPERVISOR_RSS_CEILING="200MB",
        SUPERVISOR_RECYCLE_RSS="50MB",
    )
    reports = cli.reports_of(6)[:6]
    process.terminate()
    cli.finish(process)
    assert {report["outcome"] for report in reports} == {"ok"}
    assert "rss" in {report["recycled"] for report in reports}
    assert len({report["worker_pid"] for report in reports}) > 1


def test_a_kept_worker_that_fails_is_replaced(cli, service):
    process = service("crashes_the_second_time", SUPERVISOR_INTERVAL="0.1s", SUPERVISOR_CYCLES_PER_WORKER="0")
    reports = cli.reports_of(3)[:3]
    process.terminate()
    cli.finish(process)
    assert [report["outcome"] for report in reports] == ["ok", "failed", "ok"]
    assert [report["recycled"] for report in reports] == [None, "failure", None]
    assert reports[1]["worker_pid"] == reports[0]["worker_pid"] != reports[2]["worker_pid"]


def test_a_kept_worker_that_dies_between_cycles_is_no_failure(cli, service):
    process = service("counts", SUPERVISOR_INTERVAL="1h", SUPERVISOR_CYCLES_PER_WORKER="0")
    cli.reports_of(1)
    worker = worker_of(process)
    worker.kill()
    wait_until(lambda: not psutil.Process(process.pid).children())
    process.send_signal(signal.SIGUSR1)
    reports = cli.reports_of(2)
    assert [report["outcome"] for report in reports] == ["ok", "ok"]
    process.terminate()
    assert cli.finish(process).code == 0


def test_the_breaker_gives_up_by_name(cli, service):
    process = service("raises", SUPERVISOR_INTERVAL="0.1s", SUPERVISOR_MAX_FAILURES="3")
    done = cli.finish(process)
    assert done.code == 70
    assert [report["outcome"] for report in done.reports] == ["failed"] * 3
    (breaker,) = [line for line in done.lines if line["event"] == "breaker"]
    assert breaker["failures"] == 3


def test_a_stopped_worker_is_ended_too(cli, service):
    process = service("hangs", SUPERVISOR_GRACE="1s")
    working(cli)
    os.kill(worker_of(process).pid, signal.SIGSTOP)
    process.terminate()
    done = cli.finish(process)
    assert done.report["outcome"] == "stopped"


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_a_killed_supervisor_takes_its_worker_along(cli, service, start_method):
    process = service("hangs", SUPERVISOR_START_METHOD=start_method)
    working(cli)
    everything = psutil.Process(process.pid).children(recursive=True)
    assert everything
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(everything, timeout=5)
    assert not alive


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_a_killed_supervisor_takes_all_that_its_worker_started_along(cli, service, start_method):
    process = service("has_children_and_hangs", SUPERVISOR_START_METHOD=start_method)
    working(cli)
    left = [psutil.Process(int(pid)) for pid in (cli.state_dir / "pids").read_text().split()]
    everything = [*psutil.Process(process.pid).children(recursive=True), *left]
    assert len(left) == 3
    assert any("keeper" in " ".join(one.cmdline()) for one in everything)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(everything, timeout=5)
    assert not alive


def test_a_job_without_children_has_no_keeper(cli, service):
    process = service("hangs")
    working(cli)
    process.send_signal(signal.SIGUSR2)  # it looks around
    assert len(psutil.Process(process.pid).children(recursive=True)) == 1
    process.terminate()
    cli.finish(process)


def test_the_parent_has_one_thread_and_imports_little(cli, service):
    process = service("is_quick", SUPERVISOR_INTERVAL="1h")
    cli.reports_of(1)
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Threads:\t1\n" in status
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    for heavy in ("pydantic", "sqlalchemy", "_sqlite3", "_ssl", "psycopg"):
        assert heavy not in mapped
    process.terminate()
    assert cli.finish(process).code == 0


def test_no_descriptor_and_no_process_is_left_by_a_thousand_cycles(cli, service):
    process = service("is_quick", SUPERVISOR_INTERVAL="1h", SUPERVISOR_LOG_LEVEL="ERROR")
    cli.reports_of(1)
    journal = cli.state_dir / "cycles.jsonl"
    few = psutil.Process(process.pid).num_fds()
    for count in range(2, 1_001):
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: journal.read_bytes().count(b"\n") >= count)  # noqa: B023
    wait_until(lambda: psutil.Process(process.pid).num_fds() <= few)
    assert not psutil.Process(process.pid).children()
    process.terminate()
    assert cli.finish(process).code == 0


def test_a_result_behind_an_unread_message_is_heard(cli, service):
    """A job that never looks at `stopping` leaves the stop unread, and must not lose its result."""
    outcomes = []
    for _ in range(8):
        process = service("finishes_in_time", SUPERVISOR_GRACE="10s", SUPERVISOR_INTERVAL="1h")
        working(cli)
        process.terminate()
        said = []
        wait_until(lambda: said.append(os.read(process.stderr.fileno(), 4096)) or b'"stopping"' in b"".join(said))  # noqa: B023
        (cli.state_dir / "go").touch()
        outcomes.append(cli.finish(process).report["outcome"])
        for name in ("go", "working"):
            (cli.state_dir / name).unlink()
    assert outcomes == ["ok"] * 8


def test_a_kept_worker_keeps_nothing_that_a_job_left(cli, service):
    process = service("leaves_daemon", SUPERVISOR_INTERVAL="0.1s", SUPERVISOR_CYCLES_PER_WORKER="0")
    reports = cli.reports_of(1)
    daemon = int(wait_until((cli.state_dir / "daemon").read_text))  # the next cycle may be writing it anew
    assert reports[0]["recycled"] is None
    wait_until(lambda: not psutil.pid_exists(daemon))
    process.terminate()
    assert cli.finish(process).code == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_defect_of_the_loop_ends_the_service_and_its_worker(cli, tmp_path, method):
    """It is seen, and the init system can start it anew: it must not wait for a worker for ever."""
    (tmp_path / "defect.py").write_text(
        "import sys\nfrom supervisor import cli, console\n\n"
        "def broken(*_):\n    raise RuntimeError('a defect')\n\n"
        "if __name__ == '__main__':\n    console.Console.progress = broken\n    sys.exit(cli.main(['run']))\n"
    )
    env = cli.env | {"SUPERVISOR_JOB": "jobs:counts_up_and_hangs", "SUPERVISOR_START_METHOD": method}
    done = subprocess.run(
        [sys.executable, tmp_path / "defect.py"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: a defect" in done.stderr
