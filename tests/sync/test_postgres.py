"""What only a real PostgreSQL can show."""

import random
import threading

import psycopg
import pytest

from tests.sync import postgres
from tests.sync.conftest import Alone
from worker import errors
from worker.job import sync


@pytest.fixture
def database(world, postgres_url, monkeypatch):
    monkeypatch.setenv("SYNC_SINK", postgres_url)
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def test_exact_through_changes_deletions_and_renames(world, database):
    world.sync()
    world.assert_exact()
    chance = random.Random(9)
    for _ in range(4):
        for _ in range(25):
            world.api.changes.churn(chance)
        world.sync()
        world.assert_exact()
    (types,) = database.execute("SELECT pg_typeof(data)::text, pg_typeof(changed_at)::text FROM records LIMIT 1")
    assert types == ("jsonb", "timestamp with time zone")
    assert database.execute("SELECT COUNT(*) FROM cycles").fetchone() == (5,)


def test_a_refusal_names_the_database_and_no_value(world, database):
    world.sync()
    database.execute("ALTER TABLE records ADD CHECK (data->>'first_name' IS DISTINCT FROM 'Canary')")
    world.api.changes.put([{"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": "Canary"}])
    with pytest.raises(errors.SinkFailed, match="CheckViolation 23514") as caught:
        world.sync()
    assert "Canary" not in str(caught.value)


def test_a_database_that_is_not_there(world, monkeypatch):
    monkeypatch.setenv("SYNC_SINK", "postgresql+psycopg://me:hunter2@/none?host=/nowhere")
    with pytest.raises(errors.SinkFailed, match="No such file or directory") as caught:
        world.sync()
    assert "hunter2" not in str(caught.value)


class Interrupted(Alone):
    """A cycle in whose middle something happens to the database."""

    def progress(self, done, total=None, unit=""):
        if unit == "records" and done < total:
            self.meddle()


def test_a_connection_that_is_lost_in_mid_cycle(world, database, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    cycle = Interrupted(str(world.state_dir))
    cycle.meddle = lambda: database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database()"
    )
    with pytest.raises(errors.SinkFailed, match="AdminShutdown 57P01: the connection was lost"):
        sync(cycle)
    (count,) = database.execute("SELECT COUNT(DISTINCT record_id) FROM records").fetchone()
    assert count == 10
    assert world.sync()["mode"] == "full"
    world.assert_exact()


def test_a_server_that_restarts_in_mid_cycle_and_one_that_is_down(world, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    with postgres.running() as server:
        monkeypatch.setenv("SYNC_SINK", server.url)
        cycle = Interrupted(str(world.state_dir))
        cycle.meddle = server.stop
        with pytest.raises(errors.SinkFailed, match="connection"):
            sync(cycle)
        with pytest.raises(errors.SinkFailed, match="can't be opened"):
            world.sync()
        server.start()
        assert world.query("SELECT COUNT(DISTINCT record_id) FROM records") == [(10,)]
        assert world.sync()["mode"] == "full"
        world.assert_exact()


def test_another_instance_holds_the_project(world, database, monkeypatch):
    monkeypatch.setattr("worker.sink.sql.LOCK_PATIENCE_S", 1)
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    entered, go_on = threading.Event(), threading.Event()
    cycle = Interrupted(str(world.state_dir))
    done = []

    def meddle():
        entered.set()
        assert go_on.wait(30)

    cycle.meddle = meddle
    first = threading.Thread(target=lambda: done.append(sync(cycle)))
    first.start()
    try:
        assert entered.wait(30)
        with pytest.raises(errors.SinkBusy, match="run one instance"):
            world.sync()
    finally:
        go_on.set()
        first.join()
    assert done[0]["records"] == 60
    assert world.sync()["mode"] == "incremental"
    world.assert_exact()


def test_a_view_that_somebody_built_on_ours_is_left_alone(world, database, caplog):
    world.sync()
    database.execute("CREATE VIEW mine AS SELECT record_id FROM visit")
    count = database.execute("SELECT COUNT(*) FROM mine").fetchone()
    for _ in range(2):
        world.api.project.fields[-1].label += " again"
        assert world.sync()["mode"] == "full"
        assert database.execute("SELECT COUNT(*) FROM mine").fetchone() == count
        assert database.execute("SELECT COUNT(*) FROM visit_2").fetchone() == count
        assert "the view visit stays as it was" in caplog.text
    database.execute("DROP VIEW mine")
    world.api.project.fields[-1].label += " again"
    world.sync()
    views = database.execute("SELECT DISTINCT view_name FROM fields ORDER BY 1").fetchall()
    assert views == [("adverse_event",), ("enrolment",), ("medication",), ("visit",)]


def test_types_of_the_columns(world, database):
    world.sync()
    types = dict(
        database.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name IN ('enrolment', 'visit')"
        ).fetchall()
    )
    wanted = {"born_on": "date", "sex": "text", "languages___en": "boolean", "consented": "boolean"}
    wanted |= {"weight_kg": "numeric", "pulse": "bigint", "well_being": "bigint", "visit_complete": "bigint"}
    wanted |= {"visit_on": "timestamp without time zone", "visit_note": "text"}
    assert {name: types[name] for name in wanted} == wanted
