"""The sync under the supervisor, as users run it: killed, ended, stopped; and nothing leaks."""

import itertools
import json
import random
import signal

import psutil
import pytest

from ops.sandbox.export import Rights
from ops.sandbox.faults import page
from tests.conftest import wait_until
from tests.sync.conftest import TOKEN


@pytest.fixture
def env(world, cli):
    """Point the command line at the sandbox and its database."""
    cli.env |= {
        "REDCAP_API_URL": world.server.url,
        "REDCAP_API_TOKEN": TOKEN,
        "REDCAP_MAX_RATE": "600",
        "REDCAP_RETRIES": "0",
    }
    world.state_dir.rmdir()
    world.state_dir = cli.state_dir
    return cli


def test_one_command_syncs_a_project(world, env):
    done = env.run("once")
    assert done.code == 0
    report = done.report
    assert report["job"] == "sync"
    assert report["summary"]["records"] == 60
    assert report["summary"]["mode"] == "full"
    world.assert_exact()
    assert env.run("once").report["summary"]["mode"] == "incremental"
    assert env.run("once", "--full").report["summary"]["mode"] == "full"
    assert (env.state_dir / "redcap.db").stat().st_mode & 0o777 == 0o600
    (cycle_id,) = world.query("SELECT cycle_id FROM cycles ORDER BY finished_at LIMIT 1")[0]
    assert cycle_id == report["cycle_id"]


def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(world, env):
    """SIGKILL to the worker, again and again, while the project changes."""
    chance = random.Random(3)
    service = env.start("run", SUPERVISOR_INTERVAL="0.2s", REDCAP_BATCH_SIZE="7")
    try:
        wait_until((env.state_dir / "lock").exists)  # before it, the only child reads the settings
        for _ in range(25):
            workers = wait_until(lambda: psutil.Process(service.pid).children())
            world.api.changes.churn(chance)
            if chance.random() < 0.7:
                psutil.wait_procs(workers, timeout=chance.uniform(0, 0.8))
                for worker in workers:
                    if worker.is_running():
                        worker.kill()
        service.send_signal(signal.SIGTERM)
    finally:
        done = env.finish(service)
    assert done.code == 0
    outcomes = {report["outcome"] for report in done.reports}
    assert "crashed" in outcomes
    assert env.run("once").code == 0
    assert env.run("once").code == 0
    world.assert_exact()


def test_a_runaway_in_mid_sync_is_made_good_by_the_next_cycle(world, env):
    assert env.run("once", REDCAP_BATCH_SIZE="10").code == 0
    chance = random.Random(4)
    for _ in range(80):
        world.api.changes.churn(chance)
    done = env.run("once", SUPERVISOR_JOB="runaway:sync", SUPERVISOR_RSS_CEILING="150MB", REDCAP_BATCH_SIZE="5")
    assert done.report["outcome"] == "ceiling"
    assert env.run("once").code == 0
    world.assert_exact()


@pytest.mark.parametrize(
    ("variables", "fault", "error_type", "says"),
    [
        ({"REDCAP_API_URL": "http://127.0.0.1:9/api/"}, "", "ServerUnreachable", "REDCAP_API_URL"),
        ({"REDCAP_API_TOKEN": "F" * 32}, "", "TokenRefused", "REDCAP_API_TOKEN"),
        ({}, "html", "NotRedcap", "REDCAP_API_URL"),
        ({}, "truncated", "AnswerCutOff", "ended"),
        ({}, "cut", "AnswerCutOff", "broke"),
        ({}, "500", "ServerFailed", "maintenance"),
    ],
)
def test_a_failed_cycle_says_what_to_do_and_the_next_does_it_again(world, env, variables, fault, error_type, says):
    if fault:
        world.server.faults.add(fault)
    done = env.run("once", **variables)
    assert done.code == 1
    assert done.report["outcome"] == "failed"
    assert done.report["error"]["type"] == error_type
    assert says in done.report["error"]["message"]
    assert TOKEN not in done.err + json.dumps(done.journal)
    world.server.faults.clear()
    assert env.run("once").code == 0
    world.assert_exact()


def test_a_stop_in_mid_sync_is_a_clean_drain(world, env):
    world.server.faults.add("drip:7")  # the seventh answer takes for ever
    service = env.start("run", SUPERVISOR_GRACE="1s", REDCAP_BATCH_SIZE="10")
    wait_until(lambda: len(world.api.requests) >= 7)
    service.send_signal(signal.SIGTERM)
    done = env.finish(service)
    assert done.code == 0
    assert done.report["outcome"] == "stopped"
    world.server.faults.clear()
    assert env.run("once").code == 0
    world.assert_exact()


def test_a_stop_does_not_wait_for_a_server_that_asks_for_patience(world, env, monkeypatch):
    plain, asked = world.server.faults.apply, itertools.count()
    busy = page(503, "Service Unavailable", Retry_After="90")
    monkeypatch.setattr(world.server.faults, "apply", lambda answer: busy if next(asked) >= 9 else plain(answer))
    service = env.start("run", SUPERVISOR_GRACE="20s", REDCAP_BATCH_SIZE="10", REDCAP_RETRIES="9")
    wait_until(lambda: len(world.api.requests) >= 10)
    service.send_signal(signal.SIGTERM)
    done = env.finish(service)
    assert (done.code, done.report["outcome"], done.report["error"]) == (0, "stopped", None)
    assert done.report["summary"]["records"] > 0


def test_hidden_fields_are_in_the_log_and_in_the_summary(world, env):
    world.api.rights = Rights(deidentified=True)
    done = env.run("once")
    assert done.report["summary"]["fields_hidden"] == 6
    (line,) = [line["line"] for line in done.lines if line["event"] == "output"]
    assert line.startswith("6 fields are in the dictionary and not in the server's answers")
    assert "first_name" in line


def test_a_second_instance_with_a_state_directory_of_its_own_says_that_the_project_is_taken(world, env, tmp_path):
    env.env["SYNC_SINK"] = f"sqlite:///{tmp_path}/shared.db"
    world.server.faults.add("drip:7")  # the seventh answer takes for ever
    first = env.start("run", SUPERVISOR_GRACE="0s")
    try:
        wait_until(lambda: len(world.api.requests) >= 7)
        second = env.run("once", SUPERVISOR_STATE_DIR=str(tmp_path / "second"))
        assert second.code == 1
        assert second.report["error"]["type"] == "SinkBusy"
        assert "project 4242" in second.report["error"]["message"]
    finally:
        first.send_signal(signal.SIGTERM)
        env.finish(first)
