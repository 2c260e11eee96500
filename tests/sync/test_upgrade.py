"""The files are replaced under a running service; what an older or a newer version left is met."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from tests.conftest import ROOT, wait_until

TOKEN = "0123456789ABCDEF" * 2


@pytest.fixture
def installed(tmp_path, world, cli):
    """A copy of the program, and a way to run it; the sandbox is its server."""
    for name in ("supervisor", "worker"):
        shutil.copytree(ROOT / name, tmp_path / "app" / name, ignore=shutil.ignore_patterns("__pycache__"))
    cli.env |= {"REDCAP_API_URL": world.server.url, "REDCAP_API_TOKEN": TOKEN, "REDCAP_MAX_RATE": "600"}
    cli.env |= {"PYTHONPATH": str(tmp_path / "app"), "PYTHONDONTWRITEBYTECODE": "1", "REDCAP_RETRIES": "0"}
    world.state_dir.rmdir()
    world.state_dir = cli.state_dir
    return tmp_path / "app"


@pytest.fixture
def service(installed, cli):
    command = [sys.executable, "-m", "supervisor", "run"]
    process = subprocess.Popen(
        command, cwd=installed, env=cli.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)


def cycle(cli, service, number):
    service.send_signal(signal.SIGUSR1)
    return cli.reports_of(number)[number - 1]


def test_the_next_cycle_runs_the_new_code_and_a_half_copied_one_ends_nothing(world, installed, cli, service):
    assert cli.reports_of(1)[0]["summary"]["mended"] == 0
    path = installed / "worker" / "sync.py"
    old = path.read_text()
    path.write_text(old[: old.index("(", len(old) // 2) + 1])  # somebody copies it at this moment
    half = cycle(cli, service, 2)
    assert half["outcome"] == "failed"
    assert half["error"]["type"] == "JobError"
    assert "sync.py, line " in half["error"]["message"]
    path.write_text(old.replace('"mended": self.mended', '"mended": 77'))
    world.api.changes.put([{"record_id": "new", "redcap_event_name": "enrolment_arm_1", "first_name": "x"}])
    new = cycle(cli, service, 3)
    assert (new["outcome"], new["summary"].get("mended")) == ("ok", 77), new["error"]
    assert new["summary"]["inserted"] > 0
    world.assert_exact()
    assert service.poll() is None


def test_an_older_program_refuses_a_newer_one_s_tables_and_leaves_them(world, installed, cli, service):
    cli.reports_of(1)
    database = cli.state_dir / "redcap.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE schema_version SET version = version + 1")  # as a newer one had left it
        before = connection.execute("SELECT * FROM records ORDER BY record_id, event").fetchall()
    world.api.changes.put([{"record_id": "new", "redcap_event_name": "enrolment_arm_1", "first_name": "x"}])
    report = cycle(cli, service, 2)
    assert (report["outcome"], report["error"]["type"]) == ("failed", "SinkNewer")
    assert "newer" in report["error"]["message"]
    with closing(sqlite3.connect(database)) as connection, connection:
        assert connection.execute("SELECT * FROM records ORDER BY record_id, event").fetchall() == before
        connection.execute("UPDATE schema_version SET version = version - 1")  # and the newer one is there again
    assert cycle(cli, service, 3)["outcome"] == "ok"
    world.assert_exact()


def test_what_other_versions_left_in_the_state_directory_is_no_hindrance(world, cli):
    cli.state_dir.mkdir(exist_ok=True)
    newer = {"event": "cycle", "job": "sync", "cycle": 1, "outcome": "ok", "started_at": "2026-01-01T00:00:00Z"}
    newer |= {"duration_s": 1.0, "of_a_later_version": {"x": [1]}}
    older = {"cycle": 1, "job": "sync", "event": "cycle", "result": "fine"}  # before there were outcomes
    (cli.state_dir / "cycles.jsonl").write_text(f"{json.dumps(older)}\n{json.dumps(newer)}\n")
    (cli.state_dir / "state.json").write_text('{"version": 99}')
    (cli.state_dir / "metrics.json").write_text('{"version": 99, "jobs": []}')
    prom = cli.state_dir / "redcap.prom"
    done = cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_METRICS_FILE=str(prom))
    assert done.code == 0
    assert 'redcap_sync_journal_unreadable_lines_total{sync_job="ok"} 1.0' in prom.read_text()
    status = cli.run("status", "--json")
    seen = json.loads(status.out)
    assert status.code == 3
    assert len(seen["last_cycles"]) == 2
    assert "1 line" in seen["journal"]


def test_a_running_service_is_seen_by_another_version_s_status(world, installed, cli, service):
    cli.reports_of(1)
    state = cli.state_dir / "state.json"
    wait_until(lambda: json.loads(state.read_text())["jobs"][0]["last"])
    content = json.loads(state.read_text()) | {"of_a_later_version": 1}
    state.write_text(json.dumps(content))
    assert cli.run("status").code == 0
