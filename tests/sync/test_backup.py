"""The commands of ops/production.md: a copy made while the service runs is restored, and becomes current again."""

import re
import shutil
import subprocess

import psycopg
import pytest

from tests.conftest import ROOT
from tests.sync import postgres
from tests.sync.conftest import Alone
from worker.job import sync

GUIDE = (ROOT / "ops" / "production.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("  #")[0].strip() for one in BLOCKS for line in one.splitlines()]


def command(containing):
    (found,) = (one for one in COMMANDS if containing in one)
    return found


def change(world, number):
    world.api.changes.put([{"record_id": f"new-{number}", "redcap_event_name": "enrolment_arm_1", "first_name": "x"}])
    world.api.changes.delete([str(number)])


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="the sqlite3 program is not installed")
def test_sqlite_is_copied_in_mid_cycle_and_restored(world):
    world.sync()
    change(world, 1)
    copied = []

    class Copying(Alone):
        def progress(self, done, total=None, unit=""):
            if unit == "records" and not copied:
                done = subprocess.run(
                    ["sh", "-c", command("VACUUM INTO")],
                    cwd=world.state_dir,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                copied.append((done.returncode, done.stderr))

    sync(Copying(str(world.state_dir)))
    assert copied == [(0, "")]
    change(world, 2)
    world.sync()
    for name in ("redcap.db", "redcap.db-wal", "redcap.db-shm"):
        (world.state_dir / name).unlink(missing_ok=True)
    (world.state_dir / "redcap-backup.db").rename(world.state_dir / "redcap.db")
    summary = world.sync()
    assert summary["mode"] == "incremental"
    world.assert_exact()


def test_postgresql_is_dumped_and_restored(world, monkeypatch):
    with postgres.running() as server:
        admin = f"host={server.home} user=postgres dbname=postgres"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("CREATE DATABASE redcap")
        monkeypatch.setenv("SYNC_SINK", server.url.replace("/postgres?", "/redcap?"))
        env = {"PGHOST": server.home, "PGUSER": "postgres", "PATH": f"{server.programs}:/usr/bin:/bin"}

        def run(text):
            done = subprocess.run(
                ["sh", "-c", text], cwd=world.state_dir, env=env, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")

        world.sync()
        run(command("pg_dump"))
        change(world, 1)
        world.sync()
        world.assert_exact()
        run(command("pg_restore"))
        assert world.stored() != world.truth()
        summary = world.sync()
        assert summary["mode"] == "incremental"
        world.assert_exact()


def test_a_lost_state_directory_costs_a_full_sync_of_sqlite_and_nothing_of_postgresql(either):
    either.sync()
    change(either, 1)
    shutil.rmtree(either.state_dir)
    either.state_dir.mkdir()
    summary = either.sync()
    assert summary["mode"] == ("full" if either.dialect == "sqlite" else "incremental")
    either.assert_exact()


def test_every_command_of_the_guide_is_known():
    """Those that need root, an engine, a cluster or systemd have tests of what they call, in tests/deploy and tests/fleet."""
    elsewhere = ("sudo ", "journalctl ", "docker ", "python -m celery ", "pip install ", "export CELERY_BROKER_URL")
    run_here = [command("VACUUM INTO"), command("pg_dump"), command("pg_restore")]
    assert [one for one in COMMANDS if one not in run_here and not one.startswith(elsewhere)] == []
    for path in re.findall(r"`(ops/[\w./-]+)`", GUIDE):
        assert (ROOT / path).exists(), path
