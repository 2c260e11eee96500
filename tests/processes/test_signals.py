"""SIGHUP, SIGUSR2, and signals by the hundred; and what systemd is told."""

import json
import os
import signal
import socket

import psutil
import pytest

from tests.conftest import wait_until
from tests.processes.test_run import service, working  # noqa: F401


def said(cli, process, event):
    """End the service and return its lines of one kind."""
    process.terminate()
    done = cli.finish(process)
    assert done.code == 0, done.err
    return [line for line in done.lines if line["event"] == event], done


def test_hup_reads_the_settings_again(cli, service, tmp_path):  # noqa: F811
    path = tmp_path / "settings.env"
    path.write_text("SUPERVISOR_JOB=jobs:environment\nSUPERVISOR_INTERVAL=1h\nMY_VALUE=old\n")
    process = cli.start("run", "--env-file", str(path))
    try:
        assert cli.reports_of(1)[0]["summary"] == {"MY_VALUE": "old"}
        path.write_text(
            "SUPERVISOR_JOB=jobs:environment\nSUPERVISOR_INTERVAL=1h\nMY_VALUE=new\nSUPERVISOR_RSS_CEILING=99MB\n"
        )
        process.send_signal(signal.SIGHUP)
        reports = 1
        while True:  # the new settings are in force from some cycle on
            process.send_signal(signal.SIGUSR1)
            reports += 1
            last = cli.reports_of(reports)[-1]
            if last["summary"] == {"MY_VALUE": "new"}:
                break
            assert last["summary"] == {"MY_VALUE": "old"}
        assert last["rss_ceiling_bytes"] == 99_000_000
    finally:
        lines, _ = said(cli, process, "reloaded")
    assert len(lines) == 1


def test_a_bad_file_is_refused_and_the_old_plan_kept(cli, service, tmp_path):  # noqa: F811
    path = tmp_path / "settings.env"
    path.write_text("SUPERVISOR_JOB=jobs:is_quick\nSUPERVISOR_INTERVAL=1h\n")
    process = cli.start("run", "--env-file", str(path))
    cli.reports_of(1)
    path.write_text("SUPERVISOR_JOB=jobs:is_quick\nSUPERVISOR_INTERVAL=soon\nSUPERVISOR_MAX_FAILURES=never\n")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert cli.reports_of(2)[-1]["outcome"] == "ok"
    # A reload that was not over when the stop came would say nothing.
    seen = []
    wait_until(
        lambda: seen.append(os.read(process.stderr.fileno(), 65_536).decode()) or "reload_refused" in "".join(seen)
    )
    process.terminate()
    done = cli.finish(process)
    assert done.code == 0
    text = "".join(seen) + done.err
    assert "SUPERVISOR_INTERVAL" in text
    assert "SUPERVISOR_MAX_FAILURES" in text


def test_hup_replaces_a_kept_worker(cli, tmp_path):
    path = tmp_path / "settings.env"
    common = "SUPERVISOR_JOB=jobs:environment\nSUPERVISOR_INTERVAL=0.1s\nSUPERVISOR_CYCLES_PER_WORKER=0\n"
    path.write_text(common + "MY_VALUE=old\n")
    process = cli.start("run", "--env-file", str(path))
    first = cli.reports_of(2)[1]
    path.write_text(common + "MY_VALUE=new\n")
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: cli.reports_of(1)[-1]["summary"] == {"MY_VALUE": "new"})
    last = cli.reports_of(1)[-1]
    said(cli, process, "reloaded")
    assert last["worker_pid"] != first["worker_pid"]
    assert {report["outcome"] for report in cli.reports_of(1)} == {"ok"}


