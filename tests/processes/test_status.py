"""`status`: from the lock, the state file and the journal, whoever wrote into them."""

import json
import os
import shutil
import signal

import pytest

from supervisor import lock, status
from supervisor.history import LINE_MAX_BYTES, History
from supervisor.loop import EX_OK
from supervisor.report import Journal
from tests.conftest import wait_until

REPORT = {
    "event": "cycle",
    "job": "sync",
    "cycle": 1,
    "outcome": "ok",
    "started_at": "2026-11-25T06:00:00.000Z",
    "duration_s": 1.5,
}


def journal(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "cycles.jsonl").write_bytes(b"".join(lines))


def line(**changes):
    return json.dumps(REPORT | changes).encode() + b"\n"


def test_a_journal_is_read_as_far_as_it_is_sound(tmp_path):
    hostile = [
        b"[" * 100_000 + b"\n",
        b'{"event":"cycle"}\n',
        b"\xff\xfe\x00\n",
        b"9" * 5_000 + b"\n",
        line(duration_s=-1),
        line(duration_s=1e300),
        line(outcome="splendid"),
        line(cycle="one"),
        line(started_at="yesterday"),
        line(started_at="9999-12-31T23:59:59Z"),
        line(started_at="0001-01-01T00:00:00+14:00"),
        line(job=["a"]),
        line(worker_peak_rss_bytes=2**70),
        line(error="no object"),
        b"x" * (3 * LINE_MAX_BYTES) + b"\n",
    ]
    journal(tmp_path, line(), *hostile, b"\n", line(cycle=2, new_in_a_later_version=1), line(cycle=3)[:50])
    read = History(str(tmp_path))
    assert [report.cycle for report in read] == [1, 2]
    assert read.unreadable.total() == len(hostile) + 1
    assert read.unreadable["cut off"] == read.unreadable["too long"] == 1
    assert "16 lines" in read.said()


def test_a_journal_that_was_begun_anew_goes_on_from_the_one_before(tmp_path):
    kept = Journal(str(tmp_path), max_bytes=2_000)
    for cycle in range(40):
        kept.write(REPORT | {"cycle": cycle})
    kept.close()
    before, now = (tmp_path / name for name in ("cycles.jsonl.1", "cycles.jsonl"))
    assert 2_000 <= before.stat().st_size < 2_300
    assert now.stat().st_mode & 0o777 == 0o600
    cycles = [report.cycle for report in History(str(tmp_path))]
    assert cycles == list(range(cycles[0], 40))
    assert len(cycles) > 13
    for last_bytes in (1, 100, 1_000, 3_000, 10_000):
        some = [report.cycle for report in History(str(tmp_path), last_bytes=last_bytes)]
        assert some == cycles[len(cycles) - len(some) :]
        assert len(some) >= min(len(cycles), last_bytes // 150 - 1)


def test_the_end_of_a_journal_is_enough_for_the_last_cycles(tmp_path):
    journal(tmp_path, *(line(cycle=number) for number in range(1_000)))
    read = History(str(tmp_path), last_bytes=10_000)
    cycles = [report.cycle for report in read]
    assert cycles == list(range(cycles[0], 1_000))
    assert 50 < len(cycles) < 100
    assert not read.said()


def test_nobody_runs(cli):
    done = cli.run("status")
    assert done.code == 3
    assert "not running" in done.out


@pytest.mark.parametrize("as_json", [True, False])
def test_a_service_from_its_start_to_its_end(cli, as_json):
    def ask():
        done = cli.run("status", *(["--json"] if as_json else []))
        return done.code, json.loads(done.out) if as_json else done.out

    service = cli.start("run", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_INTERVAL="1h")
    cli.reports_of(1)
    wait_until(lambda: ask()[0] == 0)
    _code, said = ask()
    if as_json:
        assert said["state"] == "healthy"
        assert said["pid"] == service.pid
        (job,) = said["jobs"]
        assert (job["running"], job["cycle"], job["last_outcome"]) == (False, 1, "ok")
        assert [one["outcome"] for one in said["last_cycles"]] == ["ok"]
    else:
        assert f"pid {service.pid}" in said
        assert "\x1b" not in said
    service.send_signal(signal.SIGTERM)
    assert cli.finish(service).code == EX_OK
    assert ask()[0] == 3


def test_a_cycle_that_runs_is_seen_with_its_memory(cli):
    service = cli.start("run", SUPERVISOR_JOB="jobs:hangs", SUPERVISOR_INTERVAL="1h", SUPERVISOR_GRACE="0s")
    try:
        wait_until((cli.state_dir / "state.json").exists)

        def running():
            (job,) = json.loads(cli.run("status", "--json").out)["jobs"] or [{"running": False}]
            return job["running"] and job

        job = wait_until(running)
        assert job["worker_rss_bytes"] > 5_000_000
        assert job["next_at"] is None
    finally:
        service.send_signal(signal.SIGTERM)
        cli.finish(service)


def test_a_bad_last_cycle_degrades_and_names_its_code(cli):
    service = cli.start("run", SUPERVISOR_JOB="jobs:raises", SUPERVISOR_INTERVAL="1h")
    try:
        cli.reports_of(1)
        done = wait_until(lambda: (found := cli.run("status")).code == 1 and found)
        assert "the last cycle ended as failed" in done.out
    finally:
        service.send_signal(signal.SIGTERM)
        cli.finish(service)


def held(folder, **job):
    """Hold a state directory as an instance would, and tell of one job."""
    fd = lock.take(str(folder))
    about = {"job": "sync", "cycle": 1, "rss_ceiling_bytes": 10**8} | job
    said = {"pid": lock.holder(str(folder)), "once": False, "started_at": "2026-11-25T06:00:00Z", "stopping": False}
    (folder / "state.json").write_text(json.dumps(said | {"max_workers": 1, "jobs": [about]}))
    return fd


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"due_s": 1.0}, "TickOverdue"),
        ({"started_s": 1.0, "overdue_s": 2.0}, "CycleOverdue"),
        ({"last": {"outcome": "ceiling", "ended_at": "2026-11-25T06:00:00Z"}}, "LastCycleBad"),
    ],
)
def test_why_it_is_degraded(tmp_path, job, code):
    fd = held(tmp_path, **job)
    try:
        seen = status.look(str(tmp_path))
    finally:
        os.close(fd)
    assert seen["exit"] == 1
    assert [reason["code"] for reason in seen["reasons"]] == [code]