def test_usr2_says_where_the_worker_is(cli, service):  # noqa: F811
    process = service("hangs", SUPERVISOR_GRACE="0.2s")
    working(cli)
    process.send_signal(signal.SIGUSR2)
    seen = []
    wait_until(
        lambda: seen.append(os.read(process.stderr.fileno(), 65_536).decode()) or '"event":"seen"' in "".join(seen)
    )
    process.terminate()
    cli.finish(process)
    (line,) = [line for line in "".join(seen).splitlines() if '"event":"seen"' in line]
    assert "in hangs" in line
    assert '"worker_state":"running"' in line


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_usr2_in_the_moment_in_which_a_worker_ends(cli, service, method):  # noqa: F811
    process = service("finishes_in_time", SUPERVISOR_START_METHOD=method, SUPERVISOR_INTERVAL="1h")
    working(cli)
    parent = psutil.Process(process.pid)
    parent.suspend()
    cycle_pid = json.loads((cli.state_dir / "state.json").read_text())["jobs"][0]["worker_pid"]
    (cli.state_dir / "go").touch()

    def has_ended():
        try:
            return psutil.Process(cycle_pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # the fork server has reaped it
            return True

    wait_until(has_ended)
    process.send_signal(signal.SIGUSR2)
    parent.resume()
    assert cli.reports_of(1)[0]["outcome"] == "ok"
    process.terminate()
    assert cli.finish(process).code == 0


def test_a_storm_of_signals_loses_nothing(cli, service):  # noqa: F811
    process = service("stops_when_asked", SUPERVISOR_GRACE="20s")
    working(cli)
    for _ in range(300):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGHUP):
            process.send_signal(number)
    process.terminate()
    done = cli.finish(process)
    assert done.code == 0
    assert done.report["outcome"] == "stopped"


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(20)
        yield receiver


def hear(listener, wanted):
    heard = []
    while not heard or not heard[-1].startswith(wanted):
        heard.append(listener.recv(4096).decode())
    return heard


def test_what_systemd_is_told(cli, service, listener, tmp_path):  # noqa: F811
    process = service(
        "tells_itself", SUPERVISOR_INTERVAL="1h", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000"
    )
    assert hear(listener, "READY=1") == ["READY=1"]
    heard = hear(listener, "STATUS=waiting; 1 cycles done")
    assert "STATUS=tells_itself #1; 0 cycles done" in heard
    for _ in range(3):
        hear(listener, "WATCHDOG=1")
    process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in hear(listener, "RELOADING=1")[-1]
    hear(listener, "READY=1")
    process.terminate()
    hear(listener, "STOPPING=1")
    done = cli.finish(process)
    assert done.code == 0
    assert done.reports[0]["summary"]["notify"] is None


def test_a_loop_that_hangs_is_not_fed(cli, service, listener, tmp_path):  # noqa: F811
    process = service(
        "is_quick", SUPERVISOR_INTERVAL="1h", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000"
    )
    hear(listener, "WATCHDOG=1")
    process.send_signal(signal.SIGSTOP)
    listener.settimeout(0.5)
    with pytest.raises(TimeoutError):
        hear(listener, "never")
    process.send_signal(signal.SIGCONT)
    listener.settimeout(20)
    hear(listener, "WATCHDOG=1")
    process.terminate()
    assert cli.finish(process).code == 0


def test_a_watchdog_of_another_process_is_not_ours(cli, service, listener, tmp_path):  # noqa: F811
    process = service(
        "is_quick",
        SUPERVISOR_INTERVAL="0.1s",
        NOTIFY_SOCKET=str(tmp_path / "notify"),
        WATCHDOG_USEC="200000",
        WATCHDOG_PID="1",
    )
    cli.reports_of(5)
    process.terminate()
    assert "WATCHDOG=1" not in hear(listener, "STOPPING=1")
    assert cli.finish(process).code == 0


def test_signals_that_come_before_the_service_is_ready_wait_for_it(cli, service):  # noqa: F811
    process = service("is_quick", SUPERVISOR_INTERVAL="1h")
    wait_until(lambda: psutil.Process(process.pid).children())  # the settings are being read
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        process.send_signal(number)
    assert cli.reports_of(1)[0]["outcome"] == "ok"
    process.terminate()
    assert cli.finish(process).code == 0