def test_what_stands_in_the_files_does_not_reach_the_terminal(tmp_path, cli):
    cli.state_dir.mkdir()
    fd = held(cli.state_dir, job="\x1b]0;title\x07job")
    journal(cli.state_dir, line(job="\x1b[2Jjob", error={"type": "\x1b[31mE"}))
    try:
        done = cli.run("status")
    finally:
        os.close(fd)
    assert "\x1b" not in done.out
    assert "job" in done.out


STATE = '{"pid":%s,"once":false,"stopping":false,"max_workers":1,"jobs":[],"started_at":"9999-12-31T23:59:59Z"}'


@pytest.mark.parametrize("text", ["", "{", "[]", STATE % os.getpid(), '{"pid":1}', "[" * 100_000])
def test_a_state_file_that_is_none(tmp_path, text):
    fd = held(tmp_path)
    (tmp_path / "state.json").write_text(text)
    try:
        seen = status.look(str(tmp_path))
    finally:
        os.close(fd)
    assert (seen["exit"], seen["jobs"]) == (1, [])


def test_alive_is_who_runs_whatever_became_of_the_last_cycle(cli):
    """A service whose REDCap is down must not be begun anew for that."""
    assert cli.run("status", "--alive").code == 3
    service = cli.start("run", SUPERVISOR_JOB="jobs:raises", SUPERVISOR_INTERVAL="1h")
    try:
        cli.reports_of(1)
        wait_until(lambda: cli.run("status").code == 1)
        assert cli.run("status", "--alive").code == 0
    finally:
        service.send_signal(signal.SIGTERM)
        cli.finish(service)


def test_who_was_killed_in_mid_cycle_is_told_and_who_stopped_is_not(cli):
    service = cli.start("run", SUPERVISOR_JOB="jobs:hangs", SUPERVISOR_INTERVAL="1h")
    wait_until(lambda: '"started_s":' in state_of(cli) and '"started_s":null' not in state_of(cli))
    service.kill()
    cli.finish(service)
    done = cli.run("status")
    assert done.code == 3
    assert f"pid {service.pid} ended without a word, in the middle of hangs #1" in " ".join(done.out.split())
    service = cli.start("run", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_INTERVAL="1h")
    cli.reports_of(1)
    service.send_signal(signal.SIGTERM)
    assert cli.finish(service).code == 0
    assert "without a word" not in cli.run("status").out


def state_of(cli):
    path = cli.state_dir / "state.json"
    return path.read_text() if path.exists() else ""


def test_a_state_directory_that_is_taken_away_ends_the_service(cli):
    """Else a second one could begin in a new folder of that name, and both would go on."""
    service = cli.start("run", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_INTERVAL="0.2")
    cli.reports_of(1)
    shutil.rmtree(cli.state_dir)
    done = cli.finish(service)
    assert done.code == 75
    assert '"code":"StateDirLost"' in done.err
    assert cli.run("once", SUPERVISOR_JOB="jobs:ok").code == 0


def test_a_journal_that_can_not_be_begun_anew_writes_into_no_other_file(tmp_path):
    """The number of a descriptor that was closed may be another file's by then."""
    folder = tmp_path / "state"
    folder.mkdir()
    kept = Journal(str(folder))
    kept.write(REPORT)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        kept.write(REPORT)
    with (tmp_path / "another").open("wb"), pytest.raises(FileNotFoundError):
        kept.write(REPORT)
    assert (tmp_path / "another").read_bytes() == b""
    folder.mkdir()
    kept.write(REPORT)
    kept.close()
    assert (folder / "cycles.jsonl").read_bytes().count(b"\n") == 1
